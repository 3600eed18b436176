// Store: a new token's K and V go into each head's next slot, or into its least valued one.
//
// item = (request, head): sole reader and writer of its head record, pages and metadata. Lanes are
// distinct within a call. Bytes: 2 * D elements written; a head that is full also reads the 8 bytes
// of metadata of each of its slots, in vectors.
#pragma once

#include "fastgen/vector.h"

namespace fastgen {
namespace FASTGEN_ISA {

// Which slots may be freed, and what they are worth. Equal worth: the older token goes.
struct Eviction {
  int32_t newest;       // positions after this one are not considered
  bool spare_infinite;  // slots of infinite value are not considered
  bool by_value;        // worth = value per observed query; else all equal, so the oldest goes
  int32_t token_position;
  int32_t observed_from;
};

// Slot of the least worth of a head whose pages are full, or -1 if none may be freed.
static int32_t find_victim(const StoreArgs& a, const HeadRecord& head, const BlockRow& row,
                           const Eviction& e) {
  const float kInfinity = __builtin_inff();
  const int slots = a.pool.page_slots;
  Floats least_worth = broadcast(kInfinity);
  Ints least_position = Ints{} + INT32_MAX;
  Ints least_slot = Ints{} - 1;
  const Ints spare_none = Ints{} - (e.spare_infinite ? 0 : 1);
  for (int page = head.read_only; page * slots < head.length; ++page) {
    const int64_t meta = head_page(a.pool, row, head, page).meta_slot;
    for (int t = 0; t < slots; t += kLanes) {
      const Ints position = load(a.positions + meta + t);
      const Floats value = load(a.values + meta + t);
      const Ints eligible = (position <= e.newest) & ((value < kInfinity) | spare_none);
      const Ints since = position > e.observed_from ? position : Ints{} + e.observed_from;
      const Ints observed = e.token_position - since;
      const Ints queries = observed > 1 ? observed : Ints{} + 1;
      const Floats worth = e.by_value ? value / __builtin_convertvector(queries, Floats) : Floats{};
      const Ints less =
          (worth < least_worth) | ((worth == least_worth) & (position < least_position));
      const Ints better = eligible & less;
      least_worth = better ? worth : least_worth;
      least_position = better ? position : least_position;
      least_slot = better ? lane_numbers() + (page * slots + t) : least_slot;
    }
  }
  int best = 0;
  for (int i = 1; i < kLanes; ++i) {
    if (least_worth[i] < least_worth[best] ||
        (least_worth[i] == least_worth[best] && least_position[i] < least_position[best])) {
      best = i;
    }
  }
  return least_slot[best];
}

// What has to give way: a slot outside the window, else any unprotected one, else the oldest.
static int32_t choose_slot(const StoreArgs& a, const HeadRecord& head, const BlockRow& row,
                           int32_t token_position) {
  Eviction e = {token_position - head.window, true, values_tokens(head.rule), token_position,
                head.observed_from};
  int32_t slot = find_victim(a, head, row, e);
  if (slot >= 0) return slot;
  e.newest = INT32_MAX;
  e.by_value = false;
  slot = find_victim(a, head, row, e);
  if (slot >= 0) return slot;
  e.spare_infinite = false;
  return find_victim(a, head, row, e);
}

template <typename Element>
FASTGEN_INLINE void write_token(const PagePool& pool, char* page, int slot, const char* key,
                                const char* value) {
  const int slots = pool.page_slots, d = pool.head_size;
  Element* k = reinterpret_cast<Element*>(page) + slot;
  const Element* from = reinterpret_cast<const Element*>(key);
  for (int i = 0; i < d; ++i) k[static_cast<int64_t>(i) * slots] = from[i];
  __builtin_memcpy(reinterpret_cast<Element*>(page) + static_cast<int64_t>(slots + slot) * d, value,
                   d * sizeof(Element));
}

FASTGEN_INLINE void write_token_in_pairs(const PagePool& pool, char* page, int slot,
                                         const char* key, const char* value) {
  const int slots = pool.page_slots, d = pool.head_size;
  PairedBFloat* k = reinterpret_cast<PairedBFloat*>(page);
  PairedBFloat* v = k + static_cast<int64_t>(slots) * d + slot / 2 * 2 * kPairLanes + slot % 2;
  k += pair_lane(slot, d);
  for (int i = 0; i < d; i += 2) {
    __builtin_memcpy(k + i * kPairLanes, key + i * sizeof(BFloat), 2 * sizeof(BFloat));
  }
  const PairedBFloat* from = reinterpret_cast<const PairedBFloat*>(value);
  for (int i = 0; i < d; ++i) v[pair_lane(i, slots)] = from[i];
}

static void store(const StoreArgs& a, int request, int head_index) {
  HeadRecord& head = record_of(a.step, a.pool, request, head_index);
  const BlockRow row = row_of(a.step, request);
  const int32_t token_position = a.token_position[request];
  const int slots = a.pool.page_slots;

  const int32_t slot = takes_next_slot(head, token_position, slots)
                           ? head.length++
                           : choose_slot(a, head, row, token_position);

  const StreamPage page = head_page(a.pool, row, head, slot / slots);
  const int64_t token = a.step.token_index[request];
  const char* key =
      a.key + (token * a.key_token_stride + head_index * a.key_head_stride) * a.pool.element_size;
  const char* value = a.value + (token * a.value_token_stride + head_index * a.value_head_stride) *
                                    a.pool.element_size;
  if (a.pool.in_pairs) {
    write_token_in_pairs(a.pool, page.data, slot % slots, key, value);
  } else if (a.pool.element_size == 4) {
    write_token<uint32_t>(a.pool, page.data, slot % slots, key, value);
  } else {
    write_token<uint16_t>(a.pool, page.data, slot % slots, key, value);
  }
  a.positions[page.meta_slot + slot % slots] = token_position;
  a.values[page.meta_slot + slot % slots] =
      (a.token_class[request] & head.protects) ? __builtin_inff() : 0.f;
}

}  // namespace FASTGEN_ISA
}  // namespace fastgen
