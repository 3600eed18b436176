// Looking into tensors of the device, which the host does not read, for what may not be there. One
// rule for all kernels: a slot whose block is none of the pool's reads as NaN and takes no writes;
// a head whose record is not sound, or whose slots its row has no room for, is left as it is; a
// request whose lane or token does not exist, such as a lane of -1 that pads a step, is nobody's.
#pragma once

#include "cuda/numbers.h"

namespace fastgen {

// Sixteen bytes of NaN, whatever the elements.
__device__ __forceinline__ int4 not_a_number() { return {-1, -1, -1, -1}; }

// Whether the i-th page of a head, for which the row has room, is there.
__device__ __forceinline__ bool has_page(const PagePool& pool, const BlockRow& row,
                                         const HeadRecord& head, int32_t i) {
  const int32_t page = stream_page_of(head, i, pages_per_block(pool));
  return is_block(row.blocks[page / pages_per_block(pool)], pool.num_blocks);
}

// The record of a request's head, or null where the request is nobody's.
__device__ __forceinline__ HeadRecord* find_record(const StepRequests& step, const PagePool& pool,
                                                   int request, int head) {
  const int32_t lane = step.lanes[request];
  const int64_t token = step.token_index[request];
  if (lane < 0 || lane >= step.num_lanes || token < 0 || token >= step.num_tokens) return nullptr;
  return &record_of(step, pool, request, head);
}

// Whether a row has room for the first `num_slots` slots of a sound head.
__device__ __forceinline__ bool has_room(const HeadRecord& head, int32_t num_slots,
                                         const PagePool& pool, const BlockRow& row) {
  const int64_t needed = stream_needed(head, num_slots, pool.page_slots, pages_per_block(pool));
  return needed <= stream_pages(pool, row);
}

// Whether a head is sound and its row has room for its first `num_slots` slots.
__device__ __forceinline__ bool has_slots(const PagePool& pool, const BlockRow& row,
                                          const HeadRecord& head, int32_t num_slots) {
  return is_sound(head) && has_room(head, num_slots, pool, row);
}

}  // namespace fastgen
