// Compaction: kept tokens move from a prompt's stock pages into the page stream of fresh blocks.
//
// item = (layer * H + head, page of that head): fills up to S slots of one page and their positions
// and values; sole writer of the page. Blocks that are read are never written: where old and new
// rows overlap, the caller reads from a copy. Bytes: 2 * D elements read and written per token.
// Neighbouring tokens share the cache lines of their K columns, so a tile of kTile slots walks the
// columns in step.
#pragma once

#include "fastgen/vector.h"

namespace fastgen {
namespace FASTGEN_ISA {

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
    bool run = n == kTile;
    for (int i = 0; i < n; ++i) {
      const int in_page = kept[i] % slots;
      const Element* from = reinterpret_cast<const Element*>(
          stock_page(a.source, layer, a.old_row[kept[i] / slots], head));
      from_k[i] = from + in_page;
      run = run && from_k[i] == from_k[0] + i;
      __builtin_memcpy(to_v + static_cast<int64_t>(slot + i) * d,
                       from + static_cast<int64_t>(slots) * d + static_cast<int64_t>(in_page) * d,
                       d * sizeof(Element));
      a.positions[to.meta_slot + slot + i] = kept[i];
      a.values[to.meta_slot + slot + i] = a.kept_value[first + slot + i];
    }
    for (int row = 0; row < d; ++row) {
      const int64_t column = static_cast<int64_t>(row) * slots;
      Element* to_row = to_k + column + slot;
      if (run) {
        __builtin_memcpy(to_row, from_k[0] + column, kTile * sizeof(Element));
      } else {
        for (int i = 0; i < n; ++i) to_row[i] = from_k[i][column];
      }
    }
  }
}

static void compact(const CompactArgs& a, int layer_head, int page) {
  if (a.pool.element_size == 4) return compact_page<uint32_t>(a, layer_head, page);
  compact_page<uint16_t>(a, layer_head, page);
}

}  // namespace FASTGEN_ISA
}  // namespace fastgen
