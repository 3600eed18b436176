// Jobs of decode attention: the heads of all requests of a step in a line, page after page, and
// where on it a block begins. Every block works that out from the records itself.
#pragma once

#include "cuda/found.h"
#include "cuda/ops.h"

namespace fastgen {

constexpr int kDecodeThreads = 128;
constexpr int kMostLinePages = 1 << 30;

// The heads of all requests of the step, in a line.
struct Jobs {
  const DecodeArgs& a;
  int count;  // R*H

  __device__ const HeadRecord* record(int job) const {
    const int request = job / a.pool.num_heads, head = job % a.pool.num_heads;
    return find_record(a.step, a.pool, request, head);
  }
  // Pages of a head on the line: none of one that is not there.
  __device__ int pages(int job) const {
    const HeadRecord* found = record(job);
    if (found == nullptr) return 0;
    const HeadRecord head = *found;
    if (!is_sound(head) || !has_room(head, head.length, a.pool, row(job))) return 0;
    const int pages = (head.length + a.pool.page_slots - 1) / a.pool.page_slots;
    return pages <= kMostLinePages / count ? pages : 0;
  }
  __device__ BlockRow row(int job) const { return row_of(a.step, job / a.pool.num_heads); }
  template <typename T>
  __device__ const T* query(int job, int group_row) const {
    return reinterpret_cast<const T*>(a.query) +
           a.step.token_index[job / a.pool.num_heads] * a.query_token_stride +
           (job % a.pool.num_heads * a.group_size + group_row) * a.query_head_stride;
  }
};

__host__ __device__ inline int64_t state_floats(const DecodeArgs& a) {
  return static_cast<int64_t>(a.group_size) * (a.pool.head_size + 2);
}

__device__ __forceinline__ int share_of_block(int total_pages, int num_blocks) {
  return (total_pages + num_blocks - 1) / num_blocks;
}

// Where a block begins on the line.
struct Start {
  int job;
  int page;   // of the job
  int total;  // pages of the line
  int share;  // pages of a block
};

// Finds the page `blockIdx.x * share` of the line; block 0 also writes down where every job begins.
__device__ __forceinline__ Start find_start(const Jobs& jobs, int32_t* first_page) {
  FASTGEN_SHARED(int, ends, [kDecodeThreads]);
  FASTGEN_SHARED(Start, start, [1]);
  const int thread = threadIdx.x;
  const int chunk = (jobs.count + kDecodeThreads - 1) / kDecodeThreads;
  const int from = min(thread * chunk, jobs.count), to = min(from + chunk, jobs.count);
  int mine = 0;
  for (int job = from; job < to; ++job) mine += jobs.pages(job);

  ends[thread] = mine;
  __syncthreads();
  for (int distance = 1; distance < kDecodeThreads; distance *= 2) {
    const int before = thread >= distance ? ends[thread - distance] : 0;
    __syncthreads();
    ends[thread] += before;
    __syncthreads();
  }
  const int total = ends[kDecodeThreads - 1];
  const int share = share_of_block(total, gridDim.x);
  const int first = blockIdx.x * share;
  int page = ends[thread] - mine;
  const bool here = page <= first && first < page + mine;
  if (thread == 0) start[0] = {jobs.count, 0, total, share};
  __syncthreads();
  if (here || blockIdx.x == 0) {
    for (int job = from; job < to; ++job) {
      const int pages = jobs.pages(job);
      if (blockIdx.x == 0) first_page[job] = page;
      if (here && page <= first && first < page + pages)
        start[0] = {job, first - page, total, share};
      page += pages;
    }
  }
  if (blockIdx.x == 0 && thread == 0) first_page[jobs.count] = total;
  __syncthreads();
  return start[0];
}

}  // namespace fastgen
