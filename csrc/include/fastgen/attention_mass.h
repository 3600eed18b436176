// Attention mass: what share of softmax probability a few late queries give to every prompt token.
//
// Two sweeps over K, never an N x N map. A row is one (query, query head), numbered query * G + g.
//   normalise   item = (head, block of queries): each row's maximum and sum over tokens
//               0 .. position, tile by tile; also writes the rows for the second sweep.
//   accumulate  item = (head, tile of kTile tokens): probability of these tokens in each row,
//   pooled
//               over G, added to mass in ascending order of queries, and likewise its square to
//               energy. Sole writer of its tokens.
// Every number depends on its own row and token only, so a split of the queries over several calls
// gives the same bits. Bytes: K of the head once per item of the first sweep, once in the second.
// A tile of K is copied once, as the type it is multiplied in, and then read from the first-level
// cache by all rows.
#pragma once

#include "fastgen/dot_tile.h"

namespace fastgen {
namespace FASTGEN_ISA {

// tile[D, kTile] = K of the tokens [first_token, first_token + kTile)
template <typename T, typename R>
FASTGEN_INLINE void load_tile(const AttentionMassArgs& a, int head, int first_token, R* tile) {
  const int slots = a.pool.page_slots;
  const char* page = stock_page(a.pool, a.layer, a.block_row[first_token / slots], head);
  const T* k = reinterpret_cast<const T*>(page) + first_token % slots;
  for (int d = 0; d < a.pool.head_size; ++d) {
    copy_elements(k + static_cast<int64_t>(d) * slots, kTile, tile + d * kTile);
  }
}

// Scores of tokens after the row's own position count as minus infinity.
FASTGEN_INLINE void mask_tail(float* scores, int valid) {
  for (int t = valid; t < kTile; ++t) scores[t] = kLowest;
}

template <typename T>
static void mass_normalise_of(const AttentionMassArgs& a, int head, int query_block,
                              float* workspace) {
  typedef typename Factor<T>::Element R;
  const int d = a.pool.head_size, group = a.group_size;
  const int first_query = query_block * a.block_queries;
  const int left = a.num_queries - first_query;
  const int queries = left < a.block_queries ? left : a.block_queries;
  const int num_rows = queries * group;
  const int64_t first_row = (static_cast<int64_t>(head) * a.num_queries + first_query) * group;
  R* rows = reinterpret_cast<R*>(a.rows) + first_row * d;
  R* tile = reinterpret_cast<R*>(workspace);
  float* scores = workspace + d * kTile;
  // Lane by lane running maximum and sum: one horizontal reduction per row instead of per tile.
  float* most = scores + kTile * num_rows;
  float* sum = most + kLanes * num_rows;

  const T* query = reinterpret_cast<const T*>(a.query) + first_query * a.query_token_stride +
                   static_cast<int64_t>(head) * group * a.query_head_stride;
  for (int q = 0; q < queries; ++q) {
    load_rows(query + q * a.query_token_stride, a.query_head_stride, group, d,
              rows + static_cast<int64_t>(q) * group * d);
  }
  for (int r = 0; r < num_rows; ++r) {
    save(most + r * kLanes, broadcast(kLowest));
    save(sum + r * kLanes, Floats{});
  }

  const int last_position = a.first_position + first_query + queries - 1;
  for (int token = 0; token <= last_position; token += kTile) {
    load_tile<T>(a, head, token, tile);
    // Queries before `skip` see none of these tokens.
    const int ahead = token - (a.first_position + first_query);
    const int skip = (ahead > 0 ? ahead : 0) * group;
    dot_tile(rows + static_cast<int64_t>(skip) * d, num_rows - skip, d, tile, kTile, tile, a.scale,
             scores, kTile);
    for (int r = skip; r < num_rows; ++r) {
      float* s = scores + (r - skip) * kTile;
      mask_tail(s, a.first_position + first_query + r / group - token + 1);
      const Floats before = load(most + r * kLanes);
      Floats now = before;
      for (int t = 0; t < kTile; t += kLanes) now = maximum(now, load(s + t));
      Floats total = load(sum + r * kLanes) * exp_nonpositive(before - now);
      for (int t = 0; t < kTile; t += kLanes) total += exp_nonpositive(load(s + t) - now);
      save(most + r * kLanes, now);
      save(sum + r * kLanes, total);
    }
  }
  for (int r = 0; r < num_rows; ++r) {
    const Floats lane_most = load(most + r * kLanes);
    const float row_most = reduce_max(lane_most);
    a.maximum[first_row + r] = row_most;
    a.inverse[first_row + r] =
        1.f / reduce_sum(load(sum + r * kLanes) * exp_nonpositive(lane_most - row_most));
  }
}

template <typename T>
static void mass_accumulate_of(const AttentionMassArgs& a, int head, int tile_index,
                               float* workspace) {
  typedef typename Factor<T>::Element R;
  const int d = a.pool.head_size, group = a.group_size;
  const int token = tile_index * kTile;
  const R* rows = reinterpret_cast<const R*>(a.rows);
  R* tile = reinterpret_cast<R*>(workspace);
  float* scores = workspace + d * kTile;
  load_tile<T>(a, head, token, tile);

  const int end = a.first_position + a.num_queries;  // tokens that any query sees
  const int tokens = end - token < kTile ? end - token : kTile;
  float* out_mass = a.mass + head * a.mass_stride + token;
  float* out_energy = a.energy + head * a.energy_stride + token;
  float mass[kTile] = {}, energy[kTile] = {};
  for (int t = 0; t < tokens; ++t) {
    mass[t] = out_mass[t];
    energy[t] = out_energy[t];
  }

  int q = token > a.first_position ? token - a.first_position : 0;
  while (q < a.num_queries) {
    const int left = a.num_queries - q;
    const int queries = left < a.block_queries ? left : a.block_queries;
    const int64_t first_row = (static_cast<int64_t>(head) * a.num_queries + q) * group;
    dot_tile(rows + first_row * d, queries * group, d, tile, kTile, tile, a.scale, scores, kTile);
    for (int i = 0; i < queries; ++i) {
      const int valid = a.first_position + q + i - token + 1;
      for (int g = 0; g < group; ++g) mask_tail(scores + (i * group + g) * kTile, valid);
      for (int t = 0; t < kTile; t += kLanes) {
        Floats pooled = pool_init(a.pooling), pooled_square = pooled;
        for (int g = 0; g < group; ++g) {
          const int r = i * group + g;
          const Floats s = load(scores + r * kTile + t) - a.maximum[first_row + r];
          const Floats p = exp_nonpositive(s) * a.inverse[first_row + r];
          pooled = pool_add(a.pooling, pooled, p);
          pooled_square = pool_add(a.pooling, pooled_square, p * p);
        }
        save(mass + t, load(mass + t) + pool_result(a.pooling, pooled, group));
        save(energy + t, load(energy + t) + pool_result(a.pooling, pooled_square, group));
      }
    }
    q += queries;
  }
  for (int t = 0; t < tokens; ++t) {
    out_mass[t] = mass[t];
    out_energy[t] = energy[t];
  }
}

static void mass_normalise(const AttentionMassArgs& a, int head, int query_block,
                           float* workspace) {
  with_type(a.pool.dtype, [&](auto type) {
    mass_normalise_of<typename decltype(type)::Element>(a, head, query_block, workspace);
  });
}

static void mass_accumulate(const AttentionMassArgs& a, int head, int tile, float* workspace) {
  with_type(a.pool.dtype, [&](auto type) {
    mass_accumulate_of<typename decltype(type)::Element>(a, head, tile, workspace);
  });
}

}  // namespace FASTGEN_ISA
}  // namespace fastgen
