// Attention mass: what share of softmax probability a few late queries give to every prompt token.
//
// Two sweeps over K, never an N x N map, no atomics:
//   mass_rows  grid (W / 64, H*G): the logarithm of every row's sum of exponentials, a row
//   being
//                  one (query, query head). Each of four warps has 16 queries; K passes through
//                  shared memory in tiles of 64 tokens, the next one being copied meanwhile.
//   mass_add       grid (N / 64, H): one tile of K stays in shared memory while queries pass, 16 at
//   a
//                  time. Each of four warps turns 16 x 16 scores a query head into probabilities,
//                  pools them over the G query heads in registers and leaves them in shared memory;
//                  then a thread per token (and one per token for squares) adds the 16 queries one
//                  by one. Sole writer of its tokens.
// Every number depends on its own query and token only, K is taken in tiles that begin at token 0,
// and queries are added in ascending order: a split of the queries over several calls gives the
// same bits. Scores of float16 and bfloat16 come from the matrix units, 16 x 8 x 16 at a time;
// those of float32 are plain sums of products. Rows of K in shared memory are 16 bytes apart from a
// multiple of 128, so that the eight rows of a fragment lie in different banks.
//
// Bytes: K of the layer once per 64 queries and query head (first sweep, from the second-level
// cache but for the first time), once in the second, where the queries are read once per 64 tokens.
// Arithmetic: 4 * W * G * H * D * N operations: W 256, N 8,192, H 8, G 4, D 128: 34 GFLOP a layer,
// 0.11 ms at an A100's 312 TFLOP/s, 0.03 ms at an H100's 990, of which `mma.sync` reaches some two
// thirds; 0.8 % of what that prompt's own products take in an 8B model. Shared memory: two tiles of
// K in the first sweep (one for float32 with D > 128), one and 16 KiB in the second. Untested on
// hardware: everything.
#pragma once

#include "cuda/found.h"
#include "cuda/ops.h"

namespace fastgen {

constexpr int kMassThreads = 128;
constexpr int kMassWarps = kMassThreads / kWarpSize;
constexpr int kQueryTile = 16;  // of a warp
constexpr int kTokenTile = 64;
constexpr int kTokenStep = 8;  // of a fragment

// Elements from one row of K in shared memory to the next.
template <typename T, int kHeadSize>
constexpr int kKeyPitch = kHeadSize + Vector<T>::kSize;

template <typename T, int kHeadSize>
constexpr int kKeyTileBytes = kTokenTile * kKeyPitch<T, kHeadSize> * static_cast<int>(sizeof(T));

// Tiles of K in the first sweep: the next one is copied ahead where both fit into the 99 KiB that a
// block can have on any GPU since sm_80.
template <typename T, int kHeadSize>
constexpr int kKeyTiles = 2 * kKeyTileBytes<T, kHeadSize> <= 99 * 1024 ? 2 : 1;

// Bytes of shared memory of the second sweep: K, and two sets of [mass, energy][16][64].
template <typename T, int kHeadSize>
constexpr int kMassAddBytes =
    kKeyTileBytes<T, kHeadSize> + 2 * 2 * kQueryTile * kTokenTile * static_cast<int>(sizeof(float));

// Queries [first, first + 16) of one query head: rows beyond W are zeros.
template <typename T>
struct QueryRows {
  const T* data;
  int64_t stride;
  int count;

  __device__ __forceinline__ QueryRows(const T* data, int64_t stride, int count)
      : data(data), stride(stride), count(count) {}

  __device__ __forceinline__ QueryRows(const PromptQueries& a, int query_head, int first)
      : data(reinterpret_cast<const T*>(a.query) + first * a.query_token_stride +
             query_head * a.query_head_stride),
        stride(a.query_token_stride),
        count(min(kQueryTile, a.num_queries - first)) {}
};

// Element e of a fragment of scores: the row and column of a 16 x 8 tile that this lane has there.
__device__ __forceinline__ int fragment_row(int e) {
  return threadIdx.x % kWarpSize / 4 + e / 2 * 8;
}
__device__ __forceinline__ int fragment_column(int e) { return threadIdx.x % 4 * 2 + e % 2; }

// Dot products of 16 queries, kept in registers, with 8 keys after the other.
template <typename T, int kHeadSize>
struct QueryTile {
  static constexpr int kSteps = kHeadSize / 16;
  uint32_t pairs[kSteps][4];  // see mma_16x8x16
  int head_size;

  __device__ __forceinline__ QueryTile(const QueryRows<T>& rows, int head_size)
      : head_size(head_size) {
    const int row = threadIdx.x % kWarpSize / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = row + i % 2 * 8, c = step * 16 + column + i / 2 * 8;
        const bool there = r < rows.count && c < head_size;
        pairs[step][i] =
            there ? *reinterpret_cast<const uint32_t*>(rows.data + r * rows.stride + c) : 0u;
      }
    }
  }

  // keys: row 0 of eight rows of K in shared memory.
  __device__ __forceinline__ void dot(const T* keys, float (&scores)[4]) const {
    const T* key =
        keys + threadIdx.x % kWarpSize / 4 * kKeyPitch<T, kHeadSize> + threadIdx.x % 4 * 2;
#pragma unroll
    for (int e = 0; e < 4; ++e) scores[e] = 0.f;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (step * 16 >= head_size) break;
      const uint32_t b[2] = {*reinterpret_cast<const uint32_t*>(key + step * 16),
                             *reinterpret_cast<const uint32_t*>(key + step * 16 + 8)};
      mma_16x8x16(T{}, scores, pairs[step], b);
    }
  }
};

template <int kHeadSize>
struct QueryTile<float, kHeadSize> {
  QueryRows<float> rows;
  int head_size;

  __device__ __forceinline__ QueryTile(const QueryRows<float>& rows, int head_size)
      : rows(rows), head_size(head_size) {}

  __device__ __forceinline__ void dot(const float* keys, float (&scores)[4]) const {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float* key = keys + fragment_column(e) * kKeyPitch<float, kHeadSize>;
      const float* query = rows.data + fragment_row(e) * rows.stride;
      const bool there = fragment_row(e) < rows.count;
      float sum = 0.f;
      for (int d = 0; there && d < head_size; ++d) sum += query[d] * key[d];
      scores[e] = sum;
    }
  }
};

// A head of a prompt. Its record is looked up for every page: held, it makes kernels spill.
struct PromptHead {
  const PromptQueries& a;
  int head;
  bool is_there;  // what the queries and the tokens before them need

  __device__ __forceinline__ PromptHead(const PromptQueries& a, int head)
      : a(a),
        head(head),
        is_there(has_slots(a.pool, a.block_row, record(), a.first_position + a.num_queries)) {}

  __device__ __forceinline__ const HeadRecord& record() const { return record_of(a, head); }
  __device__ __forceinline__ bool has_page(int page) const {
    return is_there && fastgen::has_page(a.pool, a.block_row, record(), page);
  }
  __device__ __forceinline__ StreamPage page(int page) const {
    return head_page(a.pool, a.block_row, record(), page);
  }
};

// Begins to copy the keys of tokens [first, first + 64) of a head, those below `end`; the block's
// threads together. Rows of other tokens become zeros. A warp copies sixteen tokens, which lie on
// one page: S and `first` are multiples of 16.
template <typename T, int kHeadSize>
__device__ __forceinline__ void fetch_keys(const PromptHead& head, int first, int end, T* keys) {
  const PromptQueries& a = head.a;
  constexpr int kTokens = kTokenTile / kMassWarps;
  const int vectors = a.pool.head_size / Vector<T>::kSize, slots = a.pool.page_slots;
  const int warp = threadIdx.x / kWarpSize, token = first + warp * kTokens;
  T* const rows = keys + warp * kTokens * kKeyPitch<T, kHeadSize>;
  const bool is_there = token < end && head.has_page(token / slots);
  const T* from = reinterpret_cast<const T*>(a.pool.arena);
  if (is_there) {
    from = reinterpret_cast<const T*>(head.page(token / slots).data) +
           token % slots * a.pool.slot_stride;
  }
#pragma unroll 1  // copies wait for nothing
  for (int i = threadIdx.x % kWarpSize; i < kTokens * vectors; i += kWarpSize) {
    const int row = i / vectors, element = i % vectors * Vector<T>::kSize;
    T* const to = rows + row * kKeyPitch<T, kHeadSize> + element;
    if (token + row >= end) {
      *reinterpret_cast<Vector<T>*>(to) = {};
    } else if (is_there) {
      copy_async<kVectorBytes>(to, from + row * a.pool.slot_stride + element);
    } else {
      *reinterpret_cast<int4*>(to) = not_a_number();
    }
  }
  commit_copies();
}

// Sums of exponentials of the scores that a warp has of 16 rows: this lane's columns of two of
// them.
struct RowSums {
  float most[2] = {-INFINITY, -INFINITY};
  float weight[2] = {};

  __device__ __forceinline__ void add(int row, float score) {
    const float highest = fmaxf(most[row], score);
    weight[row] = weight[row] * exp2f(most[row] - highest) + exp2f(score - highest);
    most[row] = highest;
  }

  // Adds up the lanes of each row and writes what softmax takes; the whole warp.
  __device__ __forceinline__ void leave(int query_head, int first_query, int num_queries,
                                        SoftmaxRow* softmax_rows) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int distance = 1; distance < 4; distance *= 2) {
        const float other_most = __shfl_xor_sync(kWholeWarp, most[i], distance);
        const float other_weight = __shfl_xor_sync(kWholeWarp, weight[i], distance);
        const float highest = fmaxf(most[i], other_most);
        // Token 0 is seen by every query, but not by every lane.
        const float base = highest == -INFINITY ? 0.f : highest;
        // In the order of lanes, so that all lanes get the same bits.
        const bool first = (threadIdx.x & distance) == 0;
        const float mine = weight[i] * exp2f(most[i] - base);
        const float others = other_weight * exp2f(other_most - base);
        weight[i] = first ? mine + others : others + mine;
        most[i] = highest;
      }
      const int query = first_query + fragment_row(2 * i);
      if (threadIdx.x % 4 == 0 && query < num_queries) {
        softmax_rows[static_cast<int64_t>(query_head) * num_queries + query] = {most[i],
                                                                                1.f / weight[i]};
      }
    }
  }
};

template <typename T, int kHeadSize>
__global__ void __launch_bounds__(kMassThreads, 5)
    mass_rows(const __grid_constant__ AttentionMassArgs a, SoftmaxRow* softmax_rows) {
  FASTGEN_DYNAMIC_SHARED(T, keys);
  constexpr int kTiles = kKeyTiles<T, kHeadSize>, kTile = kTokenTile * kKeyPitch<T, kHeadSize>;
  const int query_head = blockIdx.y;
  const PromptHead head(a, query_head / a.group_size);
  const int block_query = blockIdx.x * kMassWarps * kQueryTile;
  const int first_query = block_query + threadIdx.x / kWarpSize * kQueryTile;
  const bool works = first_query < a.num_queries;
  const QueryTile<T, kHeadSize> queries(QueryRows<T>(a, query_head, works ? first_query : 0),
                                        a.pool.head_size);
  // No query of the block sees tokens from here on.
  const int end = a.first_position + min(block_query + kMassWarps * kQueryTile, a.num_queries);
  const float scale = a.scale * kLog2E;

  RowSums sums;
  constexpr int kAhead = (kTiles - 1) * kTokenTile;
  if (kAhead > 0) fetch_keys<T, kHeadSize>(head, 0, end, keys);
  for (int first = 0, stage = 0; first < end; first += kTokenTile, stage = (stage + 1) % kTiles) {
    fetch_keys<T, kHeadSize>(head, first + kAhead, end,
                             keys + (stage + kTiles - 1) % kTiles * kTile);
    wait_for_copies<kTiles - 1>();
    __syncthreads();
#pragma unroll
    for (int column = 0; works && column < kTokenTile; column += kTokenStep) {
      float scores[4];
      queries.dot(keys + stage * kTile + column * kKeyPitch<T, kHeadSize>, scores);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int position = a.first_position + first_query + fragment_row(e);
        if (first + column + fragment_column(e) > position) continue;
        sums.add(e / 2, scores[e] * scale);
      }
    }
    __syncthreads();
  }
  if (works) sums.leave(query_head, first_query, a.num_queries, softmax_rows);
}

template <typename T, int kHeadSize>
__global__ void __launch_bounds__(kMassThreads, 3)
    mass_add(const __grid_constant__ AttentionMassArgs a, const SoftmaxRow* softmax_rows) {
  FASTGEN_DYNAMIC_SHARED(unsigned char, shared);
  T* const keys = reinterpret_cast<T*>(shared);
  float* const pooled = reinterpret_cast<float*>(shared + kKeyTileBytes<T, kHeadSize>);
  constexpr int kSums = kQueryTile * kTokenTile;
  const int head = blockIdx.y, first_token = blockIdx.x * kTokenTile;
  const int end = a.first_position + a.num_queries;
  const float scale = a.scale * kLog2E;
  fetch_keys<T, kHeadSize>(PromptHead(a, head), first_token, end, keys);
  wait_for_copies<0>();
  __syncthreads();

  // The thread's own sum: of mass in the first half of the block, of energy in the second.
  const int half = threadIdx.x / kTokenTile, token = first_token + threadIdx.x % kTokenTile;
  float* const to =
      half == 0 ? a.mass + head * a.mass_stride + token : a.energy + head * a.energy_stride + token;
  float total = token < end ? *to : 0.f;

  constexpr int kWarpTokens = kTokenTile / kMassWarps;
  const int warp_column = threadIdx.x / kWarpSize * kWarpTokens;
  // Queries before this one see none of these tokens.
  const int first_seeing = a.is_replay ? 0 : max(0, first_token - a.first_position);
  int set = 0;
  for (int query = first_seeing / kQueryTile * kQueryTile; query < a.num_queries;
       query += kQueryTile, set ^= 1) {
    float mass[kWarpTokens / kTokenStep][4], energy[kWarpTokens / kTokenStep][4];
#pragma unroll
    for (int i = 0; i < kWarpTokens / kTokenStep; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) mass[i][e] = energy[i][e] = pool_start(a.pooling);
    }
    for (int g = 0; g < a.group_size; ++g) {
      const int query_head = head * a.group_size + g;
      const QueryTile<T, kHeadSize> queries(QueryRows<T>(a, query_head, query), a.pool.head_size);
      SoftmaxRow softmax[2] = {};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = query + fragment_row(2 * i);
        if (row < a.num_queries) {
          softmax[i] = softmax_rows[static_cast<int64_t>(query_head) * a.num_queries + row];
        }
      }
#pragma unroll
      for (int i = 0; i < kWarpTokens / kTokenStep; ++i) {
        const int column = warp_column + i * kTokenStep;
        float scores[4];
        queries.dot(keys + column * kKeyPitch<T, kHeadSize>, scores);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int row = query + fragment_row(e);
          const int token = first_token + column + fragment_column(e);
          const bool seen = row < a.num_queries && (a.is_replay || token <= a.first_position + row);
          const float p =
              seen ? exp2f(scores[e] * scale - softmax[e / 2].most) * softmax[e / 2].inverse : 0.f;
          mass[i][e] = pool_add(a.pooling, mass[i][e], p);
          energy[i][e] = pool_add(a.pooling, energy[i][e], p * p);
        }
      }
    }
    // [mass, energy][16 queries][64 tokens], in two sets that take turns: one barrier is enough.
    float* const sums = pooled + set * 2 * kSums;
#pragma unroll
    for (int i = 0; i < kWarpTokens / kTokenStep; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int at =
            fragment_row(e) * kTokenTile + warp_column + i * kTokenStep + fragment_column(e);
        sums[at] = pool_result(a.pooling, mass[i][e], a.group_size);
        sums[kSums + at] = pool_result(a.pooling, energy[i][e], a.group_size);
      }
    }
    __syncthreads();
#pragma unroll
    for (int q = 0; q < kQueryTile; ++q) {
      total += sums[half * kSums + q * kTokenTile + threadIdx.x % kTokenTile];
    }
  }
  if (token < end) *to = total;
}

// Launches mass_add.
template <typename T, int kHeadSize>
cudaError_t add_mass(const AttentionMassArgs& a, const SoftmaxRow* softmax_rows,
                     cudaStream_t stream) {
  const auto add = mass_add<T, kHeadSize>;
  if (const cudaError_t error = allow_shared(add, kMassAddBytes<T, kHeadSize>)) return error;
  const dim3 grid((a.first_position + a.num_queries + kTokenTile - 1) / kTokenTile,
                  a.pool.num_heads);
  return launch(add, grid, dim3(kMassThreads), kMassAddBytes<T, kHeadSize>, stream, a,
                softmax_rows);
}

}  // namespace fastgen
