#include "cpu/contents.h"
#include "cpu/isa.h"
#include "cpu/work.h"
#include "launchers.h"

namespace fastgen::cpu {

void value_norm(const ValueNormArgs& a) {
  Contents("value_norm", a.pool).prompt("block_row", a.block_row, a.num_tokens);
  const Kernels& kernel = kernels();
  const int64_t pages = (a.num_tokens + a.pool.page_slots - 1) / a.pool.page_slots;
  for_each_item(a.pool.num_layers * a.pool.num_heads * pages, [&](int64_t, int64_t item) {
    kernel.value_norm(a, static_cast<int>(item / pages), static_cast<int>(item % pages));
  });
}

}  // namespace fastgen::cpu
