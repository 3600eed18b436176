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
  int32_t stock_pages;    // first pages that lie as in a stock row: one in each block
  int32_t stock_page;     // which page of a block those are: l * H + h
  int32_t read_only;      // first pages that are never written, valued or freed
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
constexpr int kHeadFields = 16;
static_assert(sizeof(HeadRecord) == kHeadFields * sizeof(int32_t), "heads[..., :] is one record");

enum StoreRule : int32_t { kAppend = 0, kByValue = 1, kByAge = 2, kByEnergy = 3 };

// Whether such heads accumulate a value for every slot.
FASTGEN_ANYWHERE static inline bool values_tokens(int32_t rule) {
  return rule == kByValue || rule == kByEnergy;
}

// Slots of a head and tokens of a request, at most: sums of a few of them are still int32.
constexpr int32_t kMostSlots = 1 << 30;

// Whether a plan can make such a record. Of others nothing may be computed: a period may be zero,
// sums may overflow.
FASTGEN_ANYWHERE static inline bool is_sound(const HeadRecord& head) {
  const int32_t all = head.stock_pages | head.stock_page | head.read_only | head.first_page |
                      head.num_pages | head.growth_page | head.growth_stride | head.growth_period |
                      head.skip_period | head.skip_pages | head.room | head.length | head.rule |
                      head.window | head.observed_from;
  return all >= 0 && head.length < kMostSlots && head.rule <= kByEnergy &&
         head.read_only <= head.stock_pages && (head.skip_pages == 0 || head.skip_period > 0);
}

// Stream pages that a row must hold for the first `num_slots` slots of a sound head.
FASTGEN_ANYWHERE static inline int64_t stream_needed(const HeadRecord& head, int32_t num_slots,
                                                     int32_t page_slots, int pages_per_block) {
  const auto later = [](int64_t a, int64_t b) { return a < b ? b : a; };
  const int32_t pages = (num_slots + page_slots - 1) / page_slots;
  const int32_t stock = pages < head.stock_pages ? pages : head.stock_pages;
  int64_t end = 0;
  if (stock > 0) end = static_cast<int64_t>(stock - 1) * pages_per_block + head.stock_page + 1;
  const int32_t own = pages - stock;
  const int32_t fixed = own < head.num_pages ? own : head.num_pages;
  if (fixed > 0) end = later(end, static_cast<int64_t>(head.first_page) + fixed);
  if (own <= head.num_pages) return end;
  const int32_t last = own - head.num_pages - 1;  // of those that it grew by
  const int32_t skips = head.skip_pages == 0 ? 0 : last / head.skip_period;
  return later(end, static_cast<int64_t>(head.growth_page) + 1 +
                        static_cast<int64_t>(last) * head.growth_stride +
                        static_cast<int64_t>(skips) * head.skip_pages);
}

// Stream page that holds the slots [i * S, (i + 1) * S) of the head.
FASTGEN_ANYWHERE static inline int32_t stream_page_of(const HeadRecord& head, int32_t i,
                                                      int pages_per_block) {
  if (i < head.stock_pages) return i * pages_per_block + head.stock_page;
  const int32_t own = i - head.stock_pages, grown = own - head.num_pages;
  if (grown < 0) return head.first_page + own;
  const int32_t page = head.growth_page + grown * head.growth_stride;
  return head.skip_pages == 0 ? page : page + grown / head.skip_period * head.skip_pages;
}

// Slots that the head may use once the request has stored `num_tokens`: a request grows by a step
// for every S tokens beyond its room.
FASTGEN_ANYWHERE static inline int64_t granted_slots(const HeadRecord& head, int32_t num_tokens,
                                                     int32_t page_slots) {
  int64_t pages = static_cast<int64_t>(head.stock_pages) + head.num_pages;
  if (head.growth_period > 0 && num_tokens > head.room) {
    pages += (num_tokens - head.room + page_slots - 1) / page_slots / head.growth_period;
  }
  return pages * page_slots;
}

// Whether a token at this position takes the head's next slot, or that of another token.
FASTGEN_ANYWHERE static inline bool takes_next_slot(const HeadRecord& head, int32_t token_position,
                                                    int32_t page_slots) {
  return head.rule == kAppend || head.length < granted_slots(head, token_position + 1, page_slots);
}

// Slots of a sound head that must be there for a token at this position; 0: none can be stored.
FASTGEN_ANYWHERE static inline int32_t slots_to_store(const HeadRecord& head,
                                                      int32_t token_position, int32_t page_slots) {
  if (token_position < 0 || token_position >= kMostSlots) return 0;
  const int64_t fixed = static_cast<int64_t>(head.read_only) * page_slots;
  if (head.length < fixed) return 0;
  if (takes_next_slot(head, token_position, page_slots)) return head.length + 1;
  // A head that replaces has never had more slots than it is granted.
  const bool is_full = head.length == granted_slots(head, token_position + 1, page_slots);
  return is_full && head.length > fixed ? head.length : 0;
}

}  // namespace fastgen
