// The C++ twin of HeadField, StoreRule and TokenClass in fastgen_vllm/geometry.py.
#pragma once

#include <cstdint>

namespace fastgen {

// One row of the tensor heads[lane, L, H, :]; pages are numbered within the request's page stream.
struct HeadRecord {
  int32_t first_page;     // first stream page of the head's fixed interval
  int32_t num_pages;      // pages of the fixed interval
  int32_t growth_page;    // growing heads: stream page that follows the fixed interval
  int32_t growth_stride;  // growing heads: distance between growth pages (= n_growing)
  int32_t length;         // slots in use
  int32_t rule;           // StoreRule
  int32_t protects;       // TokenClass bits that this head never frees
  int32_t window;         // most recent tokens that are never freed
  int32_t observed_from;  // first observed query position, for averaging values
};
constexpr int kHeadFields = 9;
static_assert(sizeof(HeadRecord) == kHeadFields * sizeof(int32_t), "heads[..., :] is one record");

enum StoreRule : int32_t { kAppend = 0, kByValue = 1, kByAge = 2 };

// Stream page that holds the slots [i * S, (i + 1) * S) of the head.
static inline int32_t stream_page_of(const HeadRecord& head, int32_t i) {
  return i < head.num_pages ? head.first_page + i
                            : head.growth_page + (i - head.num_pages) * head.growth_stride;
}

}  // namespace fastgen
