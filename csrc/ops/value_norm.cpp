#include "ops/op.h"

namespace fastgen {
namespace {

void value_norm(const Tensor& arena, const Tensor& block_row, const Tensor& heads,
                const Tensor& norm) {
  const Checks check("value_norm", arena);
  ValueNormArgs a = {};
  a.pool = check.arena();
  check.contiguous("norm", norm, ScalarType::Float, {a.pool.num_layers, a.pool.num_heads, kAny});
  require(norm.size(2) < kMostSlots, "value_norm: norm must have less than ", kMostSlots,
          " tokens, got ", norm.size(2));
  a.block_row = check.row("block_row", block_row);
  a.heads = check.heads("heads", heads, a.pool);
  a.num_tokens = static_cast<int>(norm.size(2));
  a.norm = static_cast<float*>(norm.data_ptr());
  FASTGEN_LAUNCH(value_norm, a, arena);
}

FASTGEN_OP(value_norm, "(Tensor arena, Tensor block_row, Tensor heads, Tensor(a!) norm)")

}  // namespace
}  // namespace fastgen
