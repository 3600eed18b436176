// Vectors of float at the width of the instruction set being compiled, through GCC's vector types.
//
// Included only by the per-level files in csrc/cpu/isa_*.cpp, which define FASTGEN_ISA,
// FASTGEN_VECTOR_BYTES, FASTGEN_BF16_DOT (products of bfloat16 pairs) and FASTGEN_AMX (products of
// tiles of them): g++ before 13 expands macros before it sees a target pragma, so __AVX2__ and the
// like say nothing here. Every function is static: a weak symbol compiled for AVX-512 could be
// linked for all levels and crash an older processor.
#pragma once

#include <cstdint>

#include "fastgen/kernels.h"
#if defined(__x86_64__)
// g++ 12 calls the undefined vectors that its own intrinsics start from uninitialized.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#endif

#define FASTGEN_INLINE static inline __attribute__((always_inline))

namespace fastgen {
namespace FASTGEN_ISA {

constexpr int kVectorBytes = FASTGEN_VECTOR_BYTES;
constexpr int kMaxRegisters = kVectorBytes == 64 ? 32 : 16;
constexpr int kLanes = kVectorBytes / 4;

typedef float Floats __attribute__((vector_size(kVectorBytes)));
typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));
typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};
// A BFloat of a page in pairs; fastgen/pages.h draws where it lies.
struct PairedBFloat {
  uint16_t bits;
};

// Stands for minus infinity where inf - inf would give NaN.
constexpr float kLowest = -1e30f;

FASTGEN_INLINE Floats broadcast(float x) { return x - Floats{}; }

FASTGEN_INLINE Floats load(const float* p) {
  Floats x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}

FASTGEN_INLINE Ints load(const int32_t* p) {
  Ints x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}

// g++ 12 splits __builtin_convertvector of the wider types into halves.
FASTGEN_INLINE Bits load_bits(const uint16_t* p) {
#if FASTGEN_VECTOR_BYTES == 64
  return (Bits)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif FASTGEN_VECTOR_BYTES == 32
  return (Bits)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  uint16_t __attribute__((vector_size(kVectorBytes / 2))) x;
  __builtin_memcpy(&x, p, sizeof x);
  return __builtin_convertvector(x, Bits);
#endif
}

FASTGEN_INLINE Floats load(const BFloat* p) { return (Floats)(load_bits(&p->bits) << 16); }

FASTGEN_INLINE Floats load(const Half* p) {
#if FASTGEN_VECTOR_BYTES == 64
  return (Floats)_mm512_maskz_cvtph_ps(0xffff,
                                       _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif FASTGEN_VECTOR_BYTES == 32
  return (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  const Bits half = load_bits(&p->bits);
  const Bits exponent = half & 0x7c00u;
  const Bits magnitude = (half & 0x7fffu) << 13;
  const Bits normal = magnitude + (112u << 23);
  const Bits special = magnitude + (224u << 23);  // infinity and NaN
  const Bits shifted = magnitude + (113u << 23);
  const Floats subnormal = (Floats)shifted - 6.103515625e-05f;  // 2^-14
  const Bits finite = exponent == 0u ? (Bits)subnormal : normal;
  return (Floats)((exponent == 0x7c00u ? special : finite) | ((half & 0x8000u) << 16));
#endif
}

FASTGEN_INLINE void save(float* p, Floats x) { __builtin_memcpy(p, &x, sizeof x); }

FASTGEN_INLINE void narrow(float x, float* to) { *to = x; }

// Round to nearest, ties to even, in both.
FASTGEN_INLINE void narrow(float x, BFloat* to) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  to->bits = static_cast<uint16_t>(x != x ? 0x7fc0u : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
FASTGEN_INLINE void narrow(float x, Half* to) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  const uint32_t sign = (u >> 16) & 0x8000u;
  u &= 0x7fffffffu;
  // Adding 0.5 puts a subnormal half's last bit at the last bit of the float's mantissa.
  float magnitude;
  __builtin_memcpy(&magnitude, &u, 4);
  const float shifted = magnitude + 0.5f;
  uint32_t subnormal;
  __builtin_memcpy(&subnormal, &shifted, 4);
  const uint32_t normal = (u + 0xc8000fffu + ((u >> 13) & 1u)) >> 13;
  const uint32_t finite = u < 0x38800000u ? subnormal - 0x3f000000u : normal;
  const uint32_t special = u > 0x7f800000u ? 0x7e00u : 0x7c00u;
  to->bits = static_cast<uint16_t>(sign | (u >= 0x47800000u ? special : finite));
}

FASTGEN_INLINE Floats maximum(Floats a, Floats b) { return a > b ? a : b; }
FASTGEN_INLINE Floats minimum(Floats a, Floats b) { return a < b ? a : b; }

// 0, 1, ..., from memory that the compiler knows: written lane by lane it would be made at run
// time.
FASTGEN_INLINE Ints lane_numbers() {
  static constexpr int32_t kNumbers[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  static_assert(sizeof(Ints) <= sizeof(kNumbers), "more lanes than numbers");
  Ints lanes;
  __builtin_memcpy(&lanes, kNumbers, sizeof(lanes));
  return lanes;
}

// Joins all lanes: at each distance, lane i with lane i ^ distance.
template <int kDistance = kLanes / 2, typename Join>
FASTGEN_INLINE float reduce(Floats x, const Join& join) {
  join(x, __builtin_shuffle(x, lane_numbers() ^ kDistance));
  if constexpr (kDistance > 1) return reduce<kDistance / 2>(x, join);
  return x[0];
}
FASTGEN_INLINE float reduce_max(Floats x) {
  return reduce(x, [](Floats& a, const Floats& b) { a = maximum(a, b); });
}
FASTGEN_INLINE float reduce_sum(Floats x) {
  return reduce(x, [](Floats& a, const Floats& b) { a += b; });
}

// e^x for x <= 0, relative error about 1e-7; exactly 0 below the least normal result.
FASTGEN_INLINE Floats exp_nonpositive(Floats x) {
  const float kRound = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  const Floats shifted = x * 1.44269504f + kRound;
  const Floats n = shifted - kRound;
  const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.f);
  const Bits power = ((Bits)shifted + (127u - 0x4b400000u)) << 23;  // 2^n
  return x < -87.3f ? Floats{} : p * (Floats)power;
}
FASTGEN_INLINE float exp_nonpositive(float x) { return exp_nonpositive(broadcast(x))[0]; }

FASTGEN_INLINE Floats pool_init(Pooling pooling) {
  return broadcast(pooling == kMean ? 0.f : pooling == kMax ? -1.f : 2.f);
}
FASTGEN_INLINE Floats pool_add(Pooling pooling, Floats state, Floats probability) {
  if (pooling == kMean) return state + probability;
  return pooling == kMax ? maximum(state, probability) : minimum(state, probability);
}
FASTGEN_INLINE Floats pool_result(Pooling pooling, Floats state, int group_size) {
  return pooling == kMean ? state * (1.f / static_cast<float>(group_size)) : state;
}

// Into the second-level cache: it has more misses under way than the first, by a factor of two.
template <int kCount, typename T>
FASTGEN_INLINE void prefetch_span(const T* p) {
  for (int byte = 0; byte < static_cast<int>(kCount * sizeof(T)); byte += 64) {
    __builtin_prefetch(reinterpret_cast<const char*>(p) + byte, 0, 2);
  }
}

// The pairs of kLanes lanes, apart.
struct Halves {
  Floats first, second;
};
FASTGEN_INLINE Halves load_halves(const PairedBFloat* p) {
  Bits x;
  __builtin_memcpy(&x, p, sizeof x);
  return {(Floats)(x << 16), (Floats)(x & 0xffff0000u)};
}

#if FASTGEN_BF16_DOT
// Elements of two rows, paired: lane i of [0] and [1] holds the pair of places order(i) and
// order(i) + 4, where order counts 0-3, 8-11, 16-19, 24-27.
struct Paired {
  __m512i at[2];
};
FASTGEN_INLINE Paired pair_up(__m512i first, __m512i second) {
  return {{_mm512_unpacklo_epi16(first, second), _mm512_unpackhi_epi16(first, second)}};
}
FASTGEN_INLINE __m512i load_pairs(const BFloat* p) { return _mm512_loadu_si512(p); }
FASTGEN_INLINE Paired pair_up(const BFloat* first, const BFloat* second) {
  return pair_up(load_pairs(first), load_pairs(second));
}
// sum += first * factors[0] + second * factors[1], place by place
FASTGEN_INLINE void add_products(const Paired& pairs, const BFloat* factors, Floats sum[2]) {
  int32_t both;
  __builtin_memcpy(&both, factors, sizeof both);
  const __m512bh factor = (__m512bh)_mm512_set1_epi32(both);
  sum[0] = (Floats)_mm512_dpbf16_ps((__m512)sum[0], (__m512bh)pairs.at[0], factor);
  sum[1] = (Floats)_mm512_dpbf16_ps((__m512)sum[1], (__m512bh)pairs.at[1], factor);
}
// From the order of Paired to places 0-15 and 16-31.
FASTGEN_INLINE void put_in_order(Floats sum[2]) {
  const Ints low = {0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23};
  const Floats first = __builtin_shuffle(sum[0], sum[1], low);
  sum[1] = __builtin_shuffle(sum[0], sum[1], low + 8);
  sum[0] = first;
}
FASTGEN_INLINE void save(BFloat* p, Floats x) {
  const __m256bh narrowed = _mm512_cvtneps_pbh((__m512)x);
  __builtin_memcpy(p, &narrowed, sizeof narrowed);
}

// The pairs of kLanes lanes, as products take them.
typedef __m512i Pairs;
FASTGEN_INLINE Pairs load_pairs(const PairedBFloat* p) { return _mm512_loadu_si512(p); }
// Zero in place of the second of each pair, which may be NaN.
FASTGEN_INLINE Pairs first_only(Pairs x) { return _mm512_and_si512(x, _mm512_set1_epi32(0xffff)); }
// sum + first * factors[0] + second * factors[1], lane by lane
FASTGEN_INLINE Floats add_products(Pairs x, const BFloat* factors, Floats sum) {
  int32_t both;
  __builtin_memcpy(&both, factors, sizeof both);
  return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)_mm512_set1_epi32(both));
}
#else
typedef Halves Pairs;
FASTGEN_INLINE Pairs load_pairs(const PairedBFloat* p) { return load_halves(p); }
FASTGEN_INLINE Pairs first_only(Pairs x) { return {x.first, Floats{}}; }
FASTGEN_INLINE Floats add_products(Pairs x, const float* factors, Floats sum) {
  return sum + factors[0] * x.first + factors[1] * x.second;
}
#endif

// The elements of a page, and what they are outside of it.
template <typename T>
struct Type {
  typedef T Element;
  typedef T Plain;
};
template <>
struct Type<PairedBFloat> {
  typedef PairedBFloat Element;
  typedef BFloat Plain;
};

// Runs `body` with the Type<> of the elements of a pool's pages.
template <typename Body>
FASTGEN_INLINE void with_type(const PagePool& pool, const Body& body) {
  if (pool.dtype == kFloat32) return body(Type<float>());
  if (pool.dtype == kFloat16) return body(Type<Half>());
  if (pool.in_pairs) return body(Type<PairedBFloat>());
  return body(Type<BFloat>());
}

}  // namespace FASTGEN_ISA
}  // namespace fastgen
