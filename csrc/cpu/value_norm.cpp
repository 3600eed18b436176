#include "arguments.h"
#include "cpu/isa.h"
#include "cpu/ops.h"
#include "cpu/work.h"

namespace fastgen {

void value_norm(const Tensor& arena, const Tensor& block_row, Tensor norm) {
  const ValueNormArgs a = value_norm_arguments(arena, block_row, norm);
  const Kernels& kernel = kernels();
  const int64_t pages = (norm.size(2) + a.pool.page_slots - 1) / a.pool.page_slots;
  for_each_item(a.pool.num_layers * a.pool.num_heads * pages, [&](int64_t, int64_t item) {
    kernel.value_norm(a, static_cast<int>(item / pages), static_cast<int>(item % pages));
  });
}

}  // namespace fastgen
