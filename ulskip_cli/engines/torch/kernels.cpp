// The CPU kernels of decode steps: matrix products for few rows, and attention of few tokens.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr int kLanes = 16;

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Pairs __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

template <class Vector>
inline Vector load(const void* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

// y = x W^T + b for the few rows of x in a decode step. Most of the time is spent reading W.
//
// W is stored in panels of 32 outputs: [panels, units, 32]. A unit is one float32, or two adjacent bfloat16 values of one
// output's row. Each thread therefore reads contiguous memory, and multiplies up to 8 rows of x with each value that it reads.

constexpr int kPanelVectors = 2, kPanel = kLanes * kPanelVectors, kRows = 8;
constexpr int kAhead = 1024;  // units between a read and its prefetch
constexpr int64_t kPanelGrain = 1 << 14;  // smallest number of units for which a second thread saves time

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
  Floats partial[kChains][M][kPanelVectors] = {};
  int64_t k = 0;
  for (; k + kChains <= units; k += kChains)
    for (int c = 0; c < kChains; c++)
      for (int v = 0; v < kPanelVectors; v++) {
        const Unit* read = weights + (k + c) * kPanel + v * kLanes;
        if (M > 4) __builtin_prefetch(read + kAhead);  // fewer reads are in flight between so many products
        for (int m = 0; m < M; m++) add_product(partial[c][m][v], read, x[m * units + k + c]);
      }
  for (; k < units; k++)
    for (int v = 0; v < kPanelVectors; v++)
      for (int m = 0; m < M; m++) add_product(partial[0][m][v], weights + k * kPanel + v * kLanes, x[m * units + k]);
  for (int m = 0; m < M; m++)
    for (int v = 0; v < kPanelVectors; v++) {
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
  at::parallel_for(0, layers.back().end, std::max<int64_t>(1, kPanelGrain / (kPanel * units)), [&](int64_t begin, int64_t end) {
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

// Attention of the few new tokens of every sequence to the keys and values in its cache, in float32.
//
// Torch's kernel packs the keys of every query head before it multiplies, which costs more than the product of a few queries.
// Here up to 4 queries that share a key-value head read its keys and values once, where they are.

constexpr int kQueries = 4, kVectors = 4;
constexpr int64_t kGrain = 1 << 14;  // smallest number of key elements for which a second thread saves time

inline Floats load_floats(const float* from) { return load<Floats>(from); }

typedef float Floats8 __attribute__((vector_size(32)));
typedef float Floats4 __attribute__((vector_size(16)));

inline Floats load_floats(const at::BFloat16* from) {
#ifdef __AVX512F__  // GCC converts the halves of the vector one after the other
  return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(load<__m256i>(from)), 16);
#endif
  return (Floats)(__builtin_convertvector(load<Halves>(from), Pairs) << 16);
}

inline float sum_of(const Floats& vector) {  // added in halves
  Floats8 eight[2];
  std::memcpy(eight, &vector, sizeof eight);
  const Floats8 sums = eight[0] + eight[1];
  Floats4 four[2];
  std::memcpy(four, &sums, sizeof four);
  const Floats4 rest = four[0] + four[1];
  return (rest[0] + rest[2]) + (rest[1] + rest[3]);
}

// e^x for x <= 0, with a relative error below 3e-7.
inline Floats exp_of(Floats x) {
  constexpr float kLeast = -87.f, kRound = 12582912.f;  // adding and subtracting 1.5 * 2^23 rounds to a whole number
  x = x < kLeast ? Floats{} + kLeast : x;
  const Floats n = (x * 1.44269504f + kRound) - kRound;
  const Floats f = (x - n * 0.693145752f) - n * 1.42860677e-6f;  // ln 2 in two parts
  const Floats series = 1 + f * (1 + f * (1 / 2.f + f * (1 / 6.f + f * (1 / 24.f + f * (1 / 120.f + f * (1 / 720.f))))));
  return series * (Floats)((__builtin_convertvector(n, Ints) + 127) << 23);
}

template <class Number>
struct Rows {  // of one head: [length, width] with a stride between rows
  const Number* data;
  int64_t stride;
};

// Writes the weighted sums of the first V * 16 columns of `values` for M queries. weights: [M, padded]; out: [M, width].
template <class Number, int M, int V>
void weigh(Rows<Number> values, const float* weights, int64_t padded, int64_t length, float* out, int64_t width) {
  Floats sums[M][V] = {};
  for (int64_t i = 0; i < length; i++)
    for (int v = 0; v < V; v++) {
      const Floats value = load_floats(values.data + i * values.stride + v * kLanes);
      for (int m = 0; m < M; m++) sums[m][v] += value * weights[m * padded + i];
    }
  for (int m = 0; m < M; m++) std::memcpy(out + m * width, sums[m], sizeof sums[m]);
}

// query: [M, width], scaled; masks: M rows or null; scores: [M, padded]; out: [M, width].
template <class Number, int M>
void attend(const float* query, Rows<Number> keys, Rows<Number> values, const Rows<Number>* masks, int64_t length,
            int64_t width, int64_t padded, float* scores, float* out) {
  const int64_t whole = width / kLanes * kLanes;
  for (int64_t i = 0; i < length; i++) {
    const Number* key = keys.data + i * keys.stride;
    Floats sums[M] = {};
    for (int64_t d = 0; d < whole; d += kLanes) {
      const Floats part = load_floats(key + d);
      for (int m = 0; m < M; m++) sums[m] += part * load<Floats>(query + m * width + d);
    }
    for (int m = 0; m < M; m++) {
      float score = sum_of(sums[m]);
      for (int64_t d = whole; d < width; d++) score += float(key[d]) * query[m * width + d];
      scores[m * padded + i] = masks ? score + float(masks[m].data[i * masks[m].stride]) : score;
    }
  }
  for (int m = 0; m < M; m++) {
    float* row = scores + m * padded;
    std::fill(row + length, row + padded, -std::numeric_limits<float>::infinity());
    Floats most = load<Floats>(row);
    for (int64_t i = kLanes; i < padded; i += kLanes) {
      const Floats scored = load<Floats>(row + i);
      most = scored > most ? scored : most;
    }
    float largest = most[0];
    for (int i = 1; i < kLanes; i++) largest = std::max(largest, most[i]);
    Floats total = {};
    for (int64_t i = 0; i < padded; i += kLanes) {
      const Floats power = exp_of(load<Floats>(row + i) - largest);
      std::memcpy(row + i, &power, sizeof power);
      total += power;
    }
    const float share = 1 / sum_of(total);
    for (int64_t i = 0; i < length; i++) row[i] *= share;
  }
  int64_t d = 0;
  for (; d + kVectors * kLanes <= width; d += kVectors * kLanes)
    weigh<Number, M, kVectors>({values.data + d, values.stride}, scores, padded, length, out + d, width);
  for (; d < whole; d += kLanes)
    weigh<Number, M, 1>({values.data + d, values.stride}, scores, padded, length, out + d, width);
  for (; d < width; d++)
    for (int m = 0; m < M; m++) {
      float sum = 0;
      for (int64_t i = 0; i < length; i++) sum += scores[m * padded + i] * float(values.data[i * values.stride + d]);
      out[m * width + d] = sum;
    }
}

// query: [batch, heads, queries, width]; keys, values: [batch, key-value heads, length, width]; mask: [batch, heads, queries,
// length] or null; out: [batch, queries, heads, width].
template <class Number>
void attend_all(const at::Tensor& query, const at::Tensor& keys, const at::Tensor& values, const at::Tensor* mask, float scale,
                at::Tensor& out) {
  static constexpr decltype(&attend<Number, 1>) kByQueries[kQueries] = {
      attend<Number, 1>, attend<Number, 2>, attend<Number, 3>, attend<Number, 4>};
  const int64_t batch = query.size(0), heads = query.size(1), queries = query.size(2), width = query.size(3);
  const int64_t length = keys.size(2), padded = (length + kLanes - 1) / kLanes * kLanes;
  const int64_t per_group = heads / keys.size(1) * queries;  // queries that share a key-value head
  const auto rows = [](const at::Tensor& tensor, int64_t b, int64_t h, int64_t row) {
    return Rows<Number>{tensor.const_data_ptr<Number>() + b * tensor.stride(0) + h * tensor.stride(1), tensor.stride(row)};
  };
  auto* out_data = out.mutable_data_ptr<Number>();
  const int64_t grain = std::max<int64_t>(1, kGrain / (length * width));
  at::parallel_for(0, batch * heads * queries, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> scaled(kQueries * width), scores(kQueries * padded), sums(kQueries * width);
    for (int64_t first = begin, count; first < end; first += count) {
      const int64_t group = first / per_group, b = group / keys.size(1), shared = group % keys.size(1);
      count = std::min({int64_t{kQueries}, end - first, (group + 1) * per_group - first});
      Rows<Number> masks[kQueries];
      for (int64_t m = 0; m < count; m++) {
        const int64_t h = (first + m) / queries % heads, q = (first + m) % queries;
        const Number* from = rows(query, b, h, 2).data + q * query.stride(2);
        for (int64_t d = 0; d < width; d++) scaled[m * width + d] = float(from[d]) * scale;
        if (mask) {
          masks[m] = rows(*mask, b, h, 3);
          masks[m].data += q * mask->stride(2);
        }
      }
      kByQueries[count - 1](scaled.data(), rows(keys, b, shared, 2), rows(values, b, shared, 2), mask ? masks : nullptr, length,
                            width, padded, scores.data(), sums.data());
      for (int64_t m = 0; m < count; m++) {
        const int64_t h = (first + m) / queries % heads, q = (first + m) % queries;
        for (int64_t d = 0; d < width; d++) out_data[((b * queries + q) * heads + h) * width + d] = Number(sums[m * width + d]);
      }
    }
  });
}

at::Tensor with_adjacent_elements(const at::Tensor& tensor) { return tensor.stride(-1) == 1 ? tensor : tensor.contiguous(); }

at::Tensor attention(const at::Tensor& query, const at::Tensor& keys, const at::Tensor& values,
                     const std::optional<at::Tensor>& mask, double scale) {
  const int64_t batch = query.size(0), heads = query.size(1), queries = query.size(2), width = query.size(3);
  at::Tensor out = at::empty({batch, queries, heads, width}, query.options());
  const at::Tensor q = with_adjacent_elements(query), k = with_adjacent_elements(keys), v = with_adjacent_elements(values);
  const at::Tensor expanded = mask ? mask->expand({batch, heads, queries, keys.size(2)}) : at::Tensor();
  const at::Tensor* added = mask ? &expanded : nullptr;
  if (query.scalar_type() == at::kFloat)
    attend_all<float>(q, k, v, added, float(scale), out);
  else
    attend_all<at::BFloat16>(q, k, v, added, float(scale), out);
  return out;
}

}  // namespace

TORCH_LIBRARY(ulskip, library) {
  library.def("linear(Tensor x, Tensor weights, Tensor? bias, int out_features) -> Tensor");
  library.def("linears(Tensor x, Tensor[] weights, Tensor?[] biases, int[] out_features) -> Tensor[]");
  library.impl("linear", c10::DispatchKey::CPU, &linear);
  library.impl("linears", c10::DispatchKey::CPU, &linears);
  library.def("attention(Tensor query, Tensor keys, Tensor values, Tensor? mask, float scale) -> Tensor");
  library.impl("attention", c10::DispatchKey::CPU, &attention);
}
