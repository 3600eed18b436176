// Value norms: the Euclidean norm of the value vector in every slot of a request's heads.
//
// item = (layer * H + head, run of 8 pages): one row of V after the other, squares summed in
// vectors; where the next page lies is worked out meanwhile. Bytes: D elements read and one float
// written per token.
#pragma once

#include "fastgen/vector.h"

namespace fastgen {
namespace FASTGEN_ISA {

template <typename T>
FASTGEN_INLINE void norm_of_rows(const T* v, int num_tokens, int, int head_size, float* norm) {
  for (int t = 0; t < num_tokens; ++t) {
    Floats sum = {};
    for (int i = 0; i < head_size; i += kLanes) {
      const Floats x = load(v + static_cast<int64_t>(t) * head_size + i);
      sum += x * x;
    }
    norm[t] = __builtin_sqrtf(reduce_sum(sum));
  }
}

FASTGEN_INLINE void norm_of_rows(const PairedBFloat* v, int num_tokens, int slots, int head_size,
                                 float* norm) {
  for (int t = 0; t < num_tokens; t += 2) {
    Halves sum = {};
    for (int i = 0; i < head_size; i += kLanes) {
      const Halves x = load_halves(v + pair_lane(i, slots) + static_cast<int64_t>(t) * kPairLanes);
      sum.first += x.first * x.first;
      sum.second += x.second * x.second;
    }
    norm[t] = __builtin_sqrtf(reduce_sum(sum.first));
    if (t + 1 < num_tokens) norm[t + 1] = __builtin_sqrtf(reduce_sum(sum.second));
  }
}

static void value_norm(const ValueNormArgs& a, int layer_head, int run) {
  const int d = a.pool.head_size, slots = a.pool.page_slots;
  const int begin = run * norm_run_slots(a), most = begin + norm_run_slots(a);
  const int end = most < a.num_tokens ? most : a.num_tokens;
  const auto page_at = [&](int token) {
    return head_page(a.pool, a.block_row, a.heads[layer_head], token / slots).data;
  };
  float* norm = a.norm + static_cast<int64_t>(layer_head) * a.num_tokens;
  with_type(a.pool, [&](auto type) {
    const char* page = page_at(begin);
    for (int first = begin; first < end; first += slots) {
      const int tokens = end - first < slots ? end - first : slots;
      const char* next = first + slots < end ? page_at(first + slots) : nullptr;
      const auto* k = reinterpret_cast<const typename decltype(type)::Element*>(page);
      norm_of_rows(k + static_cast<int64_t>(slots) * d, tokens, slots, d, norm + first);
      page = next;
    }
  });
}

}  // namespace FASTGEN_ISA
}  // namespace fastgen
