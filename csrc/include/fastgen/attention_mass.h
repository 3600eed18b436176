// Attention mass: what share of softmax probability a few late queries give to every prompt token.
//
// One sweep over K, never an N x N map. A row is one (query, query head); queries are taken a block
// at a time.
//   mass_observe  item = (head, block of queries): scores of the block's rows over tokens
//                 0 .. position and their softmax, left in the worker's workspace.
//   mass_add      the same item, once the head's earlier blocks are done: adds probabilities and
//                 squares, pooled over G, to `mass` and `energy` in ascending order of queries.
//                 Sole writer of the head meanwhile.
// Every number depends on its own query and token only, and queries are added one by one, so a
// split of the queries over several calls gives the same bits. Bytes: K of the head once per block
// of queries; the block's scores, 4 * G per (query, token), stay in the second-level cache. Tried
// and lost: a second sweep over K, which computes all scores twice; pooled probabilities of all
// queries in memory, added up by a second kernel.
//
// In a replay (fastgen/replay.h) rows are turned behind all keys and see all of them; what a row as
// it was sees of its nearest tokens is in its sum, too.
#pragma once

#include "fastgen/rows.h"
#include "fastgen/tiles.h"

namespace fastgen {
namespace FASTGEN_ISA {

// Where a block's scores and what its rows are multiplied with lie in the workspace.
struct MassBlock {
  int first_query;
  int num_queries;
  int end;          // tokens that its last query sees, rounded up to whole tiles
  float* scores;    // [W*G, score_stride]
  float* inverses;  // [W*G] 1 / sum of each row's softmax, in place of the used query rows
};

FASTGEN_INLINE MassBlock mass_block(const AttentionMassArgs& a, int index, float* workspace) {
  const int first = index * a.block_queries;
  const int left = a.num_queries - first;
  const int queries = left < a.block_queries ? left : a.block_queries;
  const int seen = a.first_position + (a.is_replay ? a.num_queries : first + queries);
  const int near = a.is_replay ? kNear : 0;  // a row's near scores stand before the others
  return {first, queries, (seen + kTile - 1) / kTile * kTile, workspace + near,
          workspace + a.block_queries * a.group_size * a.score_stride};
}

template <typename T>
static void mass_observe_of(const AttentionMassArgs& a, int head, const MassBlock& block) {
  typedef typename Factor<T>::Element R;
  const int d = a.pool.head_size, group = a.group_size, slots = a.pool.page_slots;
  R* rows = reinterpret_cast<R*>(block.inverses);  // [W*G, D]

  const int num_rows = block.num_queries * group;
  R* as_is = rows + static_cast<int64_t>(a.block_queries) * group * d;  // of a replay
  const auto* query = reinterpret_cast<const typename Type<T>::Plain*>(a.query) +
                      block.first_query * a.query_token_stride +
                      static_cast<int64_t>(head) * group * a.query_head_stride;
  for (int q = 0; q < block.num_queries && !a.is_replay; ++q) {
    load_rows(query + q * a.query_token_stride, a.query_head_stride, group, d,
              rows + static_cast<int64_t>(q) * group * d);
  }
  if (a.is_replay) load_queries<T>(a, head, block.first_query, block.num_queries, as_is, rows);
  const auto tile_at = [&](int token) { return prompt_tile<T>(a, head, token); };
  const Tiles<T> tiles(num_rows);
  const T* tile = tile_at(0);
  for (int token = 0; token < block.end; token += kTile) {
    const T* next = token + kTile < block.end ? tile_at(token + kTile) : tile;
    tiles.dot(rows, d, tile, slots, next, 1.f, block.scores + token, a.score_stride);
    tile = next;
  }
  const int first = a.first_position + block.first_query;
  if (a.is_replay) {
    float* near_scores = block.inverses + 2 * static_cast<int64_t>(a.block_queries) * group * d;
    // Of whole tiles, from the first row's first near token on; that tile may precede all.
    const int before = first < kNear - 1 ? -kTile : (first - kNear + 1) / kTile * kTile;
    if (before < 0) no_scores(near_scores, num_rows, kMostNear, kTile);
    for (int token = before < 0 ? 0 : before; token < first + block.num_queries; token += kTile) {
      tile = tile_at(token);
      tiles.dot(as_is, d, tile, slots, tile, 1.f, near_scores + token - before, kMostNear);
    }
    for (int row = 0; row < num_rows; ++row) {
      const int skipped = first + row / group - kNear + 1 - before;
      copy_near(near_scores + row * kMostNear + skipped,
                block.scores + row * a.score_stride - kNear);
    }
  }
  const int near = a.is_replay ? kNear : 0;
  for (int row = 0; row < num_rows; ++row) {
    const int valid = a.is_replay ? a.first_position + a.num_queries : first + row / group + 1;
    block.inverses[row] = softmax_row(block.scores + row * a.score_stride - near, a.scale,
                                      near + valid, near + block.end);
  }
}

static void mass_observe(const AttentionMassArgs& a, int head, int query_block, float* workspace) {
  const MassBlock block = mass_block(a, query_block, workspace);
  with_type(a.pool,
            [&](auto type) { mass_observe_of<typename decltype(type)::Element>(a, head, block); });
}

// Adds the block's probabilities of kTile tokens, and their squares. One copy for whole and partial
// tiles: compiled twice, products and sums could be fused in one and not in the other.
static __attribute__((noinline)) void mass_add_tile(const AttentionMassArgs& a,
                                                    const MassBlock& block, int token, float* mass,
                                                    float* energy) {
  const int group = a.group_size;
  for (int t = 0; t < kTile; t += kLanes) {
    Floats mass_sum = load(mass + t), energy_sum = load(energy + t);
    const float* scores = block.scores + token + t;
    for (int q = 0; q < block.num_queries; ++q) {
      Floats pooled = pool_init(a.pooling), pooled_square = pooled;
      for (int row = q * group; row < (q + 1) * group; ++row) {
        const Floats p = load(scores + row * a.score_stride) * block.inverses[row];
        pooled = pool_add(a.pooling, pooled, p);
        pooled_square = pool_add(a.pooling, pooled_square, p * p);
      }
      mass_sum += pool_result(a.pooling, pooled, group);
      energy_sum += pool_result(a.pooling, pooled_square, group);
    }
    save(mass + t, mass_sum);
    save(energy + t, energy_sum);
  }
}

static void mass_add(const AttentionMassArgs& a, int head, int query_block, float* workspace) {
  const MassBlock block = mass_block(a, query_block, workspace);
  const int seen =
      a.first_position + (a.is_replay ? a.num_queries : block.first_query + block.num_queries);
  float* mass = a.mass + head * a.mass_stride;
  float* energy = a.energy + head * a.energy_stride;
  int token = 0;
  for (; token + kTile <= seen; token += kTile) {
    mass_add_tile(a, block, token, mass + token, energy + token);
  }
  if (token == seen) return;
  // The sums need not have room for whole tiles.
  const size_t rest = (seen - token) * sizeof(float);
  float last_mass[kTile] = {}, last_energy[kTile] = {};
  __builtin_memcpy(last_mass, mass + token, rest);
  __builtin_memcpy(last_energy, energy + token, rest);
  mass_add_tile(a, block, token, last_mass, last_energy);
  __builtin_memcpy(mass + token, last_mass, rest);
  __builtin_memcpy(energy + token, last_energy, rest);
}

}  // namespace FASTGEN_ISA
}  // namespace fastgen
