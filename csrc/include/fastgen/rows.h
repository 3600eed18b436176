// Rows of scores: their softmax, in one go or in parts, and the queries behind them when they are
// asked again from behind all keys.
#pragma once

#include "fastgen/dot_tile.h"

namespace fastgen {
namespace FASTGEN_ISA {

constexpr int kMostNear = 4 * kTile;  // scores among which the near ones of a few queries are

// Lanes of a vector that begins at token t whose tokens are seen.
FASTGEN_INLINE Ints seen_lanes(int t, int valid) { return lane_numbers() < Ints{} + (valid - t); }

// One row's softmax over [0, end), end a multiple of kTile, of which `valid` are seen: leaves
// exp(scale * score - maximum) in place, 0 where unseen, and returns 1 / their sum. What is unseen
// may be NaN.
FASTGEN_INLINE float softmax_row(float* scores, float scale, int valid, int end) {
  const int whole = valid / (2 * kLanes) * (2 * kLanes);
  Floats most = broadcast(kLowest), other = most;
  for (int t = 0; t < whole; t += 2 * kLanes) {
    most = maximum(most, load(scores + t) * scale);
    other = maximum(other, load(scores + t + kLanes) * scale);
  }
  most = maximum(most, other);
  for (int t = whole; t < end; t += kLanes) {
    most = maximum(most, seen_lanes(t, valid) ? load(scores + t) * scale : broadcast(kLowest));
  }
  const float row_most = reduce_max(most);
  Floats sum = {};
  for (int t = 0; t < end; t += kLanes) {
    Floats e = exp_nonpositive(load(scores + t) * scale - row_most);
    if (t >= whole) e = seen_lanes(t, valid) ? e : Floats{};
    save(scores + t, e);
    sum += e;
  }
  return 1.f / reduce_sum(sum);
}

// Scores of tokens that there are not.
FASTGEN_INLINE void no_scores(float* scores, int num_rows, int64_t stride, int count) {
  for (int row = 0; row < num_rows; ++row) {
    for (int i = 0; i < count; ++i) scores[row * stride + i] = kLowest;
  }
}

// to[0:kNear] = the scores of a row's near tokens
FASTGEN_INLINE void copy_near(const float* scores, float* to) {
  for (int i = 0; i < kNear; i += kLanes) save(to + i, load(scores + i));
}

// row[0:D] turned by its angles.
FASTGEN_INLINE void turn_row(const Turn& turn, float* row) {
  const float* cosines = turn.angles;
  const float* sines = turn.angles + turn.pairs;
  const auto turn_pair = [&](int i, float* first, float* second) {
    const float x = *first, y = *second;
    *first = x * cosines[i] - y * sines[i];
    *second = y * cosines[i] + x * sines[i];
  };
  int i = 0;
  for (; !turn.interleaved && i + kLanes <= turn.pairs; i += kLanes) {
    const Floats x = load(row + i), y = load(row + turn.pairs + i);
    const Floats c = load(cosines + i), s = load(sines + i);
    save(row + i, x * c - y * s);
    save(row + turn.pairs + i, y * c + x * s);
  }
  for (; !turn.interleaved && i < turn.pairs; ++i) turn_pair(i, row + i, row + turn.pairs + i);
  for (; i < turn.pairs; ++i) turn_pair(i, row + 2 * i, row + 2 * i + 1);
}

// The tile of K that begins at a token, a multiple of kTile.
template <typename T>
FASTGEN_INLINE const T* prompt_tile(const PromptQueries& a, int head, int token) {
  const int slots = a.pool.page_slots;
  const StreamPage page = head_page(a.pool, a.block_row, record_of(a, head), token / slots);
  return key_tile(reinterpret_cast<const T*>(page.data), token % slots, a.pool.head_size);
}

// rows[q * G + g, :] = the queries of a head, as they are and turned.
template <typename T, typename R>
FASTGEN_INLINE void load_queries(const PromptQueries& a, int head, int first, int count, R* rows,
                                 R* turned) {
  const int d = a.pool.head_size;
  float row[kMostHeadSize];
  for (int q = 0; q < count; ++q) {
    for (int g = 0; g < a.group_size; ++g) {
      const auto* query = reinterpret_cast<const typename Type<T>::Plain*>(a.query) +
                          (first + q) * a.query_token_stride +
                          (static_cast<int64_t>(head) * a.group_size + g) * a.query_head_stride;
      const int64_t at = (static_cast<int64_t>(q) * a.group_size + g) * d;
      copy_elements(query, d, rows + at);
      copy_elements(query, d, row);
      turn_row(a.turn, row);
      for (int i = 0; i < d; i += kLanes) save(turned + at + i, load(row + i));
    }
  }
}

}  // namespace FASTGEN_ISA
}  // namespace fastgen
