// Products of rows with a page: by dot_tile and weigh_page, or by AMX where pages are in pairs.
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
// their 16 x 16 products. Rows are taken 32 at a time: tiles 0 and 1 hold them, 2 and 3 hold K, 4
// to 7 the scores. A row's score is summed in the order of D, whatever its neighbours.
template <>
class Tiles<PairedBFloat> {
 public:
  explicit Tiles(int num_rows) : num_rows_(num_rows) {}
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
  ~Tiles() { _tile_release(); }

  void dot(const BFloat* rows, int head_size, const PairedBFloat* k, int, const PairedBFloat* ahead,
           float scale, float* scores, int64_t score_stride) const {
    for (int r = 0; r < num_rows_; r += 2 * kRows) {
      const int left = num_rows_ - r;
      const BFloat* from = rows + static_cast<int64_t>(r) * head_size;
      float* to = scores + r * score_stride;
      configure(left);
      if (left > kRows) {
        dot_rows<true>(from, head_size, k, ahead, to, score_stride);
      } else {
        dot_rows<false>(from, head_size, k, ahead, to, score_stride);
      }
      for (int i = 0; i < left && i < 2 * kRows; ++i) {
        for (int t = 0; t < kTile; t += kLanes) {
          save(to + i * score_stride + t, load(to + i * score_stride + t) * scale);
        }
      }
    }
  }

  // sum[r, :] += p[r, 0:S] . V[0:S, :], of a page that is full
  void weigh(const BFloat* p, int64_t p_stride, int slots, const PairedBFloat* v,
             const PairedBFloat* ahead, int head_size, float* sum) const {
    for (int r = 0; r < num_rows_; r += 2 * kRows) {
      const int left = num_rows_ - r;
      configure(left);
      for (int d = 0; d < head_size; d += kWidth) {
        const int64_t from = pair_lane(d, slots);
        alignas(64) float products[2 * kRows][kWidth];
        if (left > kRows) {
          weigh_rows<true>(p + r * p_stride, p_stride, slots, v + from, ahead + from, products);
        } else {
          weigh_rows<false>(p + r * p_stride, p_stride, slots, v + from, ahead + from, products);
        }
        for (int i = 0; i < left && i < 2 * kRows; ++i) {
          float* to = sum + static_cast<int64_t>(r + i) * head_size + d;
          for (int j = 0; j < kWidth; j += kLanes) {
            save(to + j, load(to + j) + load(products[i] + j));
          }
        }
      }
    }
  }

 private:
  static constexpr int kRows = 16;
  static constexpr int kWidth = 32;      // columns of rows in a tile
  static constexpr int kLineBytes = 64;  // of a tile, and of a page

  // What the tiles hold of `left` rows and of their products; no two calls need to agree.
  void configure(int left) const {
    const int first = left < kRows ? left : kRows;
    const int second = left < 2 * kRows ? left - kRows : kRows;
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
  static void dot_rows(const BFloat* rows, int head_size, const PairedBFloat* k,
                       const PairedBFloat* ahead, float* scores, int64_t score_stride) {
    const int64_t second = pair_lane(kPairLanes, head_size);
    const int64_t row_bytes = head_size * sizeof(BFloat);
    _tile_zero(4);
    _tile_zero(5);
    if (kBoth) {
      _tile_zero(6);
      _tile_zero(7);
    }
    for (int d = 0; d < head_size; d += kWidth) {
      _tile_loadd(0, rows + d, row_bytes);
      _tile_loadd(2, k + d * kPairLanes, kLineBytes);
      prefetch_span<kWidth * kPairLanes>(ahead + d * kPairLanes);
      _tile_loadd(3, k + second + d * kPairLanes, kLineBytes);
      prefetch_span<kWidth * kPairLanes>(ahead + second + d * kPairLanes);
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

  template <bool kBoth>
  static void weigh_rows(const BFloat* p, int64_t p_stride, int slots, const PairedBFloat* v,
                         const PairedBFloat* ahead, float (*products)[kWidth]) {
    const int64_t second = pair_lane(kPairLanes, slots);
    const int64_t row_bytes = p_stride * sizeof(BFloat);
    _tile_zero(4);
    _tile_zero(5);
    if (kBoth) {
      _tile_zero(6);
      _tile_zero(7);
    }
    for (int t = 0; t < slots; t += kWidth) {
      _tile_loadd(0, p + t, row_bytes);
      _tile_loadd(2, v + t * kPairLanes, kLineBytes);
      prefetch_span<kWidth * kPairLanes>(ahead + t * kPairLanes);
      _tile_loadd(3, v + second + t * kPairLanes, kLineBytes);
      prefetch_span<kWidth * kPairLanes>(ahead + second + t * kPairLanes);
      _tile_dpbf16ps(4, 0, 2);
      _tile_dpbf16ps(5, 0, 3);
      if (kBoth) {
        _tile_loadd(1, p + kRows * p_stride + t, row_bytes);
        _tile_dpbf16ps(6, 1, 2);
        _tile_dpbf16ps(7, 1, 3);
      }
    }
    const int64_t bytes = sizeof products[0];
    _tile_stored(4, products[0], bytes);
    _tile_stored(5, products[0] + kPairLanes, bytes);
    if (kBoth) {
      _tile_stored(6, products[kRows], bytes);
      _tile_stored(7, products[kRows] + kPairLanes, bytes);
    }
  }

  int num_rows_;
  mutable int first_ = 0, second_ = 0;
};
#endif

}  // namespace FASTGEN_ISA
}  // namespace fastgen
