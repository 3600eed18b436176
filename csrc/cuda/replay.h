// Replay: what a prompt's queries would read if they were asked again from behind a block of it.
//
//   replay_turn    grid (W): the queries, turned, to scratch.
//   replay_sample  grid (keys / 16, H): the keys that stand for all, side by side, to scratch. Not
//                  used with a step of 1.
//   replay_rows    grid (W / 64, H*G): the logarithm of every row's sum of exponentials, as
//   mass_rows
//                  of attention_mass.h, over several kinds of keys one after the other: those that
//                  stand for all (or all); the queries' own neighbours, for which queries are as
//                  they were; the keys of a query's own tile of 32 and the next one.
//   replay_add     grid (W / 64, H): as mass_add, but 64 tokens of the block meet the 96 queries of
//                  their tiles and the one before only, and their energy is added to `values`.
//
// Bytes: the block's keys a few times, from the second-level cache; the sample once per 64 queries
// and query head. Arithmetic of a block of 512 tokens with e keys: 2 * D * G * H * 512 * (e / 8 + 2
// * 96 + 96) operations, of which an H100 does those of an 8B model's layer at 8,192 tokens in some
// 3 us. Untested on hardware: everything.
#pragma once

#include "cuda/attention_mass.h"

namespace fastgen {

constexpr int kSampledKeys = 16;  // of a block of threads

// Keys of one kind, and the rule by which a row sees them.
enum class Keys { kAll, kSample, kNear, kBeside };

// First token of a query's own tile of 32.
__device__ __forceinline__ int tile_of(int position) { return position & ~(kTile - 1); }

// Keys of one kind that a row sees: [low, high) without [skip, resume).
struct Seen {
  int low, high, skip = 0, resume = 0;

  __device__ __forceinline__ Seen(const ReplayArgs& a, Keys kind, int position) {
    const int end = replay_end(a), tile = tile_of(position), step = a.sample_step;
    low = 0;
    high = end;
    if (kind == Keys::kNear) {
      low = position - kNear + 1;
      high = position + 1;
    } else if (kind == Keys::kBeside) {
      low = tile;
      high = min(tile + 2 * kTile, end);
    } else if (kind == Keys::kSample) {
      high = end < kSinks ? end : num_sampled(a);
      skip = tile == 0 ? 0 : kSinks + tile / step;  // those of the tiles that are summed exactly
      resume = kSinks + (tile + 2 * kTile) / step;
    }
  }

  __device__ __forceinline__ bool has(int key) const {
    return key >= low && key < high && (key < skip || key >= resume);
  }
};

template <typename T>
__global__ void __launch_bounds__(kMassThreads)
    replay_turn(const __grid_constant__ ReplayArgs a, T* turned) {
  const int d = a.pool.head_size, heads = a.pool.num_heads * a.group_size, pairs = a.turn.pairs;
  for (int i = threadIdx.x; i < heads * d; i += kMassThreads) {
    const int head = i / d, column = i % d;
    const T* row = reinterpret_cast<const T*>(a.query) + blockIdx.x * a.query_token_stride +
                   head * a.query_head_stride;
    float x = to_float(row[column]);
    if (column < 2 * pairs) {
      const int pair = a.turn.interleaved ? column / 2 : column % pairs;
      const bool is_first = a.turn.interleaved ? column % 2 == 0 : column < pairs;
      const int step = a.turn.interleaved ? 1 : pairs;
      const float other = to_float(row[is_first ? column + step : column - step]);
      const float sine = a.turn.angles[pairs + pair];
      x = x * a.turn.angles[pair] + (is_first ? -other : other) * sine;
    }
    turned[static_cast<int64_t>(blockIdx.x) * heads * d + i] = from_float<T>(x);
  }
}

template <typename T>
__global__ void __launch_bounds__(kMassThreads)
    replay_sample(const __grid_constant__ ReplayArgs a, T* sample) {
  const PromptHead head(a, blockIdx.y);
  const int vectors = a.pool.head_size / Vector<T>::kSize, count = num_sampled(a);
  const int slots = a.pool.page_slots;
  for (int i = threadIdx.x; i < kSampledKeys * vectors; i += kMassThreads) {
    const int key = blockIdx.x * kSampledKeys + i / vectors, token = sampled_token(a, key);
    if (key >= count || token >= replay_end(a)) continue;
    int4 vector = not_a_number();
    if (head.has_page(token / slots)) {
      const T* page = reinterpret_cast<const T*>(head.page(token / slots).data);
      const T* from = page + token % slots * a.pool.slot_stride;
      vector = reinterpret_cast<const int4*>(from)[i % vectors];
    }
    T* to = sample + (static_cast<int64_t>(blockIdx.y) * count + key) * a.pool.head_size;
    reinterpret_cast<int4*>(to)[i % vectors] = vector;
  }
}

// Begins to copy keys [first, first + 64) of the sample; those that are not there become zeros.
template <typename T, int kHeadSize>
__device__ __forceinline__ void fetch_sample(const ReplayArgs& a, const T* sample, int head,
                                             int first, T* keys) {
  const int vectors = a.pool.head_size / Vector<T>::kSize, count = num_sampled(a);
  for (int i = threadIdx.x; i < kTokenTile * vectors; i += kMassThreads) {
    const int key = first + i / vectors, element = i % vectors * Vector<T>::kSize;
    T* to = keys + i / vectors * kKeyPitch<T, kHeadSize> + element;
    if (key >= count || sampled_token(a, key) >= replay_end(a)) {
      *reinterpret_cast<Vector<T>*>(to) = {};
      continue;
    }
    const int64_t row = static_cast<int64_t>(head) * count + key;
    copy_async<kVectorBytes>(to, sample + row * a.pool.head_size + element);
  }
  commit_copies();
}

// Adds the exponentials of the keys of one kind to the sums of a warp's 16 queries; the block's
// threads together.
template <Keys kKind, typename T, int kHeadSize>
__device__ __forceinline__ void sum_keys(const ReplayArgs& a, const T* turned, const T* sample,
                                         T* keys, RowSums& sums) {
  constexpr int kTiles = kKeyTiles<T, kHeadSize>, kTileSize = kTokenTile * kKeyPitch<T, kHeadSize>;
  constexpr int kAhead = (kTiles - 1) * kTokenTile;
  const int query_head = blockIdx.y, head = query_head / a.group_size, d = a.pool.head_size;
  const PromptHead own(a, head);
  const int block_query = blockIdx.x * kMassWarps * kQueryTile;
  const int first_query = block_query + threadIdx.x / kWarpSize * kQueryTile;
  const bool works = first_query < a.num_queries;
  const float scale = a.scale * kLog2E;
  const float bias = kKind == Keys::kSample ? a.sample_bias * kLog2E : 0.f;

  // Keys of this kind that some query of the block sees, and more of a tile's.
  const int begin = a.first_position + block_query;
  const int last = a.first_position + min(block_query + kMassWarps * kQueryTile, a.num_queries);
  int first = 0, end = kKind == Keys::kSample ? num_sampled(a) : replay_end(a);
  if (kKind == Keys::kNear) {
    first = tile_of(max(0, begin - kNear + 1));
    end = last;
  }
  if (kKind == Keys::kBeside) {
    first = tile_of(begin);
    end = min(end, tile_of(last - 1) + 2 * kTile);
  }
  const int query = works ? first_query : 0, position = a.first_position + first_query;
  const int64_t stride = static_cast<int64_t>(a.pool.num_heads) * a.group_size * d;
  const QueryRows<T> behind(turned + query * stride + query_head * d, stride,
                            min(kQueryTile, a.num_queries - query));
  const QueryTile<T, kHeadSize> queries(
      kKind == Keys::kNear ? QueryRows<T>(a, query_head, query) : behind, d);
  const Seen seen[2] = {{a, kKind, position + fragment_row(0)},
                        {a, kKind, position + fragment_row(2)}};

  const auto fetch = [&](int from, T* to) {
    if constexpr (kKind == Keys::kSample) {
      fetch_sample<T, kHeadSize>(a, sample, head, from, to);
    } else {
      fetch_keys<T, kHeadSize>(own, from, end, to);
    }
  };
  if (kAhead > 0) fetch(first, keys);
  for (int stage = 0; first < end; first += kTokenTile, stage = (stage + 1) % kTiles) {
    fetch(first + kAhead, keys + (stage + kTiles - 1) % kTiles * kTileSize);
    wait_for_copies<kTiles - 1>();
    __syncthreads();
#pragma unroll
    for (int column = 0; works && column < kTokenTile; column += kTokenStep) {
      float scores[4];
      queries.dot(keys + stage * kTileSize + column * kKeyPitch<T, kHeadSize>, scores);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int key = first + column + fragment_column(e);
        if (!seen[e / 2].has(key)) continue;
        sums.add(e / 2, scores[e] * scale + (key < kSinks ? 0.f : bias));
      }
    }
    __syncthreads();
  }
}

template <typename T, int kHeadSize>
__global__ void __launch_bounds__(kMassThreads, 4)
    replay_rows(const __grid_constant__ ReplayArgs a, const T* turned, const T* sample,
                SoftmaxRow* softmax_rows) {
  FASTGEN_DYNAMIC_SHARED(T, keys);
  RowSums sums;
  if (a.sample_step == 1) {
    sum_keys<Keys::kAll, T, kHeadSize>(a, turned, sample, keys, sums);
  } else {
    sum_keys<Keys::kSample, T, kHeadSize>(a, turned, sample, keys, sums);
    sum_keys<Keys::kBeside, T, kHeadSize>(a, turned, sample, keys, sums);
  }
  sum_keys<Keys::kNear, T, kHeadSize>(a, turned, sample, keys, sums);
  const int warp = threadIdx.x / kWarpSize;
  const int first_query = (blockIdx.x * kMassWarps + warp) * kQueryTile;
  if (first_query < a.num_queries) {
    sums.leave(blockIdx.y, first_query, a.num_queries, softmax_rows);
  }
}

template <typename T, int kHeadSize>
__global__ void __launch_bounds__(kMassThreads)
    replay_add(const __grid_constant__ ReplayArgs a, const T* turned,
               const SoftmaxRow* softmax_rows) {
  FASTGEN_DYNAMIC_SHARED(unsigned char, shared);
  T* const keys = reinterpret_cast<T*>(shared);
  float* const pooled = reinterpret_cast<float*>(shared + kKeyTileBytes<T, kHeadSize>);
  constexpr int kSums = kQueryTile * kTokenTile;
  const int head = blockIdx.y, d = a.pool.head_size;
  const int first_token = a.first_position + blockIdx.x * kTokenTile, end = replay_end(a);
  const float scale = a.scale * kLog2E;
  const int64_t turned_stride = static_cast<int64_t>(a.pool.num_heads) * a.group_size * d;
  fetch_keys<T, kHeadSize>(PromptHead(a, head), first_token, end, keys);
  wait_for_copies<0>();
  __syncthreads();

  constexpr int kWarpTokens = kTokenTile / kMassWarps;
  const int warp_column = threadIdx.x / kWarpSize * kWarpTokens;
  float total = 0.f;  // of the thread's own token, in the first half of the block
  // Queries of the tokens' tiles and of the one before.
  const int first_query = max(0, first_token - kTile - a.first_position);
  const int last_query = min(a.num_queries, first_token + kTokenTile - a.first_position);
  int set = 0;
  for (int query = first_query; query < last_query; query += kQueryTile, set ^= 1) {
    float energy[kWarpTokens / kTokenStep][4];
#pragma unroll
    for (int i = 0; i < kWarpTokens / kTokenStep; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) energy[i][e] = pool_start(a.pooling);
    }
    for (int g = 0; g < a.group_size; ++g) {
      const int query_head = head * a.group_size + g;
      const QueryTile<T, kHeadSize> queries(
          QueryRows<T>(turned + query * turned_stride + query_head * d, turned_stride,
                       min(kQueryTile, a.num_queries - query)),
          d);
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
          const int beside = token - tile_of(a.first_position + row);
          const bool seen = row < a.num_queries && beside >= 0 && beside < 2 * kTile;
          const float p =
              seen ? exp2f(scores[e] * scale - softmax[e / 2].most) * softmax[e / 2].inverse : 0.f;
          energy[i][e] = pool_add(a.pooling, energy[i][e], p * p);
        }
      }
    }
    // [16 queries][64 tokens], in two sets that take turns: one barrier is enough.
    float* const sums = pooled + set * kSums;
#pragma unroll
    for (int i = 0; i < kWarpTokens / kTokenStep; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int at =
            fragment_row(e) * kTokenTile + warp_column + i * kTokenStep + fragment_column(e);
        sums[at] = pool_result(a.pooling, energy[i][e], a.group_size);
      }
    }
    __syncthreads();
#pragma unroll
    for (int q = 0; q < kQueryTile; ++q) total += sums[q * kTokenTile + threadIdx.x % kTokenTile];
  }
  const int token = first_token + threadIdx.x;
  if (threadIdx.x >= kTokenTile || token >= end) return;
  const PromptHead own(a, head);
  const int page = token / a.pool.page_slots;
  if (!own.has_page(page) || page < own.record().read_only) return;
  a.values[own.page(page).meta_slot + token % a.pool.page_slots] += total;
}

// Bytes of shared memory of replay_add: K, and two sets of energy [16][64].
template <typename T, int kHeadSize>
constexpr int kReplayAddBytes =
    kKeyTileBytes<T, kHeadSize> + 2 * kQueryTile * kTokenTile * static_cast<int>(sizeof(float));

}  // namespace fastgen
