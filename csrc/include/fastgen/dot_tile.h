// Scores of a few query rows against kTile tokens of a column-major K.
//
// One call reads D rows of kTile elements of K once per four query rows: a load of K serves all
// of them. While it computes it prefetches the tile at `ahead`, because hops from page to page
// defeat the hardware's own prefetcher. Each score is one chain of D multiply-adds in the order of
// D, however many rows share the call, so a row's scores do not depend on its neighbours.
#pragma once

#include "fastgen/vector.h"

namespace fastgen {
namespace FASTGEN_ISA {

template <int kRows, typename T>
FASTGEN_INLINE void dot_rows(const float* rows, int64_t head_size, const T* k, int64_t k_stride,
                             const T* ahead, float* scores, int64_t score_stride) {
  for (int t = 0; t < kTile; t += 2 * kLanes) {
    Floats sum[kRows][2] = {};
    for (int64_t d = 0; d < head_size; ++d) {
      const T* column = k + d * k_stride + t;
      for (int byte = 0; byte < static_cast<int>(2 * kLanes * sizeof(T)); byte += 64) {
        prefetch(reinterpret_cast<const char*>(ahead + d * k_stride + t) + byte);
      }
      const Floats k0 = load(column);
      const Floats k1 = load(column + kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        sum[r][0] += rows[r * head_size + d] * k0;
        sum[r][1] += rows[r * head_size + d] * k1;
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      save(scores + r * score_stride + t, sum[r][0]);
      save(scores + r * score_stride + t + kLanes, sum[r][1]);
    }
  }
}

// scores[r, 0:kTile] = rows[r, :] . K[:, 0:kTile] for r < num_rows
template <typename T>
static void dot_tile(const float* rows, int num_rows, int64_t head_size, const T* k,
                     int64_t k_stride, const T* ahead, float* scores, int64_t score_stride) {
  int r = 0;
  for (; r + 4 <= num_rows; r += 4) {
    dot_rows<4>(rows + r * head_size, head_size, k, k_stride, ahead, scores + r * score_stride,
                score_stride);
  }
  const float* rest = rows + r * head_size;
  float* to = scores + r * score_stride;
  if (num_rows - r == 3) dot_rows<3>(rest, head_size, k, k_stride, ahead, to, score_stride);
  if (num_rows - r == 2) dot_rows<2>(rest, head_size, k, k_stride, ahead, to, score_stride);
  if (num_rows - r == 1) dot_rows<1>(rest, head_size, k, k_stride, ahead, to, score_stride);
}

// rows[g, :] = scale * query[g, :] for the G query heads of one head
template <typename T>
FASTGEN_INLINE void load_rows(const T* query, int64_t head_stride, int group_size, int head_size,
                              float scale, float* rows) {
  for (int g = 0; g < group_size; ++g) {
    for (int d = 0; d < head_size; d += kLanes) {
      save(rows + g * head_size + d, load(query + g * head_stride + d) * scale);
    }
  }
}

}  // namespace FASTGEN_ISA
}  // namespace fastgen
