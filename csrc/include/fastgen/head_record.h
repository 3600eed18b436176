// The C++ twin of HeadField, StoreRule and TokenClass in fastgen_vllm/geometry.py.
#pragma once

#include <cstdint>

// Functions that kernels of either device call.
#ifdef __CUDACC__
#define FASTGEN_ANYWHERE __host__ __device__
#else
#define FASTGEN_ANYWHERE
#endif

namespace fastgen {

// One row of the tensor heads[lane, L, H, :]; pages are numbered within the request's page stream.
struct HeadRecord {
  int32_t first_page;     // first stream page of the head's fixed interval
  int32_t num_pages;      // pages of the fixed interval
  int32_t growth_page;    // stream page that the head grows by first
  int32_t growth_stride;  // distance from one growth page to the next, but for skipped ones
  int32_t growth_period;  // steps of growth that bring the head a page; 0: it never grows
  int32_t skip_period;    // growth pages after which pages of other heads are skipped
  int32_t skip_pages;     // how many are skipped
  int32_t room;           // stored tokens of the request until growth begins
  int32_t length;         // slots in use
  int32_t rule;           // StoreRule
  int32_t protects;       // TokenClass bits that this head never frees
  int32_t window;         // most recent tokens that are never freed
  int32_t observed_from;  // first observed query position, for averaging values
};
constexpr int kHeadFields = 13;
static_assert(sizeof(HeadRecord) == kHeadFields * sizeof(int32_t), "heads[..., :] is one record");

enum StoreRule : int32_t { kAppend = 0, kByValue = 1, kByAge = 2, kByEnergy = 3 };

// Whether such heads accumulate a value for every slot.
FASTGEN_ANYWHERE static inline bool values_tokens(int32_t rule) {
  return rule == kByValue || rule == kByEnergy;
}

// Stream page that holds the slots [i * S, (i + 1) * S) of the head.
FASTGEN_ANYWHERE static inline int32_t stream_page_of(const HeadRecord& head, int32_t i) {
  const int32_t grown = i - head.num_pages;
  if (grown < 0) return head.first_page + i;
  const int32_t page = head.growth_page + grown * head.growth_stride;
  return head.skip_pages == 0 ? page : page + grown / head.skip_period * head.skip_pages;
}

// Pages that the head may use once the request has stored `num_tokens`: a request grows by a step
// for every S tokens beyond its room.
FASTGEN_ANYWHERE static inline int32_t granted_pages(const HeadRecord& head, int32_t num_tokens,
                                                     int32_t slots) {
  if (head.growth_period == 0 || num_tokens <= head.room) return head.num_pages;
  const int32_t steps = (num_tokens - head.room + slots - 1) / slots;
  return head.num_pages + steps / head.growth_period;
}

}  // namespace fastgen
