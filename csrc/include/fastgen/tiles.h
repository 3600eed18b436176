// Scores of many query rows against kTile tokens of K: dot_tile, or AMX where K is in pairs.
#pragma once

#include "fastgen/dot_tile.h"

namespace fastgen {
namespace FASTGEN_ISA {

template <typename T>
class Tiles {
 public:
  explicit Tiles(int num_rows) : num_rows_(num_rows) {}

  // scores[r, 0:kTile] = scale * rows[r, :] . K[:, 0:kTile]
  template <typename R>
  void dot(const R* rows, int head_size, const T* k, int k_stride, const T* ahead, float scale,
           float* scores, int64_t score_stride) const {
    dot_tile(rows, num_rows_, head_size, k, k_stride, ahead, scale, scores, score_stride);
  }

 private:
  int num_rows_;
};

#if FASTGEN_AMX
// A tile is 16 lines of 64 bytes: 32 columns of 16 query rows, 16 pairs of columns of 16 tokens, or
// their 16 x 16 products. Rows are taken 32 at a time: tiles 0 and 1 hold them, 2 and 3 hold K, 4 to
// 7 the scores. A row's score is summed in the order of D, whatever its neighbours.
template <>
class Tiles<PairedBFloat> {
 public:
  explicit Tiles(int num_rows) : num_rows_(num_rows) {}
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
  ~Tiles() { _tile_release(); }

  void dot(const BFloat* rows, int head_size, const PairedBFloat* k, int, const PairedBFloat*,
           float scale, float* scores, int64_t score_stride) const {
    for (int r = 0; r < num_rows_; r += 2 * kRows) {
      const int left = num_rows_ - r;
      const BFloat* from = rows + static_cast<int64_t>(r) * head_size;
      float* to = scores + r * score_stride;
      configure(left < kRows ? left : kRows, left < 2 * kRows ? left - kRows : kRows);
      if (left > kRows) {
        dot_rows<true>(from, head_size, k, to, score_stride);
      } else {
        dot_rows<false>(from, head_size, k, to, score_stride);
      }
      for (int i = 0; i < left && i < 2 * kRows; ++i) {
        for (int t = 0; t < kTile; t += kLanes) {
          save(to + i * score_stride + t, load(to + i * score_stride + t) * scale);
        }
      }
    }
  }

 private:
  static constexpr int kRows = 16;
  static constexpr int kWidth = 32;  // columns of a tile

  // What the tiles of the rows and of their scores hold; no two calls need to agree.
  void configure(int first, int second) const {
    if (first == first_ && second == second_) return;
    first_ = first;
    second_ = second;
    struct {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {};
    } config;
    const uint8_t low = static_cast<uint8_t>(first);
    const uint8_t high = static_cast<uint8_t>(second > 0 ? second : kRows);
    const uint8_t rows[8] = {low, high, kRows, kRows, low, low, high, high};
    __builtin_memcpy(config.rows, rows, sizeof rows);
    static_assert(sizeof config == 64);
    _tile_loadconfig(&config);
  }

  template <bool kBoth>
  static void dot_rows(const BFloat* rows, int head_size, const PairedBFloat* k, float* scores,
                       int64_t score_stride) {
    const PairedBFloat* next = k + pair_lane(kPairLanes, head_size);
    const int64_t row_bytes = head_size * sizeof(BFloat), line_bytes = 2 * kPairLanes * sizeof *k;
    _tile_zero(4);
    _tile_zero(5);
    if (kBoth) {
      _tile_zero(6);
      _tile_zero(7);
    }
    for (int d = 0; d < head_size; d += kWidth) {
      _tile_loadd(0, rows + d, row_bytes);
      _tile_loadd(2, k + d * kPairLanes, line_bytes);
      _tile_loadd(3, next + d * kPairLanes, line_bytes);
      _tile_dpbf16ps(4, 0, 2);
      _tile_dpbf16ps(5, 0, 3);
      if (kBoth) {
        _tile_loadd(1, rows + kRows * head_size + d, row_bytes);
        _tile_dpbf16ps(6, 1, 2);
        _tile_dpbf16ps(7, 1, 3);
      }
    }
    const int64_t bytes = score_stride * sizeof(float);
    _tile_stored(4, scores, bytes);
    _tile_stored(5, scores + kPairLanes, bytes);
    if (kBoth) {
      _tile_stored(6, scores + kRows * score_stride, bytes);
      _tile_stored(7, scores + kRows * score_stride + kPairLanes, bytes);
    }
  }

  int num_rows_;
  mutable int first_ = 0, second_ = 0;
};
#endif

}  // namespace FASTGEN_ISA
}  // namespace fastgen
