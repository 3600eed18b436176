// Compaction: kept tokens move from a prompt's stock pages into the page stream of fresh blocks.
//
// item = (layer * H + head, page of that head): fills up to S slots of one page and their positions
// and values; sole writer of the page. Blocks that are read are never written: where old and new
// rows overlap, the caller reads from a copy. Bytes: 2 * D elements read and written per token.
// Neighbouring tokens share the cache lines of their K columns, so a tile of kTile slots walks the
// columns in step. For 2-byte elements and AVX-512 a column of a tile is a vector, and a
// permutation puts all that is kept of it in place.
#pragma once

#include "fastgen/vector.h"

namespace fastgen {
namespace FASTGEN_ISA {

// to[row, i] = column kept[i] of the row for i < n <= kTile; from[i] is its element of row 0. Rows
// are `slots` apart.
template <typename Element>
FASTGEN_INLINE void move_columns(const Element* const* from, const int32_t* kept, int n, int slots,
                                 int num_rows, Element* to) {
  const bool run = n == kTile && kept[n - 1] - kept[0] == n - 1 && from[n - 1] - from[0] == n - 1;
  for (int row = 0; row < num_rows; ++row) {
    const int64_t column = static_cast<int64_t>(row) * slots;
    if (run) {
      __builtin_memcpy(to + column, from[0] + column, kTile * sizeof(Element));
    } else {
      for (int i = 0; i < n; ++i) to[column + i] = from[i][column];
    }
  }
}

#if FASTGEN_VECTOR_BYTES == 64
static_assert(kTile * sizeof(uint16_t) == kVectorBytes);

FASTGEN_INLINE void move_columns(const uint16_t* const* from, const int32_t* kept, int n, int slots,
                                 int num_rows, uint16_t* to) {
  struct Share {  // of one tile of a page that is read
    const uint16_t* tile;
    uint32_t here;          // bit i: to[row, i] comes from it
    uint16_t place[kTile];  // from this place
  };
  Share shares[kTile];
  int num_shares = 0;
  for (int i = 0; i < n; ++i) {
    const int place = kept[i] % kTile;
    if (num_shares == 0 || shares[num_shares - 1].tile != from[i] - place) {
      shares[num_shares++] = {from[i] - place, 0, {}};
    }
    shares[num_shares - 1].here |= 1u << i;
    shares[num_shares - 1].place[i] = static_cast<uint16_t>(place);
  }
  const __mmask32 all = ~0u >> (kTile - n);
  for (int row = 0; row < num_rows; ++row) {
    const int64_t column = static_cast<int64_t>(row) * slots;
    __m512i moved = _mm512_setzero_si512();
    for (const Share* share = shares; share < shares + num_shares; ++share) {
      moved = _mm512_mask_permutexvar_epi16(moved, share->here, _mm512_loadu_si512(share->place),
                                            _mm512_loadu_si512(share->tile + column));
    }
    _mm512_mask_storeu_epi16(to + column, all, moved);
  }
}
#endif

// Element is an unsigned integer of the cache's element size: nothing here looks at the numbers.
template <typename Element>
static void compact_page(const CompactArgs& a, int layer_head, int page) {
  const int slots = a.pool.page_slots, d = a.pool.head_size;
  const int layer = layer_head / a.pool.num_heads, head = layer_head % a.pool.num_heads;
  const StreamPage to = stream_page(a.pool, a.new_row, stream_page_of(a.heads[layer_head], page));
  Element* to_k = reinterpret_cast<Element*>(to.data);
  Element* to_v = to_k + static_cast<int64_t>(slots) * d;
  const int64_t first = a.kept_start[layer_head] + static_cast<int64_t>(page) * slots;
  const int64_t left = a.kept_start[layer_head + 1] - first;
  const int count = left < slots ? static_cast<int>(left) : slots;

  for (int slot = 0; slot < count; slot += kTile) {
    const int n = count - slot < kTile ? count - slot : kTile;
    const int32_t* kept = a.kept + first + slot;
    const Element* from_k[kTile];
    const Element* from_v[kTile];
    for (int i = 0; i < n; ++i) {
      const int in_page = kept[i] % slots;
      const Element* from = reinterpret_cast<const Element*>(
          stock_page(a.source, layer, a.old_row[kept[i] / slots], head));
      from_k[i] = from + in_page;
      from_v[i] = from + (static_cast<int64_t>(slots) + in_page) * d;
      for (int j = 0; j < d; j += kTile) prefetch_span<kTile>(from_v[i] + j);
    }
    move_columns(from_k, kept, n, slots, d, to_k + slot);
    for (int i = 0; i < n; ++i) {
      __builtin_memcpy(to_v + static_cast<int64_t>(slot + i) * d, from_v[i], d * sizeof(Element));
      a.positions[to.meta_slot + slot + i] = kept[i];
      a.values[to.meta_slot + slot + i] = a.kept_value[first + slot + i];
    }
  }
}

static void compact(const CompactArgs& a, int layer_head, int page) {
  if (a.pool.element_size == 4) return compact_page<uint32_t>(a, layer_head, page);
  compact_page<uint16_t>(a, layer_head, page);
}

}  // namespace FASTGEN_ISA
}  // namespace fastgen
