#include <vector>

#include "cpu/contents.h"
#include "cpu/isa.h"
#include "cpu/work.h"
#include "launchers.h"

namespace fastgen::cpu {

void compact(const CompactArgs& a) {
  const int slots = a.pool.page_slots, num_heads = a.pool.num_heads;
  const int layer_heads = pages_per_block(a.pool);
  const Contents contents("compact", a.pool);
  require(a.kept_start[0] == 0 && a.kept_start[layer_heads] == a.num_kept,
          "compact: kept_start must run from 0 to the ", a.num_kept, " tokens of kept, got ",
          a.kept_start[0], " to ", a.kept_start[layer_heads]);
  const auto is_slot = [&](int i) { return static_cast<uint32_t>(a.kept[i]) < kMostSlots; };
  bool all = true;
  for (int i = 0; i < a.num_kept; ++i) all &= is_slot(i);
  for (int i = 0; !all; ++i) {
    require(is_slot(i), "compact: kept must have slots in [0, ", kMostSlots, "), got ", a.kept[i]);
  }
  contents.blocks("old_row", a.old_row, a.old_row.num_blocks,
                  a.pool.num_blocks + a.saved.num_blocks);

  struct Item {
    int layer_head;
    int page;
  };
  std::vector<Item> items;
  int64_t num_pages = 0;
  for (int i = 0; i < layer_heads; ++i) {
    const HeadRecord& head = a.heads[i];
    const Place place = {-1, i / num_heads, i % num_heads};
    contents.record(head, place);
    const int64_t count = a.kept_start[i + 1] - a.kept_start[i];
    const int64_t stock = static_cast<int64_t>(head.stock_pages) * slots;
    require(count >= 0 && stock + count == head.length, "compact: kept_start gives ", count,
            " tokens to ", place, ", its LENGTH is ", head.length, ", of which ", stock,
            " on stock pages");
    num_pages = std::max(num_pages, contents.slots(head, place, head.length, "new_row", a.new_row));
    for (int page = 0; page * slots < count; ++page) items.push_back({i, page});
  }
  contents.stream("new_row", a.new_row, num_pages);
  for (int i = 0; i < layer_heads; ++i) {
    const Place place = {-1, i / num_heads, i % num_heads, "old_heads"};
    contents.record(a.old_heads[i], place);
    int32_t end = 0;
    for (int64_t k = a.kept_start[i]; k < a.kept_start[i + 1]; ++k) {
      end = std::max(end, a.kept[k] + 1);
    }
    contents.slots(a.old_heads[i], place, end, "old_row", a.old_row);
  }

  const Kernels& kernel = kernels();
  for_each_item(static_cast<int64_t>(items.size()), [&](int64_t, int64_t item) {
    kernel.compact(a, items[item].layer_head, items[item].page);
  });
}

}  // namespace fastgen::cpu
