// Value norms: the Euclidean norm of every token's value vector, on a prompt's stock pages.
//
// item = (layer * H + head, page): one row of V after the other, squares summed in vectors. Bytes:
// D elements read and one float written per token.
#pragma once

#include "fastgen/vector.h"

namespace fastgen {
namespace FASTGEN_ISA {

static void value_norm(const ValueNormArgs& a, int layer_head, int page) {
  const int d = a.pool.head_size, slots = a.pool.page_slots;
  const int first = page * slots;
  const int tokens = a.num_tokens - first < slots ? a.num_tokens - first : slots;
  const char* data = stock_page(a.pool, layer_head / a.pool.num_heads, a.block_row[page],
                                layer_head % a.pool.num_heads);
  float* norm = a.norm + static_cast<int64_t>(layer_head) * a.num_tokens + first;
  with_type(a.pool.dtype, [&](auto type) {
    const auto* v = reinterpret_cast<const typename decltype(type)::Element*>(data) +
                    static_cast<int64_t>(slots) * d;
    for (int t = 0; t < tokens; ++t) {
      Floats sum = {};
      for (int i = 0; i < d; i += kLanes) {
        const Floats x = load(v + static_cast<int64_t>(t) * d + i);
        sum += x * x;
      }
      norm[t] = __builtin_sqrtf(reduce_sum(sum));
    }
  });
}

}  // namespace FASTGEN_ISA
}  // namespace fastgen
