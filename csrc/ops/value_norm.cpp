#include "ops/op.h"

namespace fastgen {
namespace {

void value_norm(const Tensor& arena, const Tensor& block_row, const Tensor& norm) {
  const Checks check("value_norm", arena);
  ValueNormArgs a = {};
  a.pool = check.arena();
  check.contiguous("norm", norm, ScalarType::Float, {a.pool.num_layers, a.pool.num_heads, kAny});
  a.block_row = check.row("block_row", block_row, norm.size(2), a.pool);
  a.num_tokens = static_cast<int>(norm.size(2));
  a.norm = static_cast<float*>(norm.data_ptr());
  FASTGEN_LAUNCH(value_norm, a, arena);
}

FASTGEN_OP(value_norm, "(Tensor arena, Tensor block_row, Tensor(a!) norm)")

}  // namespace
}  // namespace fastgen
