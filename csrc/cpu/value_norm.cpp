#include "cpu/checks.h"
#include "cpu/isa.h"
#include "cpu/ops.h"

namespace fastgen {

void value_norm(const Tensor& arena, const Tensor& block_row, Tensor norm) {
  const Checks check("value_norm");
  ValueNormArgs a = {};
  a.pool = check.arena(arena);
  check.contiguous("norm", norm, ScalarType::Float, {a.pool.num_layers, a.pool.num_heads, kAny});
  check.contiguous("block_row", block_row, ScalarType::Int, {kAny});
  const int64_t slots = a.pool.page_slots;
  require(block_row.size(0) * slots >= norm.size(2), "value_norm: block_row must cover ",
          norm.size(2), " tokens, got ", block_row.size(0), " blocks of ", slots);
  a.block_row = static_cast<const int32_t*>(block_row.data_ptr());
  a.num_tokens = static_cast<int>(norm.size(2));
  a.norm = static_cast<float*>(norm.data_ptr());

  const Kernels& kernel = kernels();
  const int64_t pages = (norm.size(2) + slots - 1) / slots;
  for_each_item(a.pool.num_layers * a.pool.num_heads * pages, [&](int64_t, int64_t item) {
    kernel.value_norm(a, static_cast<int>(item / pages), static_cast<int>(item % pages));
  });
}

}  // namespace fastgen
