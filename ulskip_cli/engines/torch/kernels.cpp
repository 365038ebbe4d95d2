// The CPU kernels of decode steps: matrix products for few rows, and attention of few tokens.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>
#ifdef __FMA__
#include <immintrin.h>
#endif

namespace {

#ifdef __AVX512F__
constexpr int kLanes = 16, kBlock = 8;  // rows that are multiplied at once, so that their sums stay in registers
#else
constexpr int kLanes = 8, kBlock = 3;
#endif

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

inline Floats all(float x) { return x - Floats{}; }

// a * b + c, rounded once. Explicit, because compilers contract some loops and not others.
inline Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// y = x W^T + b for the few rows of x in a decode step. Most of the time is spent reading W.
//
// W is stored in panels of 32 outputs: [panels, units, 32]. A unit is one float32, or two adjacent bfloat16 values of one
// output's row. Each thread therefore reads contiguous memory, and multiplies up to 8 rows of x with each value that it reads.

constexpr int kPanel = 32, kPanelVectors = kPanel / kLanes, kRows = 8;
constexpr int kPair = 2;  // panels at once for one row, so that more additions are in flight
constexpr int kChunk = 64;  // units that stay in the cache between two blocks of rows
constexpr int kAhead = 1024;  // units between a read and its prefetch
constexpr int64_t kPanelGrain = 1 << 14;  // smallest number of units for which a second thread saves time

inline void add_product(Floats& sum, const float* weights, float x) { sum = fused(load<Floats>(weights), all(x), sum); }

inline void add_product(Floats& sum, const uint32_t* weights, uint32_t x) {
#ifdef __AVX512BF16__
  sum = (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)load<__m512i>(weights), (__m512bh)_mm512_set1_epi32(x));
#else
  const Pairs pairs = load<Pairs>(weights), factors = x | Pairs{};
  sum = fused((Floats)(pairs << 16), (Floats)(factors << 16), sum);
  sum = fused((Floats)(pairs & 0xffff0000u), (Floats)(factors & 0xffff0000u), sum);
#endif
}

// Adds the products of `count` units. Each output is one sum in the order of the units, so that its bits do not depend on
// the other rows. x: [M, units]; weights: [P, units, kPanel]; sums: [M, P, kPanel].
template <class Unit, int M, int P>
void add_products(const Unit* x, const Unit* weights, int64_t units, int64_t count, float* sums) {
  Floats partial[M][P][kPanelVectors];
  std::memcpy(partial, sums, sizeof partial);
  for (int64_t k = 0; k < count; k++)
    for (int p = 0; p < P; p++)
      for (int v = 0; v < kPanelVectors; v++) {
        const Unit* read = weights + (p * units + k) * kPanel + v * kLanes;
        if (M > 4) __builtin_prefetch(read + kAhead);  // fewer reads are in flight between so many products
        for (int m = 0; m < M; m++) add_product(partial[m][p][v], read, x[m * units + k]);
      }
  std::memcpy(sums, partial, sizeof partial);
}

template <class Unit, int... M>
constexpr auto by_rows(std::integer_sequence<int, M...>) {
  return std::array{add_products<Unit, M + 1, 1>...};
}

// The sums [rows, panels, kPanel] of 1 to 8 rows and 1 panel, or of 1 row and kPair panels.
template <class Unit>
void multiply_panels(const Unit* x, int64_t rows, const Unit* weights, int64_t panels, int64_t units, float* sums) {
  static constexpr auto kByRows = by_rows<Unit>(std::make_integer_sequence<int, kBlock>());
  std::fill(sums, sums + rows * panels * kPanel, 0.f);
  if (panels == kPair) return add_products<Unit, 1, kPair>(x, weights, units, units, sums);
  const int64_t chunk = rows > kBlock ? kChunk : units;
  for (int64_t k = 0; k < units; k += chunk)
    for (int64_t m = 0; m < rows; m += kBlock)
      kByRows[std::min<int64_t>(kBlock, rows - m) - 1](x + m * units + k, weights + k * kPanel, units,
                                                       std::min(chunk, units - k), sums + m * kPanel);
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
    for (int64_t p = begin, count; p < end; p += count) {
      while (p >= layer->end) layer++;
      count = M == 1 && p + kPair <= std::min(end, layer->end) ? kPair : 1;
      const int64_t N = layer->N, first = (p - layer->end) * kPanel + (N + kPanel - 1) / kPanel * kPanel;
      const int64_t width = std::min<int64_t>(count * kPanel, N - first);
      for (int64_t m = 0; m < M; m += kRows) {
        const int64_t rows = std::min<int64_t>(kRows, M - m);
        multiply_panels(x + m * units, rows, layer->weights + first * units, count, units, sums);
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

inline Floats load_floats(const at::BFloat16* from) {
#ifdef __AVX512F__  // GCC converts the halves of the vector one after the other
  return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(load<__m256i>(from)), 16);
#endif
  return (Floats)(__builtin_convertvector(load<Halves>(from), Pairs) << 16);
}

// The first `count` numbers, and zeros behind them.
template <class Number>
inline Floats load_part(const Number* from, int64_t count) {
  Number part[kLanes] = {};
  std::memcpy(part, from, count * sizeof(Number));
  return load_floats(part);
}

typedef float Floats4 __attribute__((vector_size(16)));

inline float sum_of(const Floats& vector) {  // added in halves
  Floats4 parts[kLanes / 4];
  std::memcpy(parts, &vector, sizeof parts);
  for (int half = kLanes / 8; half; half /= 2)
    for (int i = 0; i < half; i++) parts[i] += parts[i + half];
  return (parts[0][0] + parts[0][2]) + (parts[0][1] + parts[0][3]);
}

constexpr float kLeast = -87.f;  // weights below e^kLeast are 0

// e^x for x <= 0, with a relative error below 3e-7.
inline Floats exp_of(Floats x) {
  constexpr float kRound = 12582912.f;  // adding and subtracting 1.5 * 2^23 rounds to a whole number
  const Floats from = x < kLeast ? all(kLeast) : x;
  const Floats n = fused(from, all(1.44269504f), all(kRound)) - kRound;
  const Floats f = fused(n, all(-1.42860677e-6f), fused(n, all(-0.693145752f), from));  // ln 2 in two parts
  Floats series = all(1 / 720.f);
  for (const float term : {1 / 120.f, 1 / 24.f, 1 / 6.f, 1 / 2.f, 1.f, 1.f}) series = fused(f, series, all(term));
  const Floats power = series * (Floats)((__builtin_convertvector(n, Ints) + 127) << 23);
  return x < kLeast ? Floats{} : power;
}

template <class Number>
struct Rows {  // of one head: [length, width] with a stride between rows
  const Number* data;
  int64_t stride;
};

// Writes the weighted sums of the first V * kLanes columns of `values`, or of `count` columns if they are fewer, for M queries.
// weights: [M, padded]; out: [M, wide].
template <class Number, int M, int V>
void weigh(Rows<Number> values, const float* weights, int64_t padded, int64_t length, float* out, int64_t wide, int64_t count) {
  Floats sums[M][V] = {};
  for (int64_t i = 0; i < length; i++)
    for (int v = 0; v < V; v++) {
      const Number* read = values.data + i * values.stride + v * kLanes;
      const Floats value = count < V * kLanes ? load_part(read, count) : load_floats(read);
      for (int m = 0; m < M; m++) sums[m][v] = fused(value, all(weights[m * padded + i]), sums[m][v]);
    }
  for (int m = 0; m < M; m++) std::memcpy(out + m * wide, sums[m], sizeof sums[m]);
}

// Turns the scores [length] of one query into weights. `row` has room for kLanes more.
void softmax(float* row, int64_t length) {
  std::fill(row + length, row + length + kLanes, -std::numeric_limits<float>::infinity());
  Floats most = load<Floats>(row);
  for (int64_t i = kLanes; i < length; i += kLanes) {
    const Floats scored = load<Floats>(row + i);
    most = scored > most ? scored : most;
  }
  float largest = most[0];
  for (int i = 1; i < kLanes; i++) largest = std::max(largest, most[i]);
  int64_t first = 0;  // with a weight, so that sums are the same in any number of padded positions
  while (row[first] - largest < kLeast) row[first++] = 0;
  Floats total = {};
  for (int64_t i = first; i < length; i += kLanes) {
    const Floats power = exp_of(load<Floats>(row + i) - largest);
    std::memcpy(row + i, &power, sizeof power);
    total += power;
  }
  const float share = 1 / sum_of(total);
  for (int64_t i = first; i < length; i++) row[i] *= share;
}

// Each query's result has the same bits for any M, and with any masked positions around the others.
// query: [M, wide], scaled; masks: M rows or null; scores: [M, padded]; out: [M, wide].
template <class Number, int M>
void attend(const float* query, Rows<Number> keys, Rows<Number> values, const Rows<Number>* masks, int64_t length,
            int64_t width, int64_t wide, int64_t padded, float* scores, float* out) {
  const int64_t whole = width / kLanes * kLanes;
  for (int64_t i = 0; i < length; i++) {
    const Number* key = keys.data + i * keys.stride;
    Floats sums[M] = {};
    const auto add = [&](Floats part, int64_t d) {
      for (int m = 0; m < M; m++) sums[m] = fused(part, load<Floats>(query + m * wide + d), sums[m]);
    };
    for (int64_t d = 0; d < whole; d += kLanes) add(load_floats(key + d), d);
    if (whole < width) add(load_part(key + whole, width - whole), whole);
    for (int m = 0; m < M; m++) {
      const float score = sum_of(sums[m]);
      scores[m * padded + i] = masks ? score + float(masks[m].data[i * masks[m].stride]) : score;
    }
  }
  for (int m = 0; m < M; m++) softmax(scores + m * padded, length);
  int64_t d = 0;
  for (; d + kVectors * kLanes <= width; d += kVectors * kLanes)
    weigh<Number, M, kVectors>({values.data + d, values.stride}, scores, padded, length, out + d, wide, width - d);
  for (; d < width; d += kLanes)
    weigh<Number, M, 1>({values.data + d, values.stride}, scores, padded, length, out + d, wide, width - d);
}

// query: [batch, heads, queries, width]; keys, values: [batch, key-value heads, length, width]; mask: [batch, heads, queries,
// length] or null; out: [batch, queries, heads, width].
template <class Number>
void attend_all(const at::Tensor& query, const at::Tensor& keys, const at::Tensor& values, const at::Tensor* mask, float scale,
                at::Tensor& out) {
  static constexpr decltype(&attend<Number, 1>) kByQueries[kQueries] = {
      attend<Number, 1>, attend<Number, 2>, attend<Number, 3>, attend<Number, 4>};
  const int64_t batch = query.size(0), heads = query.size(1), queries = query.size(2), width = query.size(3);
  const int64_t length = keys.size(2), padded = length + kLanes, wide = (width + kLanes - 1) / kLanes * kLanes;
  const int64_t per_group = heads / keys.size(1) * queries;  // queries that share a key-value head
  const auto rows = [](const at::Tensor& tensor, int64_t b, int64_t h, int64_t row) {
    return Rows<Number>{tensor.const_data_ptr<Number>() + b * tensor.stride(0) + h * tensor.stride(1), tensor.stride(row)};
  };
  auto* out_data = out.mutable_data_ptr<Number>();
  const int64_t grain = std::max<int64_t>(1, kGrain / (length * width));
  at::parallel_for(0, batch * heads * queries, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> scaled(kQueries * wide), scores(kQueries * padded), sums(kQueries * wide);
    for (int64_t first = begin, count; first < end; first += count) {
      const int64_t group = first / per_group, b = group / keys.size(1), shared = group % keys.size(1);
      count = std::min({int64_t{kQueries}, end - first, (group + 1) * per_group - first});
      Rows<Number> masks[kQueries];
      for (int64_t m = 0; m < count; m++) {
        const int64_t h = (first + m) / queries % heads, q = (first + m) % queries;
        const Number* from = rows(query, b, h, 2).data + q * query.stride(2);
        for (int64_t d = 0; d < width; d++) scaled[m * wide + d] = float(from[d]) * scale;
        if (mask) {
          masks[m] = rows(*mask, b, h, 3);
          masks[m].data += q * mask->stride(2);
        }
      }
      kByQueries[count - 1](scaled.data(), rows(keys, b, shared, 2), rows(values, b, shared, 2), mask ? masks : nullptr, length,
                            width, wide, padded, scores.data(), sums.data());
      for (int64_t m = 0; m < count; m++) {
        const int64_t h = (first + m) / queries % heads, q = (first + m) % queries;
        for (int64_t d = 0; d < width; d++) out_data[((b * queries + q) * heads + h) * width + d] = Number(sums[m * wide + d]);
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
