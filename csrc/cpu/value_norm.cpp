#include "cpu/contents.h"
#include "cpu/isa.h"
#include "cpu/work.h"
#include "launchers.h"

namespace fastgen::cpu {

void value_norm(const ValueNormArgs& a) {
  const int layer_heads = pages_per_block(a.pool);
  Contents("value_norm", a.pool).heads(a.heads, 0, layer_heads, a.num_tokens, a.block_row);
  const Kernels& kernel = kernels();
  const int64_t pages = (a.num_tokens + a.pool.page_slots - 1) / a.pool.page_slots;
  for_each_item(layer_heads * pages, [&](int64_t, int64_t item) {
    kernel.value_norm(a, static_cast<int>(item / pages), static_cast<int>(item % pages));
  });
}

}  // namespace fastgen::cpu
