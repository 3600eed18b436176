// Scores of a few query rows against kTile tokens of K.
//
// One call reads D rows of kTile elements of K once per kRowBatch query rows: a load of K serves
// all of them. While it computes it prefetches the tile at `ahead`, because hops from page to page
// defeat the hardware's own prefetcher. Each score is the sum of chains of multiply-adds in the
// order of D, however many rows share the call, so a row's scores do not depend on its neighbours.
#pragma once

#include "fastgen/vector.h"

namespace fastgen {
namespace FASTGEN_ISA {

// Type of the factors that elements T of a page are multiplied with: query rows, probabilities.
template <typename T>
struct Factor {
  typedef float Element;
};
#if FASTGEN_BF16_DOT
template <>
struct Factor<BFloat> {
  typedef BFloat Element;
};
template <>
struct Factor<PairedBFloat> {
  typedef BFloat Element;
};
#endif
typedef Factor<PairedBFloat>::Element PairFactor;

// Rows that share a load: two accumulators each, and room for what they are multiplied with.
constexpr int kRowBatch = kMaxRegisters / 4;

// Columns of a chain: rounding errors grow with its length, and a few chains cost nothing.
constexpr int64_t kChain = 64;

template <int kCount>
struct Count {
  static constexpr int value = kCount;
};

template <int kCount, typename Body>
FASTGEN_INLINE void with_count(int count, const Body& body) {
  if (count == kCount) return body(Count<kCount>());
  if constexpr (kCount > 1) with_count<kCount - 1>(count, body);
}

// Runs body(first row, Count<n>) over all rows, at most kMost of them at a time.
template <int kMost, typename Body>
FASTGEN_INLINE void for_row_batches(int num_rows, const Body& body) {
  for (int r = 0; r < num_rows; r += kMost) {
    const int left = num_rows - r;
    with_count<kMost>(left < kMost ? left : kMost, [&](auto count) { body(r, count); });
  }
}

template <int kRows, typename T>
FASTGEN_INLINE void dot_rows(const float* rows, int64_t head_size, const T* k, int64_t k_stride,
                             const T* ahead, float scale, float* scores, int64_t score_stride) {
  for (int t = 0; t < kTile; t += 2 * kLanes) {
    for (int64_t first = 0; first < head_size; first += kChain) {
      const int64_t end = head_size - first < kChain ? head_size : first + kChain;
      const float factor = end == head_size ? scale : 1.f;
      Floats sum[kRows][2] = {};
      for (int64_t d = first; d < end; ++d) {
        prefetch_span<2 * kLanes>(ahead + d * k_stride + t);
        const Floats k0 = load(k + d * k_stride + t);
        const Floats k1 = load(k + d * k_stride + t + kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          sum[r][0] += rows[r * head_size + d] * k0;
          sum[r][1] += rows[r * head_size + d] * k1;
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        float* to = scores + r * score_stride + t;
        if (first > 0) {
          sum[r][0] += load(to);
          sum[r][1] += load(to + kLanes);
        }
        save(to, sum[r][0] * factor);
        save(to + kLanes, sum[r][1] * factor);
      }
    }
  }
}

#if FASTGEN_BF16_DOT
// Two columns at a time: their elements are paired token by token, and one instruction multiplies
// and adds both. The products are exact, as in float32.
template <int kRows>
FASTGEN_INLINE void dot_rows(const BFloat* rows, int64_t head_size, const BFloat* k,
                             int64_t k_stride, const BFloat* ahead, float scale, float* scores,
                             int64_t score_stride) {
  Floats sum[kRows][2] = {};
  for (int64_t d = 0; d < head_size; d += 2) {
    prefetch_span<2 * kLanes>(ahead + d * k_stride);
    prefetch_span<2 * kLanes>(ahead + (d + 1) * k_stride);
    const Paired pairs = pair_up(k + d * k_stride, k + (d + 1) * k_stride);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) add_products(pairs, rows + r * head_size + d, sum[r]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    put_in_order(sum[r]);
    save(scores + r * score_stride, sum[r][0] * scale);
    save(scores + r * score_stride + kLanes, sum[r][1] * scale);
  }
}
#endif

// A line of a page in pairs at a time: what the hardware multiplies lies side by side already.
template <int kRows>
FASTGEN_INLINE void dot_rows(const PairFactor* rows, int64_t head_size, const PairedBFloat* k,
                             int64_t, const PairedBFloat* ahead, float scale, float* scores,
                             int64_t score_stride) {
  for (int t = 0; t < kTile; t += 2 * kLanes) {
    const int64_t first = pair_lane(t, head_size), second = pair_lane(t + kLanes, head_size);
    Floats sum[kRows][2] = {};
    for (int64_t d = 0; d < head_size; d += 2) {
      const PairedBFloat* line = k + d * kPairLanes;
      prefetch_span<2 * kLanes>(ahead + d * kPairLanes + first);
      prefetch_span<2 * kLanes>(ahead + d * kPairLanes + second);
      const Pairs k0 = load_pairs(line + first), k1 = load_pairs(line + second);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        sum[r][0] = add_products(k0, rows + r * head_size + d, sum[r][0]);
        sum[r][1] = add_products(k1, rows + r * head_size + d, sum[r][1]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      save(scores + r * score_stride + t, sum[r][0] * scale);
      save(scores + r * score_stride + t + kLanes, sum[r][1] * scale);
    }
  }
}

// Where K of the tokens [slot, slot + kTile) of a page begins.
template <typename T>
FASTGEN_INLINE const T* key_tile(const T* page, int slot, int) {
  return page + slot;
}
FASTGEN_INLINE const PairedBFloat* key_tile(const PairedBFloat* page, int slot, int head_size) {
  return page + pair_lane(slot, head_size);
}

// scores[r, 0:kTile] = scale * rows[r, :] . K[:, 0:kTile] for r < num_rows
template <typename R, typename T>
static void dot_tile(const R* rows, int num_rows, int64_t head_size, const T* k, int64_t k_stride,
                     const T* ahead, float scale, float* scores, int64_t score_stride) {
  for_row_batches<kRowBatch>(num_rows, [&](int r, auto count) {
    dot_rows<decltype(count)::value>(rows + r * head_size, head_size, k, k_stride, ahead, scale,
                                     scores + r * score_stride, score_stride);
  });
}

// to[0:count] = from[0:count] as R; count is a multiple of kTile
template <typename T, typename R>
FASTGEN_INLINE void copy_elements(const T* from, int count, R* to) {
  if constexpr (sizeof(R) == sizeof(float)) {
    for (int i = 0; i < count; i += kLanes) save(to + i, load(from + i));
  } else {
    __builtin_memcpy(to, from, static_cast<size_t>(count) * sizeof(R));
  }
}

// rows[g, :] = query[g, :] for the G query heads of one head
template <typename T, typename R>
FASTGEN_INLINE void load_rows(const T* query, int64_t head_stride, int group_size, int head_size,
                              R* rows) {
  for (int g = 0; g < group_size; ++g) {
    copy_elements(query + g * head_stride, head_size, rows + static_cast<int64_t>(g) * head_size);
  }
}

}  // namespace FASTGEN_ISA
}  // namespace fastgen
