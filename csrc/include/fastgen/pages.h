// Where a page lies: the way from a slot of a head to memory.
//
//   page of (layer l, head h) in block b:   arena[l, b, h]
//
//        +---------------------------+---------------------------+
//   CPU  | K, column-major  [D, S]   | V, row-major     [S, D]   |    a page is contiguous
//        +---------------------------+---------------------------+
//
//        +---------------------------+---------------------------+
//   CPU, | K                         | V                         |    for AMX: 64 bytes are two
//  pairs | [S/16, D/2, 16, 2]        | [D/16, S/2, 16, 2]        |    columns of K for 16 tokens,
//        +---------------------------+---------------------------+    or 16 columns of V for two
//
//        +-----------+-----------+
//   CUDA | K of slot | V of slot |  x S    [S, 2 * D], rows slot_stride apart, so that either of
//        +-----------+-----------+         vLLM's orders, [H, S, 2 * D] and [S, H, 2 * D], fits
//
//   slot n of a head         ->  its page i = n / S, slot n % S
//   page i of a head         ->  stream page p: what its record is for
//   page p of a request      ->  block row[p / LH], page (l, h) = divmod(p % LH, H)
//
// A request that has not been compacted has a page stream, too, all of it stock pages: page i of
// (l, h) is p = i * LH + l * H + h.
#pragma once

#include "fastgen/head_record.h"

namespace fastgen {

enum DataType { kFloat32, kFloat16, kBFloat16 };

// vLLM's KV cache. Strides count elements.
struct PagePool {
  char* arena;
  DataType dtype;
  int element_size;  // bytes
  int64_t layer_stride;
  int64_t block_stride;
  int64_t head_stride;
  int64_t slot_stride;  // CUDA: from one slot's K and V to the next one's
  int num_blocks;       // B
  int num_layers;       // L
  int num_heads;        // H
  int page_slots;       // S, a multiple of 32
  int head_size;        // D, a multiple of 32
  bool in_pairs;        // CPU, bfloat16
};

// Blocks of one request, in order.
struct BlockRow {
  const int32_t* blocks;
  int num_blocks;
};

FASTGEN_ANYWHERE static inline bool is_block(int32_t block, int num_blocks) {
  return 0 <= block && block < num_blocks;
}

FASTGEN_ANYWHERE static inline int pages_per_block(const PagePool& pool) {
  return pool.num_layers * pool.num_heads;
}

// Pages of the stream that a row holds.
FASTGEN_ANYWHERE static inline int64_t stream_pages(const PagePool& pool, const BlockRow& row) {
  return static_cast<int64_t>(row.num_blocks) * pages_per_block(pool);
}

// Lanes of a line of a page in pairs: tokens of K, columns of V.
constexpr int kPairLanes = 16;

// Element of a page in pairs where the first pair of `lane` lies. `depth` is how many elements each
// lane has: D in K, S in V. The lane's i-th pair lies 2 * i * kPairLanes elements further.
FASTGEN_ANYWHERE static inline int64_t pair_lane(int lane, int depth) {
  return static_cast<int64_t>(lane / kPairLanes) * kPairLanes * depth + lane % kPairLanes * 2;
}

struct StreamPage {
  char* data;         // the page's first element
  int64_t meta_slot;  // slot 0 of the page in positions[B, L*H, S] and values[B, L*H, S]
};

// Page (layer, head) = divmod(in_block, H) of a block.
FASTGEN_ANYWHERE static inline char* page_of_block(const PagePool& pool, int32_t block,
                                                   int in_block) {
  const int layer = in_block / pool.num_heads, head = in_block % pool.num_heads;
  return pool.arena +
         (layer * pool.layer_stride + block * pool.block_stride + head * pool.head_stride) *
             pool.element_size;
}

FASTGEN_ANYWHERE static inline StreamPage stream_page(const PagePool& pool, const BlockRow& row,
                                                      int32_t page) {
  const int per_block = pages_per_block(pool);
  const int32_t block = row.blocks[page / per_block];
  const int in_block = page % per_block;
  return {page_of_block(pool, block, in_block),
          (static_cast<int64_t>(block) * per_block + in_block) * pool.page_slots};
}

// The i-th page of a head of the request whose blocks are `row`.
FASTGEN_ANYWHERE static inline StreamPage head_page(const PagePool& pool, const BlockRow& row,
                                                    const HeadRecord& head, int32_t i) {
  return stream_page(pool, row, stream_page_of(head, i, pages_per_block(pool)));
}

}  // namespace fastgen
