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
// What was written has to be in memory when a tile is loaded; of that, g++ 12 knows nothing.
FASTGEN_INLINE void finish_stores(const void* p) { __asm__ volatile("" : : "r"(p) : "memory"); }

// A tile is 16 lines of 64 bytes: 32 columns of 16 rows, a square of a page in pairs, or their
// 16 x 16 products. Rows are taken 32 at a time: tiles 0 and 1 hold them, 2 and 3 a page, 4 to 7
// the products. A product is summed in the order of its terms, whatever its neighbours.
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
      const int count = num_rows_ - r < 2 * kRows ? num_rows_ - r : 2 * kRows;
      float* to = scores + r * score_stride;
      multiply(count, rows + static_cast<int64_t>(r) * head_size, head_size, head_size, k, ahead,
               to, score_stride);
      for (int i = 0; scale != 1.f && i < count; ++i, to += score_stride) {
        for (int t = 0; t < kTile; t += kLanes) save(to + t, load(to + t) * scale);
      }
    }
  }

  // sum[r, :] += p[r, 0:S] . V[0:S, :], of a page that is full
  void weigh(const BFloat* p, int64_t p_stride, int slots, const PairedBFloat* v,
             const PairedBFloat* ahead, int head_size, float* sum) const {
    for (int r = 0; r < num_rows_; r += 2 * kRows) {
      const int count = num_rows_ - r < 2 * kRows ? num_rows_ - r : 2 * kRows;
      for (int d = 0; d < head_size; d += kWidth) {
        const int64_t from = pair_lane(d, slots);
        alignas(64) float products[2 * kRows][kWidth];
        multiply(count, p + r * p_stride, p_stride, slots, v + from, ahead + from, products[0],
                 kWidth);
        for (int i = 0; i < count; ++i) {
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
  static constexpr int kWidth = 32;      // elements of a row in a tile
  static constexpr int kLineBytes = 64;  // of a tile, and of a page

  // products[r, 0:kWidth] = rows[r, 0:depth] . page, for r < count <= 2 * kRows; the page has
  // `depth` elements in each of kWidth lanes.
  void multiply(int count, const BFloat* rows, int64_t row_stride, int depth,
                const PairedBFloat* page, const PairedBFloat* ahead, float* products,
                int64_t product_stride) const {
    configure(count);
    finish_stores(rows);
    if (count > kRows) {
      multiply_tiles<true>(rows, row_stride, depth, page, ahead, products, product_stride);
    } else {
      multiply_tiles<false>(rows, row_stride, depth, page, ahead, products, product_stride);
    }
  }

  template <bool kBoth>
  static void multiply_tiles(const BFloat* rows, int64_t row_stride, int depth,
                             const PairedBFloat* page, const PairedBFloat* ahead, float* products,
                             int64_t product_stride) {
    const int64_t second = pair_lane(kPairLanes, depth);
    const int64_t row_bytes = row_stride * sizeof(BFloat);
    const int64_t product_bytes = product_stride * sizeof(float);
    _tile_zero(4);
    _tile_zero(5);
    if (kBoth) {
      _tile_zero(6);
      _tile_zero(7);
    }
    for (int i = 0; i < depth; i += kWidth) {
      _tile_loadd(0, rows + i, row_bytes);
      _tile_loadd(2, page + i * kPairLanes, kLineBytes);
      prefetch_span<kWidth * kPairLanes>(ahead + i * kPairLanes);
      _tile_loadd(3, page + second + i * kPairLanes, kLineBytes);
      prefetch_span<kWidth * kPairLanes>(ahead + second + i * kPairLanes);
      _tile_dpbf16ps(4, 0, 2);
      _tile_dpbf16ps(5, 0, 3);
      if (kBoth) {
        _tile_loadd(1, rows + kRows * row_stride + i, row_bytes);
        _tile_dpbf16ps(6, 1, 2);
        _tile_dpbf16ps(7, 1, 3);
      }
    }
    _tile_stored(4, products, product_bytes);
    _tile_stored(5, products + kPairLanes, product_bytes);
    if (kBoth) {
      _tile_stored(6, products + kRows * product_stride, product_bytes);
      _tile_stored(7, products + kRows * product_stride + kPairLanes, product_bytes);
    }
  }

  // What the tiles hold of `count` rows and of their products; no two calls need to agree.
  void configure(int count) const {
    if (count == configured_) return;
    configured_ = count;
    struct {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t line_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t lines[16] = {};
    } config;
    static_assert(sizeof config == 64);
    const uint8_t low = static_cast<uint8_t>(count < kRows ? count : kRows);
    const uint8_t high = static_cast<uint8_t>(count > kRows ? count - kRows : kRows);
    const uint8_t lines[8] = {low, high, kRows, kRows, low, low, high, high};
    __builtin_memcpy(config.lines, lines, sizeof lines);
    finish_stores(&config);
    _tile_loadconfig(&config);
  }

  int num_rows_;
  mutable int configured_ = 0;
};
#endif

}  // namespace FASTGEN_ISA
}  // namespace fastgen
