// Decode steps of Llama and models built like it: one call runs embedding, layers, norm and head for a few tokens of every
// sequence, in one parallel region. Also the products of single linear layers for all other models.
//
// All sums of a row run in one order, whatever other rows, threads or padded positions are around it, so that a check of
// several tokens gives the bits of single steps. Values are rounded to the type of the model where transformers rounds them.

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include <omp.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#ifdef __AVX512F__
constexpr int kLanes = 16, kBlock = 8;  // rows that are multiplied at once, so that their sums stay in registers
#else
constexpr int kLanes = 8, kBlock = 3;
#endif
constexpr int kPanel = 32, kVectors = kPanel / kLanes;  // outputs that are stored together

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef float Floats4 __attribute__((vector_size(16)));

struct BFloat16 {
  uint16_t bits;
};

template <class Vector>
inline Vector load(const void* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

inline Floats all(float x) { return x - Floats{}; }

inline bool any(Ints flags) {
  int64_t halves[kLanes / 2], sum = 0;
  std::memcpy(halves, &flags, sizeof flags);
  for (const int64_t half : halves) sum |= half;
  return sum != 0;
}

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

// Rounds to the type of the model: to the nearest, ties to even.
template <class Number>
inline Floats rounded(Floats x) {
  if constexpr (std::is_same_v<Number, float>) return x;
  const Bits bits = (Bits)x;
  return (Floats)((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
}

inline Floats load_floats(const float* from) { return load<Floats>(from); }

inline Floats load_floats(const BFloat16* from) {
#ifdef __AVX512F__  // GCC converts the halves of the vector one after the other
  return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(load<__m256i>(from)), 16);
#endif
  return (Floats)(__builtin_convertvector(load<Halves>(from), Bits) << 16);
}

inline void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }

// Stores values that are rounded already.
inline void store(BFloat16* to, Floats x) {
#ifdef __AVX512F__
  const __m256i halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)x, 16));
#else
  const Halves halves = __builtin_convertvector((Bits)x >> 16, Halves);
#endif
  std::memcpy(to, &halves, sizeof halves);
}

template <class Number>
inline Floats load_part(const Number* from, int64_t count) {  // zeros behind the first `count` numbers
  if (count >= kLanes) return load_floats(from);
  Number part[kLanes] = {};
  std::memcpy(part, from, count * sizeof(Number));
  return load_floats(part);
}

template <class Number>
inline void store_part(Number* to, Floats x, int64_t count) {
  if (count >= kLanes) return store(to, x);
  Number part[kLanes];
  store(part, x);
  std::memcpy(to, part, count * sizeof(Number));
}

inline float sum_of(const Floats& vector) {  // added in halves
  Floats4 parts[kLanes / 4];
  std::memcpy(parts, &vector, sizeof parts);
  for (int half = kLanes / 8; half; half /= 2)
    for (int i = 0; i < half; i++) parts[i] += parts[i + half];
  return (parts[0][0] + parts[0][2]) + (parts[0][1] + parts[0][3]);
}

constexpr float kRound = 12582912.f;  // adding and subtracting 1.5 * 2^23 rounds to a whole number
constexpr float kLeast = -87.f;  // weights below e^kLeast are 0

// e^x for x <= 0, with a relative error below 3e-7.
inline Floats exp_of(Floats x) {
  const Floats from = x < kLeast ? all(kLeast) : x;
  const Floats n = fused(from, all(1.44269504f), all(kRound)) - kRound;
  const Floats f = fused(n, all(-1.42860677e-6f), fused(n, all(-0.693145752f), from));  // ln 2 in two parts
  Floats series = all(1 / 720.f);
  for (const float term : {1 / 120.f, 1 / 24.f, 1 / 6.f, 1 / 2.f, 1.f, 1.f}) series = fused(f, series, all(term));
  const Floats power = series * (Floats)((__builtin_convertvector(n, Ints) + 127) << 23);
  return x < kLeast ? Floats{} : power;
}

inline Floats sigmoid(Floats x) {
  const Floats power = exp_of(x < 0 ? x : -x);
  return (x < 0 ? power : all(1.f)) / (1.f + power);
}

// ---- Threads ----

// Threads of one parallel region that wait for one another.
class Team {
 public:
  explicit Team(int most) : size_(most) {}
  int size() const { return size_; }
  void begin() { size_ = omp_get_num_threads(); }  // by one thread

  void wait() {
    if (size_ == 1) return;
    const uint32_t turn = turn_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
      turn_.notify_all();
      return;
    }
    for (int spins = 0; spins < kSpins; spins++) {
      if (turn_.load(std::memory_order_acquire) != turn) return;
      pause();
    }
    turn_.wait(turn, std::memory_order_acquire);  // a busy machine needs the core to run the others
  }

 private:
  static constexpr int kSpins = 1 << 12;
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  int size_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> turn_{0};
};

struct Range {
  int64_t begin, end;
};

inline Range share(int64_t count, int thread, int threads) { return {count * thread / threads, count * (thread + 1) / threads}; }

// ---- Products ----
//
// y = x W^T + b for few rows of x. Most of the time is spent reading W, stored in panels of 32 outputs: [panels, units, 32].
// A unit is one float32, or two adjacent bfloat16 values of one output's row. Weights in 4 bits are described below.

enum Kind : int32_t {
  kFloat = 0,
  kBFloat16 = 1,
  kExactPairs = 2,  // float32 weights that bfloat16 represents
  kFourBits = 3
};

constexpr int kChunk = 64;  // units that stay in the cache between two blocks of rows
constexpr int kAhead = 1024;  // units between a read and its prefetch

#ifdef __AVX512BF16__
using Input = BFloat16;  // of products of a bfloat16 model
#else
using Input = float;
#endif

template <class Number>
using InputOf = std::conditional_t<std::is_same_v<Number, float>, float, Input>;

struct FloatWeights {
  using X = float;
  static constexpr int kInputs = 1;
  static inline void add(Floats& sum, const uint32_t* weights, const X* x) { sum = fused(load<Floats>(weights), all(*x), sum); }
};

struct PairWeights {  // bfloat16 weights, float32 inputs
  using X = float;
  static constexpr int kInputs = 2;
  static inline void add(Floats& sum, const uint32_t* weights, const X* x) {
    const Bits pairs = load<Bits>(weights);
    sum = fused((Floats)(pairs << 16), all(x[0]), sum);
    sum = fused((Floats)(pairs & 0xffff0000u), all(x[1]), sum);
  }
};

#ifdef __AVX512BF16__
struct DotWeights {  // bfloat16 weights and inputs
  using X = BFloat16;
  static constexpr int kInputs = 2;
  static inline void add(Floats& sum, const uint32_t* weights, const X* x) {
    uint32_t pair;
    std::memcpy(&pair, x, 4);
    sum = (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)load<__m512i>(weights), (__m512bh)_mm512_set1_epi32(pair));
  }
};
#else
using DotWeights = PairWeights;
#endif

// Adds the products of four adjacent unsigned values of each output's row and four inputs. Without VNNI, two products must not
// exceed 16 bits.
inline void add_quads(Ints& sum, Bits weights, const int8_t* x) {
  uint32_t quad;
  std::memcpy(&quad, x, 4);
#if defined(__AVX512VNNI__)
  sum = (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights, _mm512_set1_epi32(quad));
#elif defined(__AVX512BW__)
  const __m512i pairs = _mm512_maddubs_epi16((__m512i)weights, _mm512_set1_epi32(quad));
  sum += (Ints)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i pairs = _mm256_maddubs_epi16((__m256i)weights, _mm256_set1_epi32(quad));
  sum += (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#endif
}

// Adds the products of `count` units for M rows and P panels. x: rows `stride` apart; panels `units` apart.
template <class W, int M, int P>
inline void add_products(const typename W::X* x, int64_t stride, const uint32_t* weights, int64_t units, int64_t count, float* sums) {
  Floats partial[M][P][kVectors];
  std::memcpy(partial, sums, sizeof partial);
  for (int64_t k = 0; k < count; k++)
    for (int p = 0; p < P; p++)
      for (int v = 0; v < kVectors; v++) {
        const uint32_t* read = weights + (p * units + k) * kPanel + v * kLanes;
        if (M > 4) __builtin_prefetch(read + kAhead);  // fewer reads are in flight between so many products
        for (int m = 0; m < M; m++) W::add(partial[m][p][v], read, x + m * stride + k * W::kInputs);
      }
  std::memcpy(sums, partial, sizeof partial);
}

// The functions for 1 to kBlock rows and one panel, by the number of rows minus 1.
template <class W, int... M>
constexpr auto by_rows(std::integer_sequence<int, M...>) {
  return std::array<decltype(&add_products<W, 1, 1>), sizeof...(M)>{add_products<W, M + 1, 1>...};
}

// The sums [rows, kPanel] of any number of rows with one panel. Of many rows, blocks read the same chunk one after the other.
template <class W>
void multiply_rows(const typename W::X* x, int64_t rows, int64_t stride, const uint32_t* weights, int64_t units, float* sums) {
  static constexpr auto kByRows = by_rows<W>(std::make_integer_sequence<int, kBlock>());
  std::fill(sums, sums + rows * kPanel, 0.f);
  const int64_t chunk = rows > kBlock ? kChunk : units;
  for (int64_t k = 0; k < units; k += chunk)
    for (int64_t m = 0; m < rows; m += kBlock)
      kByRows[std::min<int64_t>(kBlock, rows - m) - 1](x + m * stride + k * W::kInputs, stride, weights + k * kPanel, units,
                                                       std::min(chunk, units - k), sums + m * kPanel);
}

constexpr int kTwoPartRows = kBlock / 2;  // rows, whose inputs have two parts

// The sums of both parts, of 7 bits and a sign, of M rows of inputs with a panel of 8-bit values. x: [M rows `stride` apart, 2,
// 4 quads].
template <int M>
void add_panel(const int8_t* x, int64_t stride, const uint32_t* weights, int64_t quads, Ints (*sums)[2][kVectors]) {
  Ints partial[M][2][kVectors] = {};
  for (int64_t k = 0; k < quads; k++)
    for (int v = 0; v < kVectors; v++) {
      const uint32_t* read = weights + k * kPanel + v * kLanes;
      __builtin_prefetch(read + kAhead);
      for (int m = 0; m < M; m++)
        for (int part = 0; part < 2; part++) add_quads(partial[m][part][v], load<Bits>(read), x + m * stride + 4 * (part * quads + k));
    }
  std::memcpy(sums, partial, sizeof partial);
}

// ---- Products with weights in 4 bits ----
//
// A unit of such a panel is a group of 32 inputs: four vectors of kPanel words, then the scale of each output in bfloat16. Byte
// j of word u is weight 4 u + j of the group in the low half and weight 16 + 4 u + j in the high half: scale * (half - 8).
// Inputs are rounded to 8 bits for each group, so that the sums of a group are exact, and a row has the same bits in any batch.

constexpr int kGroup = 32, kParts = kGroup / kLanes, kWords = kGroup / 8, kUnit = (kWords * 2 + 1) * kPanel / 2;

// The numbers of a group of which `count` are left; the others are 0.
template <class Number>
inline void load_group(const Number* from, int64_t count, Floats* parts) {
  for (int v = 0; v < kParts; v++) {
    const int64_t left = count - v * kLanes;
    parts[v] = left > 0 ? load_part(from + v * kLanes, left) : Floats{};
  }
}

// The largest magnitude of a group; NaN if there is one, because its bits are larger than those of all other numbers.
inline float largest(const Floats* parts) {
  int32_t bits[kGroup], most = 0;
  std::memcpy(bits, parts, sizeof bits);
  for (const int32_t number : bits) most = std::max(most, number & 0x7fffffff);
  return std::bit_cast<float>(most);
}

struct Group {  // of inputs: step * values
  int8_t values[kGroup];
  float step;      // not finite if a number of the group is not
  int32_t offset;  // what the 8 that is added to each weight takes from a sum
};

// The groups [rows, groups] of inputs, whose rows are `stride` apart and have at most `stride` numbers.
template <class X>
std::vector<Group> in_groups(const X* x, int64_t rows, int64_t stride, int64_t groups) {
  constexpr float kTiny = 1e-30f;  // smaller inputs are 0, because 1 / step has to be finite
  std::vector<Group> result(rows * groups);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t g = 0; g < groups; g++) {
      Group& group = result[r * groups + g];
      Floats parts[kParts];
      load_group(x + r * stride + g * kGroup, stride - g * kGroup, parts);
      group.step = std::max(largest(parts), kTiny) / 127;
      for (Floats& part : parts) part = fused(part, all(1 / group.step), all(kRound));  // the last bits are the value
      int32_t bits[kGroup], sum = 0;
      std::memcpy(bits, parts, sizeof bits);
      for (int i = 0; i < kGroup; i++) sum += group.values[i] = int8_t(bits[i]);
      group.offset = -8 * sum;
    }
  return result;
}

// The sums of M rows of groups with a panel.
template <int M>
void add_groups(const Group* x, const uint32_t* weights, int64_t groups, float* sums) {
  Floats partial[M][kVectors] = {};
  for (int64_t g = 0; g < groups; g++, weights += kUnit) {
    Ints totals[M][kVectors];
    for (int m = 0; m < M; m++)
      for (Ints& total : totals[m]) total = Ints{} + x[m * groups + g].offset;
    for (int u = 0; u < kWords; u++)
      for (int v = 0; v < kVectors; v++) {
        const uint32_t* read = weights + u * kPanel + v * kLanes;
        __builtin_prefetch(read + kAhead);
        const Bits both = load<Bits>(read);
        for (int m = 0; m < M; m++) {
          const int8_t* values = x[m * groups + g].values + 4 * u;
          add_quads(totals[m][v], both & 0x0f0f0f0fu, values);
          add_quads(totals[m][v], both >> 4 & 0x0f0f0f0fu, values + kGroup / 2);
        }
      }
    const BFloat16* scales = reinterpret_cast<const BFloat16*>(weights + kWords * kPanel);
    for (int v = 0; v < kVectors; v++) {
      const Floats scale = load_floats(scales + v * kLanes);
      for (int m = 0; m < M; m++)
        partial[m][v] = fused(__builtin_convertvector(totals[m][v], Floats), scale * x[m * groups + g].step, partial[m][v]);
    }
  }
  std::memcpy(sums, partial, sizeof partial);
}

// The sums [rows, kPanel] of any number of rows of groups with a panel.
void multiply_groups(const Group* x, int64_t rows, const uint32_t* weights, int64_t groups, float* sums) {
  static constexpr decltype(&add_groups<1>) kByRows[] = {add_groups<1>, add_groups<2>, add_groups<3>, add_groups<4>};
  for (int64_t m = 0; m < rows; m += kTwoPartRows)
    kByRows[std::min<int64_t>(kTwoPartRows, rows - m) - 1](x + m * groups, weights, groups, sums + m * kPanel);
}

// Weights divided by their scale and rounded to values from -8 to 7.
inline Floats four_bits(Floats weights) {
  const Floats whole = weights + kRound - kRound;
  return whole < -8 ? all(-8) : whole > 7 ? all(7) : whole;
}

// The scale of a group with the least squared error, of 13 from 0.8 to 1.1 of the one that makes the largest weight -8. It is 0
// if all weights are (nearly) 0, and NaN if one is not finite.
float scale_of(const Floats* parts) {
  const float most = largest(parts);
  bool is_positive = false;
  for (int v = 0; v < kParts; v++) is_positive |= any(parts[v] == most);
  const float peak = is_positive ? most : -most;
  float scale = 0 * peak, least = std::numeric_limits<float>::infinity();
  for (int i = 32; i <= 44; i++) {
    const float tried = rounded<BFloat16>(all(peak / -8 * (i / 40.f)))[0];
    Floats errors = {};
    for (int v = 0; v < kParts; v++) {
      const Floats exact = parts[v] * (1 / tried), error = exact - four_bits(exact);
      errors = fused(error, error, errors);
    }
    const float share = tried / peak, error = sum_of(errors) * share * share;  // in units of the peak, which may be huge
    if (error < least) least = error, scale = tried;
  }
  return scale;
}

// Packs weights [outputs, inputs] into panels in 4 bits.
template <class Number>
void pack(const Number* weights, uint32_t* packed, int64_t outputs, int64_t inputs, int threads) {
  const int64_t groups = (inputs + kGroup - 1) / kGroup, panels = (outputs + kPanel - 1) / kPanel;
  std::fill(packed, packed + panels * groups * kUnit, 0);
#pragma omp parallel for num_threads(threads)
  for (int64_t p = 0; p < panels; p++)
    for (int64_t g = 0; g < groups; g++) {
      uint32_t* unit = packed + (p * groups + g) * kUnit;
      for (int64_t o = 0; o < std::min<int64_t>(kPanel, outputs - p * kPanel); o++) {
        Floats parts[kParts];
        load_group(weights + (p * kPanel + o) * inputs + g * kGroup, inputs - g * kGroup, parts);
        const float scale = scale_of(parts);
        const uint16_t upper = std::bit_cast<uint32_t>(scale) >> 16;
        std::memcpy(reinterpret_cast<uint16_t*>(unit + kWords * kPanel) + o, &upper, sizeof upper);
        for (Floats& part : parts) part = four_bits(part * (1 / scale)) + (kRound + 8);  // the last bits are the value
        uint32_t bits[kGroup];
        std::memcpy(bits, parts, sizeof bits);
        for (int i = 0; i < kGroup; i++) unit[i % 16 / 4 * kPanel + o] |= (bits[i] & 15u) << (i % 4 * 8 + i / 16 * 4);
      }
    }
}

// ---- Linear layers ----

struct Linear {
  const uint32_t* weights;  // [panels, units, kPanel], in 4 bits [panels, units, kUnit], or null
  const void* bias;         // [outputs] in the model's type, or null
  int64_t outputs, units;
  int32_t kind;
  int64_t panels() const { return (outputs + kPanel - 1) / kPanel; }
};

// Calls `each(row, n, sums)` for the sums of outputs n to n + kLanes, for all of `panels`, with the bias added and rounded to
// the type of the model. A single row is multiplied with two panels at once. `room` is memory for the sums.
template <class Number, class Each>
void multiply(const Linear& linear, const InputOf<Number>* x, int64_t rows, int64_t stride, Range panels, std::vector<float>& room,
              Each&& each) {
  room.resize(std::max<int64_t>(2, rows) * kPanel);
  float* sums = room.data();
  const Number* bias = static_cast<const Number*>(linear.bias);
  const bool in_four_bits = linear.kind == kFourBits;
  std::vector<Group> groups;
  if (in_four_bits) groups = in_groups(x, rows, stride, linear.units);
  for (int64_t p = panels.begin, count; p < panels.end; p += count) {
    const uint32_t* weights = linear.weights + p * linear.units * (in_four_bits ? kUnit : kPanel);
    count = rows == 1 && p + 2 <= panels.end && !in_four_bits ? 2 : 1;
    const auto run = [&](auto kind) {
      using W = decltype(kind);
      if constexpr (std::is_same_v<typename W::X, InputOf<Number>>) {
        if (count == 2) {
          std::fill(sums, sums + 2 * kPanel, 0.f);
          add_products<W, 1, 2>(x, stride, weights, linear.units, linear.units, sums);
        } else {
          multiply_rows<W>(x, rows, stride, weights, linear.units, sums);
        }
      }
    };
    if (in_four_bits) {
      multiply_groups(groups.data(), rows, weights, linear.units, sums);
    } else if constexpr (std::is_same_v<Number, float>) {
      if (linear.kind == kFloat) run(FloatWeights{}); else run(PairWeights{});
    } else {
      run(DotWeights{});
    }
    for (int64_t r = 0; r < rows; r++)
      for (int64_t v = 0; v < count * kVectors; v++) {
        const int64_t n = p * kPanel + v * kLanes;
        if (n >= linear.outputs) break;
        Floats sum = load<Floats>(sums + r * kPanel + v * kLanes);
        if (bias) sum += load_part(bias + n, linear.outputs - n);
        each(r, n, rounded<Number>(sum));
      }
  }
}

// ---- Attention ----

constexpr int kQueries = 4;  // that read the keys and values of their head once

template <class Number>
struct Rows {  // of one head: [length, width]
  const Number* data;
  int64_t width;
};

// The values of positions begin to end times their weights, summed, for M queries and V vectors of a head from `values.data` on,
// which has `count` numbers left. weights: [M, padded]; out: [M, wide].
template <class Number, int M, int V>
void weigh(Rows<Number> values, const float* weights, int64_t padded, int64_t begin, int64_t end, float* out, int64_t wide,
           int64_t count) {
  Floats sums[M][V] = {};
  for (int64_t i = begin; i < end; i++)
    for (int v = 0; v < V; v++) {
      const Floats value = load_part(values.data + i * values.width + v * kLanes, count - v * kLanes);
      for (int m = 0; m < M; m++) sums[m][v] = fused(value, all(weights[m * padded + i]), sums[m][v]);
    }
  for (int m = 0; m < M; m++) std::memcpy(out + m * wide, sums[m], sizeof sums[m]);
}

// Turns the scores of positions begin to end into weights. `row` has room for kLanes more.
void softmax(float* row, int64_t begin, int64_t end) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  std::fill(row + end, row + end + kLanes, kNever);
  Floats most = load<Floats>(row + begin);
  for (int64_t i = begin + kLanes; i < end; i += kLanes) {
    const Floats scored = load<Floats>(row + i);
    most = scored > most ? scored : most;
  }
  float largest = most[0];
  for (int i = 1; i < kLanes; i++) largest = std::max(largest, most[i]);
  Floats total = {};
  for (int64_t i = begin; i < end; i += kLanes) {
    const Floats power = exp_of(load<Floats>(row + i) - largest);
    store(row + i, power);
    total += power;
  }
  const Floats share = all(1 / sum_of(total));
  for (int64_t i = begin; i < end; i += kLanes) store(row + i, load<Floats>(row + i) * share);
}

struct Seen {  // the positions that a query attends to
  int64_t begin, end;
};

// query: [M, wide], scaled; scores: [M, padded]; out: [M, wide]. The bits of a query do not depend on M.
template <class Number, int M>
void attend(const float* query, Rows<Number> keys, Rows<Number> values, const Seen* seen, int64_t wide, int64_t padded,
            float* scores, float* out) {
  Seen any = seen[0];
  for (int m = 1; m < M; m++) any = {std::min(any.begin, seen[m].begin), std::max(any.end, seen[m].end)};
  for (int64_t i = any.begin; i < any.end; i++) {
    const Number* key = keys.data + i * keys.width;
    Floats sums[M] = {};
    for (int64_t d = 0; d < keys.width; d += kLanes) {
      const Floats part = load_part(key + d, keys.width - d);
      for (int m = 0; m < M; m++) sums[m] = fused(part, load<Floats>(query + m * wide + d), sums[m]);
    }
    for (int m = 0; m < M; m++) scores[m * padded + i] = sum_of(sums[m]);
  }
  for (int m = 0; m < M; m++) {
    float* row = scores + m * padded;
    softmax(row, seen[m].begin, seen[m].end);
    std::fill(row + any.begin, row + seen[m].begin, 0.f);
    std::fill(row + seen[m].end, row + any.end, 0.f);
  }
  constexpr int kWide = 4;
  int64_t d = 0;
  for (; d + kWide * kLanes <= values.width; d += kWide * kLanes)
    weigh<Number, M, kWide>({values.data + d, values.width}, scores, padded, any.begin, any.end, out + d, wide, values.width - d);
  for (; d < values.width; d += kLanes)
    weigh<Number, M, 1>({values.data + d, values.width}, scores, padded, any.begin, any.end, out + d, wide, values.width - d);
}

// ---- The step ----

struct Norm {
  const void* weight;  // or null
  float eps;
};

struct Layer {
  Norm attention_norm, mlp_norm, query_norm, key_norm;
  Linear query, key, value, out, gate, up, down;
  Linear before, after;  // patches
  const void *cos, *sin;  // [positions, head_dim], or null without rotary positions
  void *keys, *values;    // [batch, key-value heads, capacity, head_dim]
  int64_t head_dim, window;  // window: the latest positions that a token attends to
  float scale;
};

struct Model {
  int64_t hidden, vocab;
  const void* embedding;  // [vocab, hidden]
  Norm norm;
  Linear head;
  const uint32_t* byte_head;  // the head in 8 bits, q = scale * (bits - 128): [panels, quads, kPanel]; or null
  const float *byte_scales, *error_bounds, *norm_bounds;  // of each row, [panels * kPanel]: of |w - q| and |q|
  int64_t quads;
  const void* head_rows;  // the head as it is: [vocab, hidden]
};

// Greedy choices: the most likely token of each row. Tokens in `banned` are never chosen.
struct ChosenTokens {
  int64_t* tokens;  // [rows]; -1 if no logit is finite
  const int64_t* banned;
  int64_t num_banned;
  std::atomic<int64_t>* exact_rows;  // counts the rows of the head that are computed exactly; or null
};

struct Batch {
  int64_t size, count;        // sequences, and new tokens of each
  int64_t length, capacity;   // positions before these tokens, and of the buffers
  const int32_t* padding;     // [size]: positions of each sequence that are padding
};

inline int64_t up_to(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// RMS norm of one row.
template <class Number, class Out>
void normalize(const float* x, const Norm& norm, int64_t width, Out* out) {
  Floats squares = {};
  for (int64_t i = 0; i < width; i += kLanes) {
    const Floats part = load_part(x + i, width - i);
    squares = fused(part, part, squares);
  }
  const Floats scale = all(1.f / std::sqrt(sum_of(squares) / width + norm.eps));
  const Number* weight = static_cast<const Number*>(norm.weight);
  for (int64_t i = 0; i < width; i += kLanes) {
    const Floats part = rounded<Number>(load_part(x + i, width - i) * scale);
    store_part(out + i, rounded<Number>(load_part(weight + i, width - i) * part), width - i);
  }
}

// Rotates a head in place, by halves.
template <class Number>
void rotate(float* x, const Number* cos, const Number* sin, int64_t width) {
  const int64_t half = width / 2;
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t count = half - i;
    const Floats a = load_part(x + i, count), b = load_part(x + half + i, count);
    const auto sum = [](Floats left, Floats right) { return rounded<Number>(rounded<Number>(left) + rounded<Number>(right)); };
    store_part(x + i, sum(a * load_part(cos + i, count), -b * load_part(sin + i, count)), count);
    store_part(x + half + i, sum(b * load_part(cos + half + i, count), a * load_part(sin + half + i, count)), count);
  }
}

template <class Number>
class Step {
 public:
  using X = InputOf<Number>;

  Step(const Model& model, const Layer* layers, int64_t num_layers, const Batch& batch, int threads)
      : model_(model), layers_(layers), num_layers_(num_layers), batch_(batch), rows_(batch.size * batch.count),
        width_(up_to(model.hidden, kPanel)), team_(threads) {
    for (int64_t l = 0; l < num_layers; l++) {
      heads_ = std::max(heads_, up_to(layers[l].query.outputs, kPanel));
      inner_ = std::max(inner_, up_to(layers[l].gate.outputs, kPanel));
    }
    hidden_.resize(rows_ * width_);
    other_.resize(rows_ * width_);
    query_.resize(rows_ * heads_);
    attended_.resize(rows_ * heads_);
    gated_.resize(rows_ * inner_);
  }

  void run(const int64_t* tokens, Number* states, float* logits, const ChosenTokens* chosen);

 private:
  struct Own {  // of a thread
    int thread;
    std::vector<X> normed;
    std::vector<float> sums, scaled, scores, weighed;
  };

  // Writes the embeddings of tokens, or without tokens the states, to hidden_: each thread its share of the rows.
  void enter(const int64_t* tokens, const Number* states, Own& own) {
    const Range rows = share(rows_, own.thread, team_.size());
    for (int64_t r = rows.begin; r < rows.end; r++) {
      const Number* from = tokens ? static_cast<const Number*>(model_.embedding) + tokens[r] * model_.hidden : states + r * model_.hidden;
      for (int64_t i = 0; i < model_.hidden; i += kLanes)
        store_part(hidden_.data() + r * width_ + i, load_part(from + i, model_.hidden - i), model_.hidden - i);
    }
  }

  const X* normed(const Norm& norm, Own& own) {  // by every thread, which costs less than to wait
    own.normed.resize(rows_ * width_);
    for (int64_t r = 0; r < rows_; r++) normalize<Number>(hidden_.data() + r * width_, norm, model_.hidden, own.normed.data() + r * width_);
    return own.normed.data();
  }

  void layer(const Layer& layer, Own& own) {
    if (layer.before.weights) patch(layer.before, own);
    project(layer, own);
    team_.wait();
    attention(layer, own);
    team_.wait();
    add_to_hidden(layer.out, attended_.data(), heads_, own);
    team_.wait();
    gate(layer, own);
    team_.wait();
    add_to_hidden(layer.down, gated_.data(), inner_, own);
    team_.wait();
    if (layer.after.weights) patch(layer.after, own);
  }

  // Adds the product of the hidden states to them, in other_, because every thread reads all of hidden_.
  void patch(const Linear& linear, Own& own) {
    own.normed.resize(rows_ * width_);
    for (int64_t i = 0; i < rows_ * width_; i += kLanes) store(own.normed.data() + i, load<Floats>(hidden_.data() + i));
    multiply<Number>(linear, own.normed.data(), rows_, width_, share(linear.panels(), own.thread, team_.size()), own.sums,
                     [&](int64_t r, int64_t n, Floats sum) {
                       store(other_.data() + r * width_ + n, rounded<Number>(load<Floats>(hidden_.data() + r * width_ + n) + sum));
                     });
    team_.wait();
    if (own.thread == 0) hidden_.swap(other_);
    team_.wait();
  }

  // Writes queries, keys and values. A thread multiplies whole heads, so that it can rotate them.
  void project(const Layer& layer, Own& own) {
    const X* x = normed(layer.attention_norm, own);
    const int64_t part = std::lcm(layer.head_dim, int64_t{kPanel});  // outputs
    const auto parts = [&](const Linear& linear) { return (linear.outputs + part - 1) / part; };
    const int64_t queries = parts(layer.query), keys = parts(layer.key), values = parts(layer.value);
    const Range range = share(queries + keys + values, own.thread, team_.size());
    // Multiplies this thread's parts of a layer, whose `count` parts come after `before` parts of other layers, and calls
    // finish(row, head, numbers) for each of their heads.
    const auto work = [&](const Linear& linear, int64_t before, int64_t count, auto&& finish) {
      const int64_t begin = std::max(range.begin - before, int64_t{0}), end = std::min(range.end - before, count);
      if (begin >= end) return;
      const Range outputs{begin * part, std::min(end * part, linear.outputs)};
      own.scaled.resize(rows_ * up_to(linear.outputs, kPanel));
      const int64_t stride = up_to(linear.outputs, kPanel);
      multiply<Number>(linear, x, rows_, width_, {outputs.begin / kPanel, up_to(outputs.end, kPanel) / kPanel}, own.sums,
                       [&](int64_t r, int64_t n, Floats sum) { store(own.scaled.data() + r * stride + n, sum); });
      for (int64_t r = 0; r < rows_; r++)
        for (int64_t h = outputs.begin / layer.head_dim; h * layer.head_dim < outputs.end; h++)
          finish(r, h, own.scaled.data() + r * stride + h * layer.head_dim);
    };
    const auto place = [&](const Norm& norm, int64_t r, float* head) {
      if (norm.weight) normalize<Number>(head, norm, layer.head_dim, head);
      if (!layer.cos) return;
      const int64_t at = std::max<int64_t>(0, position(r) - batch_.padding[r / batch_.count]) * layer.head_dim;
      rotate(head, static_cast<const Number*>(layer.cos) + at, static_cast<const Number*>(layer.sin) + at, layer.head_dim);
    };
    const auto append = [&](void* buffer, const Linear& linear, int64_t r, int64_t h, const float* head) {
      const int64_t heads = linear.outputs / layer.head_dim, b = r / batch_.count;
      Number* to = static_cast<Number*>(buffer) + ((b * heads + h) * batch_.capacity + position(r)) * layer.head_dim;
      for (int64_t d = 0; d < layer.head_dim; d += kLanes)
        store_part(to + d, load_part(head + d, layer.head_dim - d), layer.head_dim - d);
    };
    work(layer.query, 0, queries, [&](int64_t r, int64_t h, float* head) {
      place(layer.query_norm, r, head);
      float* to = query_.data() + r * heads_ + h * layer.head_dim;
      for (int64_t d = 0; d < layer.head_dim; d++) to[d] = head[d] * layer.scale;
    });
    work(layer.key, queries, keys, [&](int64_t r, int64_t h, float* head) {
      place(layer.key_norm, r, head);
      append(layer.keys, layer.key, r, h, head);
    });
    work(layer.value, queries + keys, values, [&](int64_t r, int64_t h, float* head) { append(layer.values, layer.value, r, h, head); });
  }

  int64_t position(int64_t row) const { return batch_.length + row % batch_.count; }

  // Queries are ordered by sequence and key-value head, so that up to kQueries neighbours read the same keys and values once.
  void attention(const Layer& layer, Own& own) {
    static constexpr decltype(&attend<Number, 1>) kByQueries[kQueries] = {
        attend<Number, 1>, attend<Number, 2>, attend<Number, 3>, attend<Number, 4>};
    const int64_t width = layer.head_dim, heads = layer.query.outputs / width, shared = layer.key.outputs / width;
    const int64_t per_head = heads / shared, per_group = per_head * batch_.count;  // queries of a key-value head
    const int64_t padded = batch_.length + batch_.count + kLanes, wide = up_to(width, kLanes);
    own.scaled.assign(kQueries * wide, 0.f);
    own.scores.resize(kQueries * padded);
    own.weighed.resize(kQueries * wide);
    const Range range = share(rows_ * heads, own.thread, team_.size());
    for (int64_t first = range.begin, count; first < range.end; first += count) {
      const int64_t group = first / per_group, b = group / shared, head = group % shared;
      count = std::min({int64_t{kQueries}, range.end - first, (group + 1) * per_group - first});
      Seen seen[kQueries];
      const auto place = [&](int64_t m) {  // row and head of a query; the queries of a token are neighbours
        const int64_t in_group = (first + m) % per_group;
        return std::pair{b * batch_.count + in_group / per_head, head * per_head + in_group % per_head};
      };
      for (int64_t m = 0; m < count; m++) {
        const auto [r, h] = place(m);
        std::memcpy(own.scaled.data() + m * wide, query_.data() + r * heads_ + h * width, width * sizeof(float));
        const int64_t end = position(r) + 1;
        seen[m] = {std::max<int64_t>(std::min<int64_t>(batch_.padding[b], end - 1), end - layer.window), end};  // padding sees itself
      }
      const auto rows = [&](const void* buffer) {
        return Rows<Number>{static_cast<const Number*>(buffer) + (b * shared + head) * batch_.capacity * width, width};
      };
      kByQueries[count - 1](own.scaled.data(), rows(layer.keys), rows(layer.values), seen, wide, padded, own.scores.data(), own.weighed.data());
      for (int64_t m = 0; m < count; m++) {
        const auto [r, h] = place(m);
        for (int64_t d = 0; d < width; d += kLanes)
          store_part(attended_.data() + r * heads_ + h * width + d, rounded<Number>(load<Floats>(own.weighed.data() + m * wide + d)), width - d);
      }
    }
  }

  // Writes silu(gate) * up of this thread's outputs.
  void gate(const Layer& layer, Own& own) {
    const X* x = normed(layer.mlp_norm, own);
    const Range panels = share(layer.gate.panels(), own.thread, team_.size());
    own.scaled.resize(rows_ * inner_);
    multiply<Number>(layer.gate, x, rows_, width_, panels, own.sums, [&](int64_t r, int64_t n, Floats sum) {
      store(own.scaled.data() + r * inner_ + n, rounded<Number>(sum * sigmoid(sum)));
    });
    multiply<Number>(layer.up, x, rows_, width_, panels, own.sums, [&](int64_t r, int64_t n, Floats sum) {
      store(gated_.data() + r * inner_ + n, rounded<Number>(load<Floats>(own.scaled.data() + r * inner_ + n) * sum));
    });
  }

  void add_to_hidden(const Linear& linear, const X* x, int64_t stride, Own& own) {
    multiply<Number>(linear, x, rows_, stride, share(linear.panels(), own.thread, team_.size()), own.sums,
                     [&](int64_t r, int64_t n, Floats sum) {
                       float* to = hidden_.data() + r * width_ + n;
                       store(to, rounded<Number>(load<Floats>(to) + sum));
                     });
  }

  // The best token so far in each lane.
  struct Best {
    Floats logit = all(-std::numeric_limits<float>::infinity());
    Ints token = Ints{} - 1;

    void take(Floats logits, Ints tokens) {
      const auto better = logits > logit;  // the first of equal logits stays
      logit = better ? logits : logit;
      token = better ? tokens : token;
    }
  };

  // Removes what cannot be chosen from the values of outputs n to n + kLanes.
  Floats possible(Floats values, int64_t n, const ChosenTokens& chosen) const {
    const auto drop = [&](int64_t lane) {
      if (lane >= 0 && lane < kLanes) values[lane] = -std::numeric_limits<float>::infinity();
    };
    for (int64_t i = 0; i < chosen.num_banned; i++) drop(chosen.banned[i] - n);
    for (int64_t lane = model_.vocab - n; lane < kLanes; lane++) drop(lane);
    return values;
  }

  // Computes the logits of panels of the head as the model does, and updates the best tokens of each row.
  void take(const X* x, int64_t rows, Range panels, const ChosenTokens& chosen, Best* best, Own& own) {
    multiply<Number>(model_.head, x, rows, width_, panels, own.sums, [&](int64_t r, int64_t n, Floats sum) {
      Ints tokens;
      for (int lane = 0; lane < kLanes; lane++) tokens[lane] = int32_t(n) + lane;
      best[r].take(possible(sum, n, chosen), tokens);
    });
  }

  // The most likely tokens, from all rows of the head or from those whose bounds allow it.
  void choose(const ChosenTokens& chosen, Own& own) {
    const X* x = normed(model_.norm, own);
    const Range panels = share(model_.head.panels(), own.thread, team_.size());
    Best* best = best_.data() + own.thread * rows_;
    if (model_.byte_head) choose_by_bounds(x, panels, chosen, best, own); else take(x, rows_, panels, chosen, best, own);
    team_.wait();
    const Range rows = share(rows_, own.thread, team_.size());
    for (int64_t r = rows.begin; r < rows.end; r++) {
      float most = -std::numeric_limits<float>::infinity();
      int64_t token = -1;
      for (int t = 0; t < team_.size(); t++)
        for (int lane = 0; lane < kLanes; lane++) {
          const Best& found = best_[t * rows_ + r];
          const bool wins = found.logit[lane] > most || (found.logit[lane] == most && found.token[lane] < token);
          if (found.token[lane] >= 0 && wins) most = found.logit[lane], token = found.token[lane];
        }
      chosen.tokens[r] = std::isfinite(most) ? token : -1;
    }
  }

  // |w.h - q.h'| <= |w - q| |h| + |q| |h - h'|, with the rounding of the sums: only rows whose upper bound reaches the
  // largest lower bound can have the largest logit. Products with these rows, whose only error is that of their sums,
  // leave fewer of them, and only their panels are computed as in the whole head.
  void choose_by_bounds(const X* x, Range panels, const ChosenTokens& chosen, Best* best, Own& own) {
    constexpr float kMost = 8191, kPart = 128;  // of a state: 14 bits, in two parts
    const int64_t wide = model_.quads * 4, outputs = model_.head.panels() * kPanel;
    const float of_sum = (model_.hidden + 64) * 0x1p-23f;  // the largest error of a sum, as a share of |w| |h|
    std::vector<int8_t> states(rows_ * 2 * wide);
    std::vector<float> step(rows_), sum(rows_), length(rows_), off(rows_);
    for (int64_t r = 0; r < rows_; r++) {
      float most = 0;
      const auto value = [&](int64_t i) { return load_part(x + r * width_ + i, 1)[0]; };
      for (int64_t i = 0; i < model_.hidden; i++) most = std::max(most, std::abs(value(i)));
      step[r] = most > 0 && std::isfinite(most) ? most / kMost : 1;
      double squares = 0, errors = 0, total = 0;
      for (int64_t i = 0; i < model_.hidden; i++) {
        const float state = value(i), whole = std::nearbyint(std::clamp(state / step[r], -kMost, kMost));
        int8_t* high = states.data() + r * 2 * wide + i;
        *high = int8_t(std::nearbyint(whole / kPart));
        high[wide] = int8_t(whole - kPart * *high);
        total += whole;
        squares += double(state) * state;
        errors += (double(state) - double(whole) * step[r]) * (double(state) - double(whole) * step[r]);
      }
      sum[r] = float(128 * total);
      length[r] = float(std::sqrt(squares)) * 1.0001f;
      off[r] = float(std::sqrt(errors)) * 1.0001f + length[r] * of_sum;
    }
    // An estimate of the logits of a vector of outputs, and the bound of its error.
    const auto bound = [&](int64_t r, int64_t n) {
      return load<Floats>(model_.error_bounds + n) * length[r] + load<Floats>(model_.norm_bounds + n) * off[r];
    };
    std::vector<Floats> lower(rows_, all(-std::numeric_limits<float>::infinity()));
    static constexpr decltype(&add_panel<1>) kByRows[] = {add_panel<1>, add_panel<2>, add_panel<3>, add_panel<4>};
    Ints sums[kTwoPartRows][2][kVectors];
    for (int64_t p = panels.begin; p < panels.end; p++)
      for (int64_t first = 0, count; first < rows_; first += count) {
        count = std::min<int64_t>(kTwoPartRows, rows_ - first);
        kByRows[count - 1](states.data() + first * 2 * wide, 2 * wide, model_.byte_head + p * model_.quads * kPanel, model_.quads, sums);
        for (int64_t r = first; r < first + count; r++)
          for (int v = 0; v < kVectors; v++) {
            const int64_t n = p * kPanel + v * kLanes;
            const auto [highs, lows] = std::pair{sums[r - first][0][v], sums[r - first][1][v]};
            const Floats product = __builtin_convertvector(highs, Floats) * kPart + __builtin_convertvector(lows, Floats) - sum[r];
            const Floats estimate = possible(product * load<Floats>(model_.byte_scales + n) * step[r], n, chosen);
            store(estimates_.data() + r * outputs + n, estimate);
            const Floats least = estimate - bound(r, n);
            lower[r] = least > lower[r] ? least : lower[r];
          }
      }
    for (int64_t r = 0; r < rows_; r++) {
      float most = lower[r][0];
      for (int lane = 1; lane < kLanes; lane++) most = std::max(most, lower[r][lane]);
      lower_[own.thread * rows_ + r] = most;
    }
    team_.wait();
    std::vector<Near> near;
    for (int64_t r = 0; r < rows_; r++) {
      float most = lower_[r];
      for (int t = 1; t < team_.size(); t++) most = std::max(most, lower_[t * rows_ + r]);
      // Logits that the model's type rounds to the same number tie.
      const float least = most - (std::is_same_v<Number, float> ? 0 : std::abs(most) * 0x1p-7f);
      const float slack = 2 * of_sum * length[r];  // of both sums, as a share of |w|
      float reached = -std::numeric_limits<float>::infinity();
      near.clear();
      for (int64_t n = panels.begin * kPanel; n < panels.end * kPanel; n += kLanes) {
        const Ints reaches = load<Floats>(estimates_.data() + r * outputs + n) + bound(r, n) >= least;
        if (!any(reaches)) continue;
        for (int lane = 0; lane < kLanes; lane++) {
          if (!reaches[lane]) continue;
          const float logit = product(x + r * width_, n + lane);
          const float error = slack * (model_.norm_bounds[n + lane] + model_.error_bounds[n + lane]);
          const Floats ends = rounded<Number>(Floats{logit - error, logit + error});
          if (ends[0] > reached) reached = ends[0];
          near.push_back({n + lane, ends[1]});
        }
      }
      if (chosen.exact_rows) chosen.exact_rows->fetch_add(near.size());
      int64_t taken = -1;
      for (const Near& row : near)
        if (!(row.upper < reached) && row.index / kPanel != taken) {
          taken = row.index / kPanel;
          take(x + r * width_, 1, {taken, taken + 1}, chosen, best + r, own);
        }
    }
  }

  struct Near {  // a row of the head that may have the largest logit
    int64_t index;
    float upper;
  };

  // The logit of one row of the head, added in another order than in the whole head.
  float product(const X* x, int64_t row) const {
    const Number* weights = static_cast<const Number*>(model_.head_rows) + row * model_.hidden;
    Floats sums[2] = {};
    for (int64_t i = 0; i < model_.hidden; i += kLanes) {
      Floats& sum = sums[i / kLanes % 2];
      sum = fused(load_part(weights + i, model_.hidden - i), load_part(x + i, model_.hidden - i), sum);
    }
    return sum_of(sums[0] + sums[1]);
  }

  const Model& model_;
  const Layer* layers_;
  const int64_t num_layers_;
  const Batch& batch_;
  const int64_t rows_, width_;
  int64_t heads_ = 0, inner_ = 0;
  Team team_;
  std::vector<float> hidden_, other_, query_;
  std::vector<X> attended_, gated_;
  std::vector<float> estimates_, lower_;  // by the head in 8 bits, [rows, outputs] and [threads, rows]
  std::vector<Best> best_;                // [threads, rows]
};

template <class Number>
void Step<Number>::run(const int64_t* tokens, Number* states, float* logits, const ChosenTokens* chosen) {
  if (chosen) {
    best_.resize(team_.size() * rows_);
    lower_.resize(team_.size() * rows_);
    if (model_.byte_head) estimates_.resize(rows_ * model_.head.panels() * kPanel);
  }
#pragma omp parallel num_threads(team_.size())
  {
#pragma omp single
    team_.begin();
    Own own{omp_get_thread_num()};
    enter(tokens, states, own);
    team_.wait();
    for (int64_t l = 0; l < num_layers_; l++) layer(layers_[l], own);
    const Range rows = states ? share(rows_, own.thread, team_.size()) : Range{0, 0};
    for (int64_t r = rows.begin; r < rows.end; r++)
      for (int64_t i = 0; i < model_.hidden; i += kLanes)
        store_part(states + r * model_.hidden + i, load<Floats>(hidden_.data() + r * width_ + i), model_.hidden - i);
    if (logits) {
      const X* x = normed(model_.norm, own);
      multiply<Number>(model_.head, x, rows_, width_, share(model_.head.panels(), own.thread, team_.size()), own.sums,
                       [&](int64_t r, int64_t n, Floats sum) { store_part(logits + r * model_.vocab + n, sum, model_.vocab - n); });
    }
    if (chosen) choose(*chosen, own);
  }
}

// The product of a single linear layer.
template <class Number>
void product(const Linear& linear, const Number* x, Number* out, int64_t rows, int64_t inputs, int threads) {
  std::vector<InputOf<Number>> converted;
  const InputOf<Number>* from;
  if constexpr (std::is_same_v<Number, InputOf<Number>>) {
    from = x;
  } else {
    converted.resize(rows * inputs);
    for (int64_t i = 0; i < rows * inputs; i += kLanes)
      store_part(converted.data() + i, load_part(x + i, rows * inputs - i), rows * inputs - i);
    from = converted.data();
  }
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> sums;
    multiply<Number>(linear, from, rows, inputs, share(linear.panels(), omp_get_thread_num(), omp_get_num_threads()), sums,
                     [&](int64_t r, int64_t n, Floats sum) { store_part(out + r * linear.outputs + n, sum, linear.outputs - n); });
  }
}

}  // namespace

extern "C" {

// True if products with values of 4 and 8 bits are implemented for this processor.
bool ulskip_has_byte_products() {
#if defined(__AVX512BW__) || (defined(__AVX2__) && !defined(__AVX512F__))
  return true;
#else
  return false;
#endif
}

void ulskip_step(const Model* model, const Layer* layers, int64_t num_layers, const Batch* batch, const int64_t* tokens,
                 void* states, float* logits, const ChosenTokens* chosen, bool is_float, int32_t threads) {
  if (is_float)
    Step<float>(*model, layers, num_layers, *batch, threads).run(tokens, static_cast<float*>(states), logits, chosen);
  else
    Step<BFloat16>(*model, layers, num_layers, *batch, threads).run(tokens, static_cast<BFloat16*>(states), logits, chosen);
}

// Packs weights [outputs, inputs] in 4 bits: [panels, groups, kUnit].
void ulskip_pack(const void* weights, uint32_t* packed, int64_t outputs, int64_t inputs, bool is_float, int32_t threads) {
  if (is_float)
    pack(static_cast<const float*>(weights), packed, outputs, inputs, threads);
  else
    pack(static_cast<const BFloat16*>(weights), packed, outputs, inputs, threads);
}

// x: [rows, inputs]; out: [rows, outputs]
void ulskip_linear(const Linear* linear, const void* x, void* out, int64_t rows, int64_t inputs, bool is_float, int32_t threads) {
  if (is_float)
    product<float>(*linear, static_cast<const float*>(x), static_cast<float*>(out), rows, inputs, threads);
  else
    product<BFloat16>(*linear, static_cast<const BFloat16*>(x), static_cast<BFloat16*>(out), rows, inputs, threads);
}
}
