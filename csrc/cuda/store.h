// Store: each head of each request puts the step's new token into its next or least valued slot.
//
// Grid (H, R), 128 threads: one block per (request, head), sole writer of its record. A head that
// is full looks at all its slots, four bytes of position and four of value each, thread after
// thread, so that neighbouring threads read neighbouring slots of a page; three candidates are
// found in the one pass: the least worth outside the window, the oldest unprotected, the oldest.
// Shared memory: 144 bytes. Bytes: 8 per slot of a full head, 4 * D elements per head for the
// token. Untested on hardware: everything.
#pragma once

#include "cuda/found.h"

namespace fastgen {

constexpr int kStoreThreads = 128;

// A slot that may have to give way; the lesser goes first.
struct Candidate {
  float worth;
  int32_t position;
  int32_t slot;  // -1: none
};

__device__ __forceinline__ Candidate lesser(const Candidate& a, const Candidate& b) {
  if (a.slot < 0 || b.slot < 0) return a.slot < 0 ? b : a;
  if (a.worth != b.worth) return a.worth < b.worth ? a : b;
  if (a.position != b.position) return a.position < b.position ? a : b;
  return a.slot < b.slot ? a : b;
}

__device__ __forceinline__ Candidate least_of_warp(Candidate mine) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    const Candidate other = {__shfl_xor_sync(kWholeWarp, mine.worth, distance),
                             __shfl_xor_sync(kWholeWarp, mine.position, distance),
                             __shfl_xor_sync(kWholeWarp, mine.slot, distance)};
    mine = lesser(mine, other);
  }
  return mine;
}

// What has to give way, in order of preference: a slot outside of the window, the least worth
// first; any unprotected slot, the oldest first; the oldest slot. All threads of the block get the
// answer.
__device__ __forceinline__ int32_t choose_slot(const StoreArgs& a, const HeadRecord& head,
                                               const BlockRow& row, int32_t token_position) {
  constexpr int kWays = 3, kWarps = kStoreThreads / kWarpSize;
  FASTGEN_SHARED(Candidate, found, [kWays][kWarps]);
  const int slots = a.pool.page_slots;
  Candidate least[kWays];
#pragma unroll
  for (int way = 0; way < kWays; ++way) least[way] = {0.f, 0, -1};

  const int32_t first = head.read_only * slots + threadIdx.x;
  for (int32_t slot = first; slot < head.length; slot += kStoreThreads) {
    if (!has_page(a.pool, row, head, slot / slots)) continue;
    const int64_t meta = head_page(a.pool, row, head, slot / slots).meta_slot + slot % slots;
    const int32_t position = a.positions[meta];
    const float value = a.values[meta];
    const bool free = value < INFINITY;
    if (free && position <= token_position - head.window) {
      const int32_t observed = token_position - max(position, head.observed_from);
      const float worth =
          values_tokens(head.rule) ? value / static_cast<float>(max(observed, 1)) : 0.f;
      least[0] = lesser(least[0], {worth, position, slot});
    }
    if (free) least[1] = lesser(least[1], {0.f, position, slot});
    least[2] = lesser(least[2], {0.f, position, slot});
  }

#pragma unroll
  for (int way = 0; way < kWays; ++way) {
    const Candidate of_warp = least_of_warp(least[way]);
    if (threadIdx.x % kWarpSize == 0) found[way][threadIdx.x / kWarpSize] = of_warp;
  }
  __syncthreads();
  for (int way = 0; way < kWays; ++way) {
    Candidate chosen = found[way][0];
    for (int warp = 1; warp < kWarps; ++warp) chosen = lesser(chosen, found[way][warp]);
    if (chosen.slot >= 0) return chosen.slot;
  }
  return head.read_only * slots;  // none of its slots is there
}

// Element is an unsigned integer of the cache's element size: nothing here looks at the numbers.
template <typename Element>
__global__ void __launch_bounds__(kStoreThreads, 10) store_kernel(StoreArgs a) {
  const int head_index = blockIdx.x, request = blockIdx.y;
  HeadRecord* const record = find_record(a.step, a.pool, request, head_index);
  if (record == nullptr) return;
  const HeadRecord& head = *record;
  const BlockRow row = row_of(a.step, request);
  const int32_t token_position = a.token_position[request];
  const int slots = a.pool.page_slots, d = a.pool.head_size;

  if (!is_sound(head)) return;
  const int32_t num_slots = slots_to_store(head, token_position, slots);
  if (num_slots == 0 || !has_room(head, num_slots, a.pool, row)) return;
  const bool appends = num_slots > head.length;
  const int32_t slot = appends ? head.length : choose_slot(a, head, row, token_position);
  __syncthreads();  // all have read the record and the metadata that change now

  if (!has_page(a.pool, row, head, slot / slots)) return;
  const StreamPage page = head_page(a.pool, row, head, slot / slots);
  const int64_t token = a.step.token_index[request];
  const Element* key = reinterpret_cast<const Element*>(a.key) + token * a.key_token_stride +
                       head_index * a.key_head_stride;
  const Element* value = reinterpret_cast<const Element*>(a.value) + token * a.value_token_stride +
                         head_index * a.value_head_stride;
  Element* to = reinterpret_cast<Element*>(page.data) + (slot % slots) * a.pool.slot_stride;
  for (int i = threadIdx.x; i < d; i += kStoreThreads) {
    to[i] = key[i];
    to[d + i] = value[i];
  }
  if (threadIdx.x == 0) {
    if (appends) record->length = head.length + 1;
    const int64_t meta = page.meta_slot + slot % slots;
    a.positions[meta] = token_position;
    a.values[meta] = (a.token_class[request] & head.protects) ? INFINITY : 0.f;
  }
}

}  // namespace fastgen
