#include <vector>

#include "checks.h"
#include "cpu/isa.h"
#include "cpu/work.h"
#include "launchers.h"

namespace fastgen::cpu {

void compact(const CompactArgs& a) {
  const int64_t layer_heads = static_cast<int64_t>(a.pool.num_layers) * a.pool.num_heads;

  struct Item {
    int layer_head;
    int page;
  };
  std::vector<Item> items;
  require(a.kept_start[0] == 0 && a.kept_start[layer_heads] == a.num_kept,
          "compact: kept_start must run from 0 to the ", a.num_kept, " tokens of kept, got ",
          a.kept_start[0], " to ", a.kept_start[layer_heads]);
  for (int head = 0; head < layer_heads; ++head) {
    const int64_t count = a.kept_start[head + 1] - a.kept_start[head];
    require(count == a.heads[head].length, "compact: kept_start gives ", count,
            " tokens to head number ", head, " (layer * H + head), its LENGTH is ",
            a.heads[head].length);
    for (int page = 0; static_cast<int64_t>(page) * a.pool.page_slots < count; ++page) {
      items.push_back({head, page});
    }
  }

  const Kernels& kernel = kernels();
  for_each_item(static_cast<int64_t>(items.size()), [&](int64_t, int64_t item) {
    kernel.compact(a, items[item].layer_head, items[item].page);
  });
}

}  // namespace fastgen::cpu
