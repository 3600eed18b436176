#include "cpu/contents.h"
#include "cpu/isa.h"
#include "cpu/work.h"
#include "launchers.h"

namespace fastgen::cpu {

void value_norm(const ValueNormArgs& a) {
  const int layer_heads = pages_per_block(a.pool);
  Contents("value_norm", a.pool).heads(a.heads, 0, layer_heads, a.num_tokens, a.block_row);
  const Kernels& kernel = kernels();
  const int64_t runs = (a.num_tokens + norm_run_slots(a) - 1) / norm_run_slots(a);
  for_each_item(layer_heads * runs, [&](int64_t, int64_t item) {
    kernel.value_norm(a, static_cast<int>(item / runs), static_cast<int>(item % runs));
  });
}

}  // namespace fastgen::cpu
