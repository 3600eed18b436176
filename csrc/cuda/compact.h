// Compaction: kept tokens move from a prompt's stock pages into the page stream of fresh blocks.
//
// Grid (L*H, pages, up to 64), 128 threads: a block fills pages of one head beyond its stock pages,
// which stay where they are, every gridDim.y-th of them; which and from where it reads from the
// plan in device memory. K and V of a slot are one row of 2 * D elements, copied as vectors of 16
// bytes, neighbouring threads neighbouring vectors; four loads of a thread are under way before its
// first store. No shared memory. Bytes: 2 * D elements read and written per token, 12 bytes of
// plan, 8 of metadata: the least possible. By bandwidth, half of a prompt of 8,192 tokens of an 8B
// model (L 32, H 8, D 128, bf16: 0.5 of 1 GiB, read and written) takes 0.7 ms at an A100's 1.5 TB/s
// and 0.3 ms at an H100's 3.3. Untested on hardware: everything.
#pragma once

#include "cuda/found.h"

namespace fastgen {

constexpr int kCompactThreads = 128;
constexpr int kCompactPages = 64;
constexpr int kLoadsAtOnce = 4;

// A slot's K and V on a stock page.
__device__ __forceinline__ const char* stock_slot(const PagePool& pool, int layer, int32_t block,
                                                  int head, int32_t slot) {
  return stock_page(pool, layer, block, head) + slot * pool.slot_stride * pool.element_size;
}

// The vector-th sixteen bytes of a token's K and V on its prompt's stock pages.
__device__ __forceinline__ int4 read_stock(const CompactArgs& a, int layer, int head, int32_t token,
                                           int vector) {
  const int32_t entry = find_entry(a.pool, a.old_row, token);
  if (!is_block(entry, a.pool.num_blocks + a.saved.num_blocks)) return not_a_number();
  const int32_t saved = entry - a.pool.num_blocks, slot = token % a.pool.page_slots;
  const char* from = saved < 0 ? stock_slot(a.pool, layer, entry, head, slot)
                               : stock_slot(a.saved, layer, saved, head, slot);
  return reinterpret_cast<const int4*>(from)[vector];
}

__global__ void __launch_bounds__(kCompactThreads) compact_kernel(CompactArgs a) {
  const int layer_head = blockIdx.x;
  const int layer = layer_head / a.pool.num_heads, head = layer_head % a.pool.num_heads;
  const HeadRecord& record = a.heads[layer_head];
  const int64_t start = a.kept_start[layer_head], end = a.kept_start[layer_head + 1];
  const int slots = a.pool.page_slots;
  const int64_t stock = static_cast<int64_t>(record.stock_pages) * slots;
  if (start < 0 || end < start || end > a.num_kept || !is_sound(record) ||
      stock + end - start != record.length || !has_room(record, record.length, a.pool, a.new_row)) {
    return;
  }
  const int count = static_cast<int>(end - start);
  const int vectors = 2 * a.pool.head_size * a.pool.element_size / kVectorBytes;  // of a slot

  for (int page = blockIdx.y; page * slots < count; page += gridDim.y) {
    if (!has_page(a.pool, a.new_row, record, record.stock_pages + page)) continue;
    const StreamPage to = head_page(a.pool, a.new_row, record, record.stock_pages + page);
    const int64_t first = start + static_cast<int64_t>(page) * slots;
    const int in_page = min(slots, count - page * slots);
    for (int from = threadIdx.x; from < in_page * vectors; from += kLoadsAtOnce * kCompactThreads) {
      int4 held[kLoadsAtOnce];
#pragma unroll
      for (int i = 0; i < kLoadsAtOnce; ++i) {
        const int vector = from + i * kCompactThreads;
        if (vector < in_page * vectors) {
          const int32_t token = a.kept[first + vector / vectors];
          held[i] = read_stock(a, layer, head, token, vector % vectors);
        }
      }
#pragma unroll
      for (int i = 0; i < kLoadsAtOnce; ++i) {
        const int vector = from + i * kCompactThreads;
        if (vector < in_page * vectors) {
          char* row = to.data + vector / vectors * a.pool.slot_stride * a.pool.element_size;
          reinterpret_cast<int4*>(row)[vector % vectors] = held[i];
        }
      }
    }
    for (int slot = threadIdx.x; slot < in_page; slot += kCompactThreads) {
      a.positions[to.meta_slot + slot] = a.kept[first + slot];
      a.values[to.meta_slot + slot] = a.kept_value[first + slot];
    }
  }
}

}  // namespace fastgen
