// Compaction: kept tokens move from the pages of a request into the page stream of fresh blocks.
//
// Grid (L*H, pages, up to 64), 128 threads: a block fills pages of one head beyond its stock pages,
// which stay where they are, every gridDim.y-th of them; which and from where it reads from the
// plan in device memory. K and V of a slot are one row of 2 * D elements, copied as vectors of 16
// bytes, neighbouring threads neighbouring vectors. A warp copies four slots at a time, whose old
// places four of its lanes look up for all; four loads of a thread are under way before its first
// store. No shared memory. Bytes: 2 * D elements read and written per token, 16 bytes of plan, 8 of
// metadata: the least possible. By bandwidth, half of a prompt of 8,192 tokens of an 8B model (L
// 32, H 8, D 128, bf16: 0.5 of 1 GiB, read and written) takes 0.7 ms at an A100's 1.5 TB/s and 0.3
// ms at an H100's 3.3. Untested on hardware: everything.
#pragma once

#include "cuda/found.h"

namespace fastgen {

constexpr int kCompactThreads = 128;
constexpr int kCompactPages = 64;
constexpr int kSlotsAtOnce = 4;  // of a warp; four warps make 16, of which S is a multiple
constexpr int64_t kNowhere = INT64_MIN;

// Where K and V of an old slot begin: so many bytes into the pool, or into the saved blocks, then
// the complement of that; or nowhere.
__device__ __forceinline__ int64_t find_old(const CompactArgs& a, const HeadRecord& head,
                                            int32_t slot) {
  if (slot < 0 || slot >= kMostSlots || !has_room(head, slot + 1, a.pool, a.old_row)) {
    return kNowhere;
  }
  const int slots = a.pool.page_slots, per_block = pages_per_block(a.pool);
  const int32_t page = stream_page_of(head, slot / slots, per_block);
  const int32_t entry = a.old_row.blocks[page / per_block], saved = entry - a.pool.num_blocks;
  if (!is_block(entry, a.pool.num_blocks + a.saved.num_blocks)) return kNowhere;
  const auto place = [&](const PagePool& pool, int32_t block, int64_t slot_stride) {
    return page_of_block(pool, block, page % per_block) - pool.arena +
           slot % slots * slot_stride * pool.element_size;
  };
  return saved < 0 ? place(a.pool, entry, a.pool.slot_stride)
                   : ~place(a.saved, saved, a.saved.slot_stride);
}

// A vector of what lies at such a place.
__device__ __forceinline__ int4 read_old(const CompactArgs& a, int64_t place, int vector) {
  if (place == kNowhere) return not_a_number();
  const char* from = place >= 0 ? a.pool.arena + place : a.saved.arena + ~place;
  return reinterpret_cast<const int4*>(from)[vector];
}

__global__ void __launch_bounds__(kCompactThreads, 9) compact_kernel(CompactArgs a) {
  const int layer_head = blockIdx.x;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const HeadRecord& record = a.heads[layer_head];
  const HeadRecord& old = a.old_heads[layer_head];
  const int64_t start = a.kept_start[layer_head], end = a.kept_start[layer_head + 1];
  const int slots = a.pool.page_slots;
  const int64_t stock = static_cast<int64_t>(record.stock_pages) * slots;
  if (start < 0 || end < start || end > a.num_kept || stock + end - start != record.length ||
      !has_slots(a.pool, a.new_row, record, record.length) || !is_sound(old)) {
    return;
  }
  const int count = static_cast<int>(end - start);
  const int vectors = 2 * a.pool.head_size * a.pool.element_size / kVectorBytes;  // of a slot

  for (int page = blockIdx.y; page * slots < count; page += gridDim.y) {
    if (!has_page(a.pool, a.new_row, record, record.stock_pages + page)) continue;
    const StreamPage to = head_page(a.pool, a.new_row, record, record.stock_pages + page);
    const int64_t first = start + static_cast<int64_t>(page) * slots;
    const int in_page = min(slots, count - page * slots);
    for (int slot = threadIdx.x; slot < in_page; slot += kCompactThreads) {
      a.positions[to.meta_slot + slot] = a.kept_position[first + slot];
      a.values[to.meta_slot + slot] = a.kept_value[first + slot];
    }
    for (int slot = warp * kSlotsAtOnce; slot < in_page;
         slot += kCompactThreads / kWarpSize * kSlotsAtOnce) {
      const int taken = min(kSlotsAtOnce, in_page - slot);
      const int64_t place = lane < taken ? find_old(a, old, a.kept[first + slot + lane]) : kNowhere;
      for (int from = 0; from < vectors; from += kWarpSize) {
        const int vector = from + lane;
        int4 held[kSlotsAtOnce];
#pragma unroll
        for (int i = 0; i < kSlotsAtOnce; ++i) {
          const int64_t its_place = __shfl_sync(kWholeWarp, place, i);
          if (i < taken && vector < vectors) held[i] = read_old(a, its_place, vector);
        }
#pragma unroll
        for (int i = 0; i < kSlotsAtOnce; ++i) {
          char* row = to.data + (slot + i) * a.pool.slot_stride * a.pool.element_size;
          if (i < taken && vector < vectors) reinterpret_cast<int4*>(row)[vector] = held[i];
        }
      }
    }
  }
}

}  // namespace fastgen
