// y = x W^T + b for the few rows of x in a decode step. Most of the time is spent reading W.
//
// W is stored in panels of 32 outputs: [panels, units, 32]. A unit is one float32, or two adjacent bfloat16 values of one
// output's row. Each thread therefore reads contiguous memory, and multiplies up to 8 rows of x with each value that it reads.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "vectors.h"
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

using namespace ulskip;

constexpr int kVectors = 2, kPanel = kLanes * kVectors, kRows = 8;
constexpr int kAhead = 1024;  // units between a read and its prefetch
constexpr int64_t kGrain = 1 << 14;  // smallest number of units for which a second thread saves time

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void add_product(Floats& sum, const float* weights, float x) { sum += load<Floats>(weights) * x; }

inline void add_product(Floats& sum, const uint32_t* weights, uint32_t x) {
#ifdef __AVX512BF16__
  sum = (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)load<__m512i>(weights), (__m512bh)_mm512_set1_epi32(x));
#else
  const Pairs pairs = load<Pairs>(weights);
  sum += (Floats)(pairs << 16) * as_float(x << 16);
  sum += (Floats)(pairs & 0xffff0000u) * as_float(x & 0xffff0000u);
#endif
}

// x: [M, units]; weights: [units, kPanel]; sums: [M, kPanel].
template <class Unit, int M>
void panel(const Unit* x, const Unit* weights, int64_t units, float* sums) {
  constexpr int kChains = M == 1 ? 4 : M == 2 ? 2 : 1;  // independent sums, so that additions do not wait for each other
  Floats partial[kChains][M][kVectors] = {};
  int64_t k = 0;
  for (; k + kChains <= units; k += kChains)
    for (int c = 0; c < kChains; c++)
      for (int v = 0; v < kVectors; v++) {
        const Unit* read = weights + (k + c) * kPanel + v * kLanes;
        if (M > 4) __builtin_prefetch(read + kAhead);  // fewer reads are in flight between so many products
        for (int m = 0; m < M; m++) add_product(partial[c][m][v], read, x[m * units + k + c]);
      }
  for (; k < units; k++)
    for (int v = 0; v < kVectors; v++)
      for (int m = 0; m < M; m++) add_product(partial[0][m][v], weights + k * kPanel + v * kLanes, x[m * units + k]);
  for (int m = 0; m < M; m++)
    for (int v = 0; v < kVectors; v++) {
      for (int c = 1; c < kChains; c++) partial[0][m][v] += partial[c][m][v];
      std::memcpy(sums + m * kPanel + v * kLanes, &partial[0][m][v], sizeof(Floats));
    }
}

template <class Unit>
void panel_of(int64_t rows, const Unit* x, const Unit* weights, int64_t units, float* sums) {
  static constexpr decltype(&panel<Unit, 1>) kByRows[kRows] = {
      panel<Unit, 1>, panel<Unit, 2>, panel<Unit, 3>, panel<Unit, 4>,
      panel<Unit, 5>, panel<Unit, 6>, panel<Unit, 7>, panel<Unit, 8>};
  kByRows[rows - 1](x, weights, units, sums);
}

template <class Number, class Unit>
struct Layer {
  const Unit* weights;   // [panels, units, kPanel]
  const Number* bias;    // [N] or null
  Number* out;           // [M, N]
  int64_t N, end;        // end: of its panels, behind those of the layers before it
};

// x: [M, units]
template <class Number, class Unit>
void multiply(const Unit* x, int64_t M, int64_t units, const std::vector<Layer<Number, Unit>>& layers) {
  at::parallel_for(0, layers.back().end, std::max<int64_t>(1, kGrain / (kPanel * units)), [&](int64_t begin, int64_t end) {
    alignas(64) float sums[kRows * kPanel];
    auto layer = layers.begin();
    for (int64_t p = begin; p < end; p++) {
      while (p >= layer->end) layer++;
      const int64_t N = layer->N, first = (p - layer->end) * kPanel + (N + kPanel - 1) / kPanel * kPanel;
      const int64_t width = std::min<int64_t>(kPanel, N - first);
      for (int64_t m = 0; m < M; m += kRows) {
        const int64_t rows = std::min<int64_t>(kRows, M - m);
        panel_of<Unit>(rows, x + m * units, layer->weights + first * units, units, sums);
        for (int64_t r = 0; r < rows; r++)
          for (int64_t n = 0; n < width; n++) {
            const float sum = sums[r * kPanel + n];
            layer->out[(m + r) * N + first + n] = Number(layer->bias ? sum + float(layer->bias[first + n]) : sum);
          }
      }
    }
  });
}

template <class Number, class Unit>
std::vector<at::Tensor> products(const at::Tensor& x, at::ArrayRef<at::Tensor> weights,
                                 const c10::List<std::optional<at::Tensor>>& biases, at::IntArrayRef out_features) {
  const at::Tensor rows = x.contiguous();
  const int64_t units = weights[0].size(1);
  std::vector<at::Tensor> outs;
  std::vector<Layer<Number, Unit>> layers;
  auto sizes = x.sizes().vec();
  for (size_t i = 0; i < weights.size(); i++) {
    const std::optional<at::Tensor> bias = biases[i];
    sizes.back() = out_features[i];
    outs.push_back(at::empty(sizes, x.options()));
    layers.push_back({static_cast<const Unit*>(weights[i].const_data_ptr()), bias ? bias->const_data_ptr<Number>() : nullptr,
                      outs[i].mutable_data_ptr<Number>(), out_features[i],
                      weights[i].size(0) + (i ? layers[i - 1].end : 0)});
  }
  multiply<Number, Unit>(static_cast<const Unit*>(rows.const_data_ptr()), outs[0].numel() / out_features[0], units, layers);
  return outs;
}

// The products of x with several weights, in one parallel region.
std::vector<at::Tensor> linears(const at::Tensor& x, at::TensorList weights, const c10::List<std::optional<at::Tensor>>& biases,
                                at::IntArrayRef out_features) {
  return x.scalar_type() == at::kFloat ? products<float, float>(x, weights, biases, out_features)
                                       : products<at::BFloat16, uint32_t>(x, weights, biases, out_features);
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weights, const std::optional<at::Tensor>& bias, int64_t N) {
  return linears(x, weights, c10::List<std::optional<at::Tensor>>({bias}), N)[0];
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(ulskip, library) {
  library.def("linear(Tensor x, Tensor weights, Tensor? bias, int out_features) -> Tensor");
  library.def("linears(Tensor x, Tensor[] weights, Tensor?[] biases, int[] out_features) -> Tensor[]");
  library.impl("linear", c10::DispatchKey::CPU, &linear);
  library.impl("linears", c10::DispatchKey::CPU, &linears);
}
