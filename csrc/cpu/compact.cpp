#include <vector>

#include "cpu/checks.h"
#include "cpu/isa.h"
#include "cpu/ops.h"

namespace fastgen {

void compact(const Tensor& source, const Tensor& old_row, Tensor arena, const Tensor& new_row,
             const Tensor& kept, const Tensor& kept_start, const Tensor& kept_value,
             const Tensor& heads, Tensor positions, Tensor values) {
  const Checks check("compact");
  CompactArgs a = {};
  a.source = check.arena(source);
  a.pool = check.arena(arena);
  require(source.scalar_type() == arena.scalar_type() && source.size(0) == arena.size(0) &&
              source.size(2) == arena.size(2) && source.size(3) == arena.size(3) &&
              source.size(4) == arena.size(4),
          "compact: source must have the dtype and shape of arena, except for its blocks");
  const int64_t layer_heads = static_cast<int64_t>(a.pool.num_layers) * a.pool.num_heads;
  check.contiguous("old_row", old_row, ScalarType::Int, {kAny});
  check.contiguous("new_row", new_row, ScalarType::Int, {kAny});
  check.contiguous("kept", kept, ScalarType::Int, {kAny});
  check.contiguous("kept_start", kept_start, ScalarType::Long, {layer_heads + 1});
  check.contiguous("kept_value", kept_value, ScalarType::Float, {kept.size(0)});
  check.contiguous("heads", heads, ScalarType::Int,
                   {a.pool.num_layers, a.pool.num_heads, kHeadFields});
  check.metadata(arena, positions, values);

  a.old_row = static_cast<const int32_t*>(old_row.data_ptr());
  a.new_row = static_cast<const int32_t*>(new_row.data_ptr());
  a.kept = static_cast<const int32_t*>(kept.data_ptr());
  a.kept_start = static_cast<const int64_t*>(kept_start.data_ptr());
  a.kept_value = static_cast<const float*>(kept_value.data_ptr());
  a.heads = static_cast<const HeadRecord*>(heads.data_ptr());
  a.positions = static_cast<int32_t*>(positions.data_ptr());
  a.values = static_cast<float*>(values.data_ptr());

  struct Item {
    int layer_head;
    int page;
  };
  std::vector<Item> items;
  require(a.kept_start[0] == 0 && a.kept_start[layer_heads] == kept.size(0),
          "compact: kept_start must run from 0 to the ", kept.size(0), " tokens of kept, got ",
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

}  // namespace fastgen
