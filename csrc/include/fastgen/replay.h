// Replay: what a block of a prompt's queries would read if they were asked again from behind it.
//
// A query that is turned to a position behind all keys sees all of them, as one that comes later
// would. Rows are (query, query head), 32 queries at a time:
//   replay_sample  item = (head, tile): gathers the first keys and every step-th other one, which
//                  stand for all in the sums below. Not used with a step of 1.
//   replay_rows    item = (head, tile of 32 queries): sums exponentials of the rows as they were
//                  over the kNear tokens up to their own, of the turned rows over the sample, and
//                  exactly over the keys of its own tile and the next one; these two tiles get the
//                  energy. The row that finds a token is mostly the one before it.
//   replay_add     item = (head, tile of 32 tokens): adds the energy of two tiles of queries to the
//                  tokens' values, beside their K and V.
//
//   tiles of K    0 ... u-1  u  u+1 ... end    rows of tile u, W / 32 of them
//   turned rows   s s s s s  #  #   s s s s    #: all keys, and energy; s: the sample
//   rows as is            n  n                 n: those at most kNear - 1 before the row's own
//
// Arithmetic for each row: D * (4 * 32 + sampled keys) products; with a step of 8 a fifth of what
// the prefill's attention has at 1,024 tokens. Bytes: K once for the sample, the sample and four
// tiles of K once for each 32 queries, from a cache.
#pragma once

#include "fastgen/rows.h"
#include "fastgen/tiles.h"

namespace fastgen {
namespace FASTGEN_ISA {

constexpr int kChunkScores = 256;  // of the sample, between two looks at a row's maximum
constexpr int kExact = 2 * kTile;  // tokens of a tile and the next one

// Element of column d of a token in a tile of K, `stride` from one column to the next.
template <typename T>
FASTGEN_INLINE int64_t tile_element(const T*, int token, int d, int stride, int) {
  return static_cast<int64_t>(d) * stride + token;
}
FASTGEN_INLINE int64_t tile_element(const PairedBFloat*, int token, int d, int, int head_size) {
  return pair_lane(token, head_size) + d / 2 * 2 * kPairLanes + d % 2;
}

template <typename T>
FASTGEN_INLINE const T* prompt_tile(const ReplayArgs& a, int head, int token) {
  const char* page =
      stock_page(a.pool, a.layer, a.block_row.blocks[token / a.pool.page_slots], head);
  return key_tile(reinterpret_cast<const T*>(page), token % a.pool.page_slots, a.pool.head_size);
}

template <typename T>
FASTGEN_INLINE T* sample_tile(const ReplayArgs& a, int head, int tile) {
  return reinterpret_cast<T*>(a.sample) +
         (static_cast<int64_t>(head) * a.sample_tiles + tile) * kTile * a.pool.head_size;
}

static void replay_sample(const ReplayArgs& a, int head, int tile) {
  const int d = a.pool.head_size, slots = a.pool.page_slots;
  with_type(a.pool, [&](auto type) {
    typedef typename decltype(type)::Element T;
    T* to = sample_tile<T>(a, head, tile);
    for (int t = 0; t < kTile; ++t) {
      const int token = sampled_token(a, tile * kTile + t);
      const bool is_there = token < replay_end(a);
      const T* from = is_there ? prompt_tile<T>(a, head, token / kTile * kTile) : nullptr;
      for (int i = 0; i < d; ++i) {
        to[tile_element(to, t, i, kTile, d)] =
            is_there ? from[tile_element(from, token % kTile, i, slots, d)] : T{};
      }
    }
  });
}

template <typename T>
static void replay_rows_of(const ReplayArgs& a, int head, int tile, float* workspace) {
  typedef typename Factor<T>::Element R;
  const int d = a.pool.head_size, slots = a.pool.page_slots, group = a.group_size;
  const int end = replay_end(a), first = tile * kTile, token = a.first_position + first;
  const int queries = a.num_queries - first < kTile ? a.num_queries - first : kTile;
  const int num_rows = queries * group;

  float* exact = workspace;                        // [rows, kExact]
  float* others = exact + kTile * group * kExact;  // [rows, kChunkScores]
  ExpSum* sums = reinterpret_cast<ExpSum*>(others + kTile * group * kChunkScores);  // [rows]
  R* rows = reinterpret_cast<R*>(sums + kTile * group);                             // [rows, D]
  R* turned = rows + static_cast<int64_t>(kTile) * group * d;
  load_queries<T>(a, head, first, queries, rows, turned);
  for (int row = 0; row < num_rows; ++row) sums[row] = {};
  const Tiles<T> tiles(num_rows);

  const int near_tiles = token > 0 ? 2 : 1, near_token = token - (near_tiles - 1) * kTile;
  for (int i = 0; i < near_tiles; ++i) {
    const T* k = prompt_tile<T>(a, head, near_token + i * kTile);
    tiles.dot(rows, d, k, slots, k, 1.f, others + i * kTile, kChunkScores);
  }
  for (int row = 0; row < num_rows; ++row) {
    add_near(sums[row], others + row * kChunkScores, a.scale, near_token, token + row / group);
  }

  // All other keys, or those that stand for them.
  float bias[kChunkScores];
  const int count = a.sample_step == 1 ? end : num_sampled(a);
  for (int from = 0; from < count; from += kChunkScores) {
    const int width = count - from < kChunkScores ? count - from : kChunkScores;
    const int whole = (width + kTile - 1) / kTile * kTile;
    bool is_any = false;
    for (int i = 0; i < whole; ++i) {
      const int other = a.sample_step == 1 ? from + i : sampled_token(a, from + i);
      const bool counts = other < end && (other < token || other >= token + kExact);
      bias[i] = !counts ? kLowest : from + i < kSinks || a.sample_step == 1 ? 0.f : a.sample_bias;
      is_any |= counts;
    }
    if (!is_any) continue;
    for (int i = 0; i < whole; i += kTile) {
      const T* k = a.sample_step == 1 ? prompt_tile<T>(a, head, from + i)
                                      : sample_tile<T>(a, head, (from + i) / kTile);
      tiles.dot(turned, d, k, a.sample_step == 1 ? slots : kTile, k, 1.f, others + i, kChunkScores);
    }
    for (int row = 0; row < num_rows; ++row) {
      add_exponentials(sums[row], others + row * kChunkScores, a.scale, bias, whole);
    }
  }

  const int seen = end - token < kExact ? end - token : kExact;
  const int exact_end = (seen + kTile - 1) / kTile * kTile;
  for (int i = 0; i < exact_end; i += kTile) {
    const T* k = prompt_tile<T>(a, head, token + i);
    tiles.dot(turned, d, k, slots, k, 1.f, exact + i, kExact);
  }
  float* inverses = others;  // [rows]
  for (int row = 0; row < num_rows; ++row) {
    inverses[row] = softmax_row(exact + row * kExact, a.scale, seen, exact_end, sums[row]);
  }
  float* parts = a.parts + (static_cast<int64_t>(head) * replay_tiles(a) + tile) * kExact;
  for (int t = 0; t < exact_end; t += kLanes) {
    Floats energy = {};
    for (int q = 0; q < queries; ++q) {
      Floats pooled = pool_init(a.pooling);
      for (int row = q * group; row < (q + 1) * group; ++row) {
        const Floats p = load(exact + row * kExact + t) * inverses[row];
        pooled = pool_add(a.pooling, pooled, p * p);
      }
      energy += pool_result(a.pooling, pooled, group);
    }
    save(parts + t, energy);
  }
}

static void replay_rows(const ReplayArgs& a, int head, int tile, float* workspace) {
  with_type(a.pool, [&](auto type) {
    replay_rows_of<typename decltype(type)::Element>(a, head, tile, workspace);
  });
}

static void replay_add(const ReplayArgs& a, int head, int tile) {
  const float* parts = a.parts + (static_cast<int64_t>(head) * replay_tiles(a) + tile) * kExact;
  const int first = tile * kTile, slots = a.pool.page_slots;
  const int token = a.first_position + first;
  const int count = a.num_queries - first < kTile ? a.num_queries - first : kTile;
  const int64_t page = static_cast<int64_t>(a.block_row.blocks[token / slots]) * a.pool.num_layers *
                           a.pool.num_heads +
                       static_cast<int64_t>(a.layer) * a.pool.num_heads + head;
  float* values = a.values + page * slots + token % slots;
  for (int t = 0; t < count; ++t) {
    const float before = tile > 0 ? parts[t - kTile] : 0.f;  // of the tile of queries before
    values[t] += parts[t] + before;
  }
}

}  // namespace FASTGEN_ISA
}  // namespace fastgen
