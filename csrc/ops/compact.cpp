#include "ops/op.h"

namespace fastgen {
namespace {

void compact(const Tensor& arena, const Tensor& old_row, const Tensor& old_heads,
             const Tensor& saved, const Tensor& new_row, const Tensor& kept,
             const Tensor& kept_position, const Tensor& kept_start, const Tensor& kept_value,
             const Tensor& heads, const Tensor& positions, const Tensor& values) {
  const Checks check("compact", arena);
  CompactArgs a = {};
  a.pool = check.arena();
  a.saved = check.arena("saved", saved);
  require(saved.scalar_type() == arena.scalar_type() && saved.dim() == arena.dim() &&
              saved.size(0) == arena.size(0) && saved.size(2) == arena.size(2) &&
              saved.size(3) == arena.size(3) && saved.size(4) == arena.size(4),
          "compact: saved must have the dtype and shape of arena, except for its blocks");
  a.old_row = check.row("old_row", old_row);
  a.old_heads = check.heads("old_heads", old_heads, a.pool);
  a.new_row = check.row("new_row", new_row);
  check.contiguous("kept", kept, ScalarType::Int, {kAny});
  check.contiguous("kept_position", kept_position, ScalarType::Int, {kept.size(0)});
  check.contiguous("kept_start", kept_start, ScalarType::Long, {pages_per_block(a.pool) + 1});
  check.contiguous("kept_value", kept_value, ScalarType::Float, {kept.size(0)});
  a.heads = check.heads("heads", heads, a.pool);
  check.metadata("positions", positions, ScalarType::Int, a.pool);
  check.metadata("values", values, ScalarType::Float, a.pool);

  a.num_kept = static_cast<int>(kept.size(0));
  a.kept = static_cast<const int32_t*>(kept.data_ptr());
  a.kept_position = static_cast<const int32_t*>(kept_position.data_ptr());
  a.kept_start = static_cast<const int64_t*>(kept_start.data_ptr());
  a.kept_value = static_cast<const float*>(kept_value.data_ptr());
  a.positions = static_cast<int32_t*>(positions.data_ptr());
  a.values = static_cast<float*>(values.data_ptr());
  FASTGEN_LAUNCH(compact, a, arena);
}

FASTGEN_OP(compact,
           "(Tensor(a!) arena, Tensor old_row, Tensor old_heads, Tensor saved, Tensor new_row, "
           "Tensor kept, Tensor kept_position, Tensor kept_start, Tensor kept_value, Tensor heads, "
           "Tensor(b!) positions, Tensor(c!) values)")

}  // namespace
}  // namespace fastgen
