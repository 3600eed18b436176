// Compaction: kept tokens move from the pages of a request into the page stream of fresh blocks.
//
// item = (layer * H + head, page of that head beyond its stock pages, which stay where they are):
// fills up to S slots of one page and their positions and values; sole writer of the page. Blocks
// that are read are never written: of those in both rows the caller saves copies, which are read
// instead. Bytes: 2 * D elements read and written per token. Neighbouring tokens share the cache
// lines of their K columns, so the slots of a line walk the columns in step. For AVX-512 a line is
// a vector, and a permutation puts all that is kept of it in place. In pages in pairs what walks is
// a pair of columns.
#pragma once

#include "fastgen/vector.h"

namespace fastgen {
namespace FASTGEN_ISA {

// Columns that move together: those of a line of the cache.
template <typename Element>
constexpr int kColumns = 64 / sizeof(Element);

#if FASTGEN_VECTOR_BYTES == 64
// moved, but lane i of `here` is lane place[i] of the line
FASTGEN_INLINE __m512i permute(__m512i moved, uint32_t here, const uint16_t* place,
                               const uint16_t* line) {
  return _mm512_mask_permutexvar_epi16(moved, here, _mm512_loadu_si512(place),
                                       _mm512_loadu_si512(line));
}
FASTGEN_INLINE __m512i permute(__m512i moved, uint32_t here, const uint32_t* place,
                               const uint32_t* line) {
  return _mm512_mask_permutexvar_epi32(moved, static_cast<__mmask16>(here),
                                       _mm512_loadu_si512(place), _mm512_loadu_si512(line));
}
FASTGEN_INLINE void save_first(int n, uint16_t* line, __m512i x) {
  _mm512_mask_storeu_epi16(line, ~0u >> (32 - n), x);
}
FASTGEN_INLINE void save_first(int n, uint32_t* line, __m512i x) {
  _mm512_mask_storeu_epi32(line, static_cast<__mmask16>(0xffffu >> (16 - n)), x);
}
#endif

// to[row, i] = column places[i] of its page's row for i < n <= kColumns; from[i] is its element of
// row 0. Rows are `stride` apart.
template <typename Element>
FASTGEN_INLINE void move_columns(const Element* const* from, const int32_t* places, int n,
                                 int stride, int num_rows, Element* to) {
#if FASTGEN_VECTOR_BYTES == 64
  struct Share {  // of one line of a page that is read
    const Element* line;
    uint32_t here;                     // bit i: to[row, i] comes from it
    Element place[kColumns<Element>];  // from this place
  };
  Share shares[kColumns<Element>];
  int num_shares = 0;
  for (int i = 0; i < n; ++i) {
    const int place = places[i] % kColumns<Element>;
    if (num_shares == 0 || shares[num_shares - 1].line != from[i] - place) {
      shares[num_shares++] = {from[i] - place, 0, {}};
    }
    shares[num_shares - 1].here |= 1u << i;
    shares[num_shares - 1].place[i] = static_cast<Element>(place);
  }
  for (int row = 0; row < num_rows; ++row) {
    const int64_t column = static_cast<int64_t>(row) * stride;
    __m512i moved = _mm512_setzero_si512();
    for (const Share* share = shares; share < shares + num_shares; ++share) {
      moved = permute(moved, share->here, share->place, share->line + column);
    }
    save_first(n, to + column, moved);
  }
#else
  bool run = n == kColumns<Element>;
  for (int i = 1; i < n; ++i) run &= from[i] - from[0] == i && places[i] - places[0] == i;
  for (int row = 0; row < num_rows; ++row) {
    const int64_t column = static_cast<int64_t>(row) * stride;
    if (run) {
      __builtin_memcpy(to + column, from[0] + column, kColumns<Element> * sizeof(Element));
    } else {
      for (int i = 0; i < n; ++i) to[column + i] = from[i][column];
    }
  }
#endif
}

// How a page is laid out, for the two halves of a move: `Unit` is what a column consists of, an
// unsigned integer, since nothing here looks at the numbers.
template <typename Element>
struct InColumns {
  typedef Element Unit;

  // The first unit of a slot's K; others lie `stride` apart.
  static const Unit* key(const Unit* page, int slot, int) { return page + slot; }
  static int stride(int slots) { return slots; }
  static int num_units(int head_size) { return head_size; }

  static const Unit* value(const Unit* page, int slot, int slots, int head_size) {
    return page + static_cast<int64_t>(slots + slot) * head_size;
  }
  static void prefetch_value(const Unit* page, int slot, int slots, int head_size) {
    const Unit* from = value(page, slot, slots, head_size);
    for (int j = 0; j < head_size; j += kTile) prefetch_span<kTile>(from + j);
  }
  // What is at `places` of the pages `from` comes into slots [slot, slot + n).
  static void move_values(const Unit* const* from, const int32_t* places, int n, Unit* to_page,
                          int slot, int slots, int head_size) {
    for (int i = 0; i < n; ++i) {
      __builtin_memcpy(const_cast<Unit*>(value(to_page, slot + i, slots, head_size)),
                       value(from[i], places[i], slots, head_size), head_size * sizeof(Unit));
    }
  }
};

struct InPairs {
  typedef uint32_t Unit;  // a pair

  static const Unit* key(const Unit* page, int slot, int head_size) {
    return page + pair_lane(slot, head_size) / 2;
  }
  static int stride(int) { return kPairLanes; }
  static int num_units(int head_size) { return head_size / 2; }

  // The pairs of a slot and its neighbour in the first columns; others lie kPairLanes * S / 2
  // apart.
  static const Unit* value(const Unit* page, int slot, int slots, int head_size) {
    return page + static_cast<int64_t>(slots) * head_size / 2 + slot / 2 * kPairLanes;
  }
  static void prefetch_value(const Unit* page, int slot, int slots, int head_size) {
    const Unit* from = value(page, slot, slots, head_size);
    for (int j = 0; j < head_size; j += kPairLanes) prefetch_span<kPairLanes>(from + j * slots / 2);
  }
  // As above; `slot` is even. The neighbour of an odd last token stays.
  static void move_values(const Unit* const* from, const int32_t* places, int n, Unit* to_page,
                          int slot, int slots, int head_size) {
    for (int i = 0; i < n; i += 2) {
      const bool alone = i + 1 == n;
      Unit* to = const_cast<Unit*>(value(to_page, slot + i, slots, head_size));
      const Unit* first = value(from[i], places[i], slots, head_size);
      const Unit* second = alone ? to : value(from[i + 1], places[i + 1], slots, head_size);
      const int shift = places[i] % 2 * 16, second_shift = alone ? 16 : places[i + 1] % 2 * 16;
      for (int64_t j = 0; j < static_cast<int64_t>(head_size) * slots / 2;
           j += kPairLanes * slots / 2) {
        Unit low[kPairLanes], high[kPairLanes];
        __builtin_memcpy(low, first + j, sizeof low);
        __builtin_memcpy(high, second + j, sizeof high);
        for (int lane = 0; lane < kPairLanes; ++lane) {
          low[lane] = (low[lane] >> shift & 0xffffu) | high[lane] >> second_shift << 16;
        }
        __builtin_memcpy(to + j, low, sizeof low);
      }
    }
  }
};

// The i-th page of a head of the old row.
FASTGEN_INLINE const char* old_page(const CompactArgs& a, const HeadRecord& head, int32_t i) {
  const int per_block = pages_per_block(a.pool);
  const int32_t page = stream_page_of(head, i, per_block);
  const int32_t entry = a.old_row.blocks[page / per_block], saved = entry - a.pool.num_blocks;
  return saved < 0 ? page_of_block(a.pool, entry, page % per_block)
                   : page_of_block(a.saved, saved, page % per_block);
}

template <typename Order>
static void compact_page(const CompactArgs& a, int layer_head, int page) {
  typedef typename Order::Unit Unit;
  constexpr int kMost = kColumns<Unit>;
  const int slots = a.pool.page_slots, d = a.pool.head_size;
  const HeadRecord& record = a.heads[layer_head];
  const StreamPage to = head_page(a.pool, a.new_row, record, record.stock_pages + page);
  Unit* to_page = reinterpret_cast<Unit*>(to.data);
  const int64_t first = a.kept_start[layer_head] + static_cast<int64_t>(page) * slots;
  const int64_t left = a.kept_start[layer_head + 1] - first;
  const int count = left < slots ? static_cast<int>(left) : slots;

  const Unit* old = nullptr;  // the old page that holds slots [old_begin, old_begin + S)
  int32_t old_begin = -slots;
  for (int slot = 0; slot < count; slot += kMost) {
    const int n = count - slot < kMost ? count - slot : kMost;
    const int32_t* kept = a.kept + first + slot;
    const Unit* from[kMost];
    const Unit* from_k[kMost];
    int32_t places[kMost];
    for (int i = 0; i < n; ++i) {
      if (static_cast<uint32_t>(kept[i] - old_begin) >= static_cast<uint32_t>(slots)) {
        const int32_t index = kept[i] / slots;
        old = reinterpret_cast<const Unit*>(old_page(a, a.old_heads[layer_head], index));
        old_begin = index * slots;
      }
      from[i] = old;
      places[i] = kept[i] - old_begin;
      from_k[i] = Order::key(old, places[i], d);
      Order::prefetch_value(old, places[i], slots, d);
    }
    move_columns(from_k, places, n, Order::stride(slots), Order::num_units(d),
                 const_cast<Unit*>(Order::key(to_page, slot, d)));
    Order::move_values(from, places, n, to_page, slot, slots, d);
    for (int i = 0; i < n; ++i) {
      a.positions[to.meta_slot + slot + i] = a.kept_position[first + slot + i];
      a.values[to.meta_slot + slot + i] = a.kept_value[first + slot + i];
    }
  }
}

static void compact(const CompactArgs& a, int layer_head, int page) {
  if (a.pool.in_pairs) return compact_page<InPairs>(a, layer_head, page);
  if (a.pool.element_size == 4) return compact_page<InColumns<uint32_t>>(a, layer_head, page);
  compact_page<InColumns<uint16_t>>(a, layer_head, page);
}

}  // namespace FASTGEN_ISA
}  // namespace fastgen
