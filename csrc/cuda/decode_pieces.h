// Pieces of decode attention: what a block's share of the line has of a head, as one unmerged
// softmax state; see decode_attention.h.
#pragma once

#include "cuda/decode_jobs.h"

namespace fastgen {

constexpr int kDecodeWarps = kDecodeThreads / kWarpSize;
constexpr int kStages = 3;     // tiles of a warp that are under way or in use
constexpr int kTileSteps = 4;  // slots of a tile that one lane sees
constexpr int kMostRows = 8;   // query heads that share a read of K and V

// How a warp lies over slots: kLanes lanes side by side cover a slot's K, several slots at a time.
template <typename T, int kHeadSize>
struct Lanes {
  static constexpr int kVectors = kHeadSize / Vector<T>::kSize;  // of K of a slot
  static constexpr int kLanes = kVectors < kWarpSize ? kVectors : kWarpSize;
  static constexpr int kPerLane = kVectors / kLanes;
  static constexpr int kSlots = kWarpSize / kLanes;
  static constexpr int kElements = kPerLane * Vector<T>::kSize;  // of a lane
  static constexpr int kTileSlots = kTileSteps * kSlots;
  static constexpr int kStageVectors = 2 * kTileSteps * kPerLane * kWarpSize;
  static constexpr int kStageBytes = kStageVectors * kVectorBytes;

  // The element of a slot's K (or V) that lane `lane` of a slot's lanes holds as its i-th.
  static __device__ __forceinline__ int element(int lane, int i) {
    return (i / Vector<T>::kSize * kLanes + lane) * Vector<T>::kSize + i % Vector<T>::kSize;
  }
};

template <typename T, int kHeadSize, int kRows>
constexpr int decode_shared_bytes() {
  constexpr int kCopies = kDecodeWarps * kStages * Lanes<T, kHeadSize>::kStageBytes;
  constexpr int kMerge = kDecodeWarps * kRows * (kHeadSize + 2) * static_cast<int>(sizeof(float));
  return kCopies > kMerge ? kCopies : kMerge;
}

// Pages [first_page, first_page + num_pages) of one head; line_page is the first one's on the line.
struct Piece {
  int job;
  int first_page;
  int num_pages;
  int line_page;
};

// The softmax of kRows query heads over the slots that one lane sees, and the lanes beside it.
template <typename T, int kHeadSize, int kRows>
struct LaneSoftmax {
  using Shape = Lanes<T, kHeadSize>;
  float query[kRows][Shape::kElements];  // times scale, for powers of two
  float sum[kRows][Shape::kElements];    // of exp2(score - most) * V
  float most[kRows];
  float weight[kRows];  // sum of exp2(score - most)

  __device__ __forceinline__ LaneSoftmax(const Jobs& jobs, int job, int group_row, int lane) {
    const float scale = jobs.a.scale * kLog2E;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const bool there = group_row + r < jobs.a.group_size;
      const T* from = jobs.query<T>(job, there ? group_row + r : 0);
#pragma unroll
      for (int i = 0; i < Shape::kElements; ++i) {
        const int element = Shape::element(lane, i);
        query[r][i] =
            there && element < jobs.a.pool.head_size ? to_float(from[element]) * scale : 0.f;
        sum[r][i] = 0.f;
      }
      most[r] = -INFINITY;
      weight[r] = 0.f;
    }
  }

  // Score of a slot that kLanes lanes hold together, the same in all of them.
  __device__ __forceinline__ float score(int r, const float (&key)[Shape::kElements]) const {
    float dot = 0.f;
#pragma unroll
    for (int i = 0; i < Shape::kElements; ++i) dot += query[r][i] * key[i];
#pragma unroll
    for (int distance = Shape::kLanes / 2; distance > 0; distance /= 2) {
      dot += __shfl_xor_sync(kWholeWarp, dot, distance);
    }
    return dot;
  }

  __device__ __forceinline__ void add(int r, float score, const float (&value)[Shape::kElements]) {
    raise(r, score);
    const float p = exp2f(score - most[r]);
    weight[r] += p;
#pragma unroll
    for (int i = 0; i < Shape::kElements; ++i) sum[r][i] += p * value[i];
  }

  // Adds up the lanes that hold the same elements of other slots.
  __device__ __forceinline__ void merge_slots() {
#pragma unroll
    for (int distance = Shape::kLanes; distance < kWarpSize; distance *= 2) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        raise(r, __shfl_xor_sync(kWholeWarp, most[r], distance));
        weight[r] += __shfl_xor_sync(kWholeWarp, weight[r], distance);
#pragma unroll
        for (int i = 0; i < Shape::kElements; ++i) {
          sum[r][i] += __shfl_xor_sync(kWholeWarp, sum[r][i], distance);
        }
      }
    }
  }

 private:
  __device__ __forceinline__ void raise(int r, float score) {
    if (score <= most[r]) return;
    const float factor = exp2f(most[r] - score);
    most[r] = score;
    weight[r] *= factor;
#pragma unroll
    for (int i = 0; i < Shape::kElements; ++i) sum[r][i] *= factor;
  }
};

// A warp's tiles of a piece on their way through shared memory, where each lane has its own places.
template <typename T, int kHeadSize>
struct Tiles {
  using Shape = Lanes<T, kHeadSize>;
  const Jobs& jobs;
  const Piece& piece;
  const HeadRecord& head;
  int num_slots;  // of the piece
  int lane;       // among those of a slot
  int slot;       // among those of a step
  Vector<T>* own;

  __device__ __forceinline__ Tiles(const Jobs& jobs, const Piece& piece, const HeadRecord& head,
                                   Vector<T>* shared)
      : jobs(jobs), piece(piece), head(head) {
    const int slots = jobs.a.pool.page_slots, lane_of_warp = threadIdx.x % kWarpSize;
    num_slots = min(piece.num_pages * slots, head.length - piece.first_page * slots);
    lane = lane_of_warp % Shape::kLanes;
    slot = lane_of_warp / Shape::kLanes;
    own = shared + threadIdx.x / kWarpSize * kStages * Shape::kStageVectors + lane_of_warp;
  }

  __device__ __forceinline__ int slot_of(int tile, int step) const {
    return tile * Shape::kTileSlots + step * Shape::kSlots + slot;
  }
  __device__ __forceinline__ bool holds(int vector) const {
    return Shape::element(lane, vector * Vector<T>::kSize) < jobs.a.pool.head_size;
  }
  // Where this lane keeps a vector of K (half 0) or of V (half 1).
  __device__ __forceinline__ Vector<T>* place(int stage, int step, int vector, int half) const {
    return own + stage * Shape::kStageVectors +
           ((step * Shape::kPerLane + vector) * 2 + half) * kWarpSize;
  }

  // Begins to copy a tile, if there is one.
  __device__ __forceinline__ void fetch(int tile, int stage) const {
    const PagePool& pool = jobs.a.pool;
    if (tile * Shape::kTileSlots < num_slots) {
      const int page = tile * Shape::kTileSlots / pool.page_slots;  // a tile lies in one page
      const BlockRow blocks = jobs.row(piece.job);
      const bool is_there = has_page(pool, blocks, head, piece.first_page + page);
      const T* data = reinterpret_cast<const T*>(
          is_there ? head_page(pool, blocks, head, piece.first_page + page).data : pool.arena);
#pragma unroll
      for (int step = 0; step < kTileSteps; ++step) {
        if (slot_of(tile, step) >= num_slots) continue;
        const T* row = data + (slot_of(tile, step) - page * pool.page_slots) * pool.slot_stride;
#pragma unroll
        for (int vector = 0; vector < Shape::kPerLane; ++vector) {
          if (!holds(vector)) continue;
          if (!is_there) {
            *reinterpret_cast<int4*>(place(stage, step, vector, 0)) = not_a_number();
            *reinterpret_cast<int4*>(place(stage, step, vector, 1)) = not_a_number();
            continue;
          }
          const T* from = row + Shape::element(lane, vector * Vector<T>::kSize);
          copy_async<kVectorBytes>(place(stage, step, vector, 0), from);
          copy_async<kVectorBytes>(place(stage, step, vector, 1), from + pool.head_size);
        }
      }
    }
    commit_copies();  // of nothing, too: waits count
  }

  // K (half 0) or V (half 1) of a step's slot.
  __device__ __forceinline__ void read(int stage, int step, int half,
                                       float (&to)[Shape::kElements]) const {
#pragma unroll
    for (int vector = 0; vector < Shape::kPerLane; ++vector) {
      Vector<T> from = {};
      if (holds(vector)) from = *place(stage, step, vector, half);
#pragma unroll
      for (int i = 0; i < Vector<T>::kSize; ++i) {
        to[vector * Vector<T>::kSize + i] = to_float(from.at[i]);
      }
    }
  }
};

// A block's softmax over a piece for the query heads [group_row, group_row + kRows) of its head.
template <typename T, int kHeadSize, int kRows>
__device__ __forceinline__ void attend(const Jobs& jobs, const DecodeScratch& scratch,
                                       const Piece& piece, int group_row, Vector<T>* shared) {
  using Shape = Lanes<T, kHeadSize>;
  const DecodeArgs& a = jobs.a;
  const HeadRecord head = *jobs.record(piece.job);
  const int warp = threadIdx.x / kWarpSize, group = a.group_size, d = a.pool.head_size;
  const Tiles<T, kHeadSize> tiles(jobs, piece, head, shared);
  LaneSoftmax<T, kHeadSize, kRows> softmax(jobs, piece.job, group_row, tiles.lane);
  const bool keeps_scores = values_tokens(head.rule) && tiles.lane == 0;

#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) tiles.fetch(warp + i * kDecodeWarps, i);
  int stage = 0;
  for (int tile = warp; tile * Shape::kTileSlots < tiles.num_slots; tile += kDecodeWarps) {
    wait_for_copies<kStages - 2>();
    tiles.fetch(tile + (kStages - 1) * kDecodeWarps, (stage + kStages - 1) % kStages);
#pragma unroll
    for (int step = 0; step < kTileSteps; ++step) {
      const int slot = tiles.slot_of(tile, step);
      const bool used = slot < tiles.num_slots;
      float key[Shape::kElements] = {}, value[Shape::kElements] = {}, score[kRows];
      if (used) {
        tiles.read(stage, step, 0, key);
        tiles.read(stage, step, 1, value);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) score[r] = softmax.score(r, key);
      if (!used) continue;
#pragma unroll
      for (int r = 0; r < kRows; ++r) softmax.add(r, score[r], value);
      const int page = piece.line_page + slot / a.pool.page_slots;
      if (keeps_scores && page < scratch.scored_pages) {
        float* to = scratch.scores +
                    (static_cast<int64_t>(piece.line_page) * a.pool.page_slots + slot) * group;
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (group_row + r < group) to[group_row + r] = score[r];
        }
      }
    }
    stage = (stage + 1) % kStages;
  }
  softmax.merge_slots();

  // Shared memory changes its meaning.
  __syncthreads();
  float* const sums = reinterpret_cast<float*>(shared);  // [warp][row][kHeadSize]
  float* const mosts = sums + kDecodeWarps * kRows * kHeadSize;
  float* const weights = mosts + kDecodeWarps * kRows;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int row = warp * kRows + r;
    if (tiles.slot == 0) {
#pragma unroll
      for (int i = 0; i < Shape::kElements; ++i) {
        sums[row * kHeadSize + Shape::element(tiles.lane, i)] = softmax.sum[r][i];
      }
    }
    if (threadIdx.x % kWarpSize == 0) {
      mosts[row] = softmax.most[r];
      weights[row] = softmax.weight[r];
    }
  }
  __syncthreads();
  float* const state = scratch.states + (piece.job + blockIdx.x) * state_floats(a);
  const int rows = min(kRows, group - group_row);
  for (int i = threadIdx.x; i < rows * d; i += kDecodeThreads) {
    const int r = i / d, element = i % d;
    float most = mosts[r];
#pragma unroll
    for (int w = 1; w < kDecodeWarps; ++w) most = fmaxf(most, mosts[w * kRows + r]);
    float sum = 0.f, weight = 0.f;
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) {
      const float factor = exp2f(mosts[w * kRows + r] - most);
      sum += factor * sums[(w * kRows + r) * kHeadSize + element];
      weight += factor * weights[w * kRows + r];
    }
    state[(group_row + r) * d + element] = sum;
    if (element == 0) {
      state[group * d + group_row + r] = most;
      state[group * (d + 1) + group_row + r] = weight;
    }
  }
  __syncthreads();
}

template <typename T, int kHeadSize, int kRows>
__global__ void __launch_bounds__(kDecodeThreads, kRows > 4 ? 2 : 4)
    decode_pieces(const __grid_constant__ DecodeArgs a, DecodeScratch scratch) {
  FASTGEN_DYNAMIC_SHARED(Vector<T>, shared);
  const Jobs jobs = {a, a.step.num_requests * a.pool.num_heads};
  const Start start = find_start(jobs, scratch.first_page);
  int line_page = blockIdx.x * start.share, page = start.page;
  const int end = min(line_page + start.share, start.total);
  for (int job = start.job; line_page < end; ++job) {
    const int count = min(jobs.pages(job) - page, end - line_page);
    if (count > 0) {
      const Piece piece = {job, page, count, line_page};
      for (int group_row = 0; group_row < a.group_size; group_row += kRows) {
        attend<T, kHeadSize, kRows>(jobs, scratch, piece, group_row, shared);
      }
      line_page += count;
    }
    page = 0;
  }
}

}  // namespace fastgen
