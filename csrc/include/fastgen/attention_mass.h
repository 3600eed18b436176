// Attention mass: what share of softmax probability a few late queries give to every prompt token.
//
// One sweep over K, never an N x N map. A row is one (query, query head); queries are taken a few
// hundred at a time (a.num_queries), and of these a block at a time.
//   mass_observe  item = (head, block of queries): scores of the block's rows over tokens
//                 0 .. position, their softmax, and per query the probabilities and their squares,
//                 pooled over G, to `pooled`.
//   mass_add      item = (head, tile of kTile tokens): adds them up in ascending order of queries.
//                 Sole writer of its tokens.
// Every number depends on its own query and token only, so a split of the queries over several
// calls gives the same bits. Bytes: K of the head once per block of queries; the block's scores,
// 4 * G per (query, token), stay in the second-level cache; `pooled` is written and read once.
// Tried and lost: a second sweep over K instead of `pooled`, which computes all scores twice.
#pragma once

#include "fastgen/dot_tile.h"

namespace fastgen {
namespace FASTGEN_ISA {

// One row's softmax over [0, end), end a multiple of kTile, of which `valid` are seen: leaves
// exp(score - maximum) in place, 0 where unseen, and returns 1 / their sum.
FASTGEN_INLINE float softmax_row(float* scores, int valid, int end) {
  for (int t = valid; t < end; ++t) scores[t] = kLowest;
  Floats most = broadcast(kLowest);
  for (int t = 0; t < end; t += kLanes) most = maximum(most, load(scores + t));
  const Floats row_most = broadcast(reduce_max(most));
  Floats sum = {};
  for (int t = 0; t < end; t += kLanes) {
    const Floats e = exp_nonpositive(load(scores + t) - row_most);
    save(scores + t, e);
    sum += e;
  }
  return 1.f / reduce_sum(sum);
}

template <typename T>
static void mass_observe_of(const AttentionMassArgs& a, int head, int query_block,
                            float* workspace) {
  typedef typename Factor<T>::Element R;
  const int d = a.pool.head_size, group = a.group_size, slots = a.pool.page_slots;
  const int first_query = query_block * a.block_queries;
  const int left = a.num_queries - first_query;
  const int queries = left < a.block_queries ? left : a.block_queries;
  const int num_rows = queries * group;
  const int seen = a.first_position + first_query + queries;  // tokens that the last query sees
  const int end = (seen + kTile - 1) / kTile * kTile;
  float* scores = workspace;  // [W*G, stride]
  R* rows = reinterpret_cast<R*>(scores + a.block_queries * group * a.pooled_stride);  // [W*G, D]

  const T* query = reinterpret_cast<const T*>(a.query) + first_query * a.query_token_stride +
                   static_cast<int64_t>(head) * group * a.query_head_stride;
  for (int q = 0; q < queries; ++q) {
    load_rows(query + q * a.query_token_stride, a.query_head_stride, group, d,
              rows + static_cast<int64_t>(q) * group * d);
  }
  const auto tile_at = [&](int token) {
    const char* page = stock_page(a.pool, a.layer, a.block_row[token / slots], head);
    return reinterpret_cast<const T*>(page) + token % slots;
  };
  for (int token = 0; token < end; token += kTile) {
    const T* tile = tile_at(token);
    const T* next = token + kTile < end ? tile_at(token + kTile) : tile;
    dot_tile(rows, num_rows, d, tile, slots, next, a.scale, scores + token, a.pooled_stride);
  }
  for (int q = 0; q < queries; ++q) {
    float* row = scores + static_cast<int64_t>(q) * group * a.pooled_stride;
    const int valid = a.first_position + first_query + q + 1;
    float* inverse = reinterpret_cast<float*>(rows);  // [G], in place of the used rows
    for (int g = 0; g < group; ++g) {
      inverse[g] = softmax_row(row + g * a.pooled_stride, valid, end);
    }
    float* to = a.pooled + ((static_cast<int64_t>(head) * a.num_queries + first_query + q) * 2) *
                               a.pooled_stride;
    for (int t = 0; t < end; t += kLanes) {
      Floats pooled = pool_init(a.pooling), pooled_square = pooled;
      for (int g = 0; g < group; ++g) {
        const Floats p = load(row + g * a.pooled_stride + t) * inverse[g];
        pooled = pool_add(a.pooling, pooled, p);
        pooled_square = pool_add(a.pooling, pooled_square, p * p);
      }
      save(to + t, pool_result(a.pooling, pooled, group));
      save(to + a.pooled_stride + t, pool_result(a.pooling, pooled_square, group));
    }
  }
}

static void mass_observe(const AttentionMassArgs& a, int head, int query_block, float* workspace) {
  with_type(a.pool.dtype, [&](auto type) {
    mass_observe_of<typename decltype(type)::Element>(a, head, query_block, workspace);
  });
}

static void mass_add(const AttentionMassArgs& a, int head, int tile) {
  const int token = tile * kTile;
  const int end = a.first_position + a.num_queries;  // tokens that any query sees
  const int tokens = end - token < kTile ? end - token : kTile;
  float* out_mass = a.mass + head * a.mass_stride + token;
  float* out_energy = a.energy + head * a.energy_stride + token;
  float mass[kTile] = {}, energy[kTile] = {};
  __builtin_memcpy(mass, out_mass, tokens * sizeof(float));
  __builtin_memcpy(energy, out_energy, tokens * sizeof(float));
  for (int q = token > a.first_position ? token - a.first_position : 0; q < a.num_queries; ++q) {
    const float* from =
        a.pooled + (static_cast<int64_t>(head) * a.num_queries + q) * 2 * a.pooled_stride + token;
    for (int t = 0; t < kTile; t += kLanes) {
      save(mass + t, load(mass + t) + load(from + t));
      save(energy + t, load(energy + t) + load(from + a.pooled_stride + t));
    }
  }
  __builtin_memcpy(out_mass, mass, tokens * sizeof(float));
  __builtin_memcpy(out_energy, energy, tokens * sizeof(float));
}

}  // namespace FASTGEN_ISA
}  // namespace fastgen
