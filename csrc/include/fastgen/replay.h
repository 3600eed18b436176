// Replay: what a block of a prompt's queries would read if they were asked again from behind it.
//
// A query that is turned to a position behind all keys sees all of them, as one that comes later
// would. Rows are (query, query head), 32 queries at a time:
//   replay_sample  item = (head, tile): gathers the first keys and every step-th other one, which
//                  stand for all in the sums below. Not used with a step of 1.
//   replay_rows    item = (head, tile of 32 queries): sums exponentials of the rows as they were
//                  over the kNear tokens up to their own, of the turned rows over the sample, and
//                  exactly over the keys of its own tile and the next one; these two tiles get the
//                  energy. The row that finds a token is mostly the one before it. All scores of a
//                  row lie side by side, so that one maximum and one sum serve them.
//   replay_add     item = (head, tile of 32 tokens): adds the energy of two tiles of queries to the
//                  tokens' values, beside their K and V.
//
//   tiles of K    0 ... u-1  u  u+1 ... end    rows of tile u, W / 32 of them
//   turned rows   s s s s s  #  #   s s s s    #: all keys, and energy; s: the sample
//   rows as is            n  n                 n: those at most kNear - 1 before the row's own
//
// Arithmetic for each row: D * (4 * 32 + sampled keys) products; with a step of 16 a sixth of what
// the prefill's attention has at 1,024 tokens. Bytes: K once for the sample, the sample and four
// tiles of K once for each 32 queries, from a cache.
#pragma once

#include "fastgen/rows.h"
#include "fastgen/tiles.h"

namespace fastgen {
namespace FASTGEN_ISA {

// A row of scores: of its near tokens, of those of its tile and the next one, and of other keys.
constexpr int kExact = 2 * kTile;
constexpr int kOthers = kNear + kExact;
constexpr int kMostOthers = kReplayRow - 16 - kOthers;  // between two looks at a row's maximum

// Element of column d of a token in a tile of K, `stride` from one column to the next.
template <typename T>
FASTGEN_INLINE int64_t tile_element(const T*, int token, int d, int stride, int) {
  return static_cast<int64_t>(d) * stride + token;
}
FASTGEN_INLINE int64_t tile_element(const PairedBFloat*, int token, int d, int, int head_size) {
  return pair_lane(token, head_size) + d / 2 * 2 * kPairLanes + d % 2;
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

// Sums of exponentials of some rows so far: totals[r] * exp(most[r]).
struct RowSums {
  float* most;
  float* totals;
  float* next;  // maxima to come
  int num_rows;
};

// Adds exp(scale * score + bias) of a few columns of all rows; those of the first `kept` stay in
// place, relative to the new maximum. Rows are taken by steps, each over all of them: a step of a
// row waits for no other row, and what is done once for a row is done for kLanes rows.
static void add_exponentials(const RowSums& sums, float* scores, float scale, const float* bias,
                             int count, int kept) {
  const int whole = (sums.num_rows + kLanes - 1) / kLanes * kLanes;
  for (int row = 0; row < sums.num_rows; ++row) {
    const float* from = scores + row * kReplayRow;
    Floats most = broadcast(kLowest);
    for (int t = 0; t < count; t += kLanes) {
      most = maximum(most, load(from + t) * scale + load(bias + t));
    }
    sums.next[row] = reduce_max(most);
  }
  for (int row = 0; row < whole; row += kLanes) {
    const Floats before = load(sums.most + row), most = maximum(before, load(sums.next + row));
    save(sums.totals + row, load(sums.totals + row) * exp_nonpositive(before - most));
    save(sums.most + row, most);
  }
  for (int row = 0; row < sums.num_rows; ++row) {
    float* from = scores + row * kReplayRow;
    const float most = sums.most[row];
    Floats total = {};
    const auto exponential = [&](int t) {
      const Floats e = exp_nonpositive(load(from + t) * scale + load(bias + t) - most);
      total += e;
      return e;
    };
    int t = 0;
    for (; t < kept; t += kLanes) save(from + t, exponential(t));
    for (; t < count; t += kLanes) exponential(t);
    sums.totals[row] += reduce_sum(total);
  }
}

template <typename T>
static void replay_rows_of(const ReplayArgs& a, int head, int tile, float* workspace) {
  typedef typename Factor<T>::Element R;
  const int d = a.pool.head_size, slots = a.pool.page_slots, group = a.group_size;
  const int end = replay_end(a), first = tile * kTile, token = a.first_position + first;
  const int queries = a.num_queries - first < kTile ? a.num_queries - first : kTile;
  const int num_rows = queries * group;
  const int64_t most_rows = static_cast<int64_t>(kTile) * group;  // whole vectors

  float* scores = workspace;  // [rows, kReplayRow]
  float* others = scores + kOthers;
  float* most = scores + most_rows * kReplayRow;
  const RowSums sums = {most, most + most_rows, most + 2 * most_rows, num_rows};
  R* rows = reinterpret_cast<R*>(most + 3 * most_rows);  // [rows, D]
  R* turned = rows + most_rows * d;
  load_queries<T>(a, head, first, queries, rows, turned);
  for (int row = 0; row < most_rows; row += kLanes) {
    save(sums.most + row, broadcast(kLowest));
    save(sums.totals + row, Floats{});
    save(sums.next + row, broadcast(kLowest));
  }
  const Tiles<T> tiles(num_rows);
  const auto dot = [&](const R* of, const T* k, int stride, float* to) {
    tiles.dot(of, d, k, stride, k, 1.f, to, kReplayRow);
  };

  // Near tokens are in the row's own tile and the one before; only theirs are left of these.
  if (token == 0) {
    no_scores(others, num_rows, kReplayRow, kTile);
  } else {
    dot(rows, prompt_tile<T>(a, head, token - kTile), slots, others);
  }
  dot(rows, prompt_tile<T>(a, head, token), slots, others + kTile);
  for (int row = 0; row < num_rows; ++row) {
    copy_near(others + row * kReplayRow + row / group + 1, scores + row * kReplayRow);
  }

  float bias[kReplayRow] = {};  // of a column of scores; kLowest: it does not count
  const int seen = end - token < kExact ? end - token : kExact;
  for (int i = 0; i < kExact; i += kTile) {
    if (i < seen) dot(turned, prompt_tile<T>(a, head, token + i), slots, scores + kNear + i);
  }
  if (seen < kExact) no_scores(scores + kNear + seen, num_rows, kReplayRow, kExact - seen);

  // All other keys, or those that stand for them; with the last of them what is exact.
  const int count = a.sample_step == 1 ? end : num_sampled(a);
  for (int from = 0; from < count; from += kMostOthers) {
    const int width = count - from < kMostOthers ? count - from : kMostOthers;
    const int padded = (width + kTile - 1) / kTile * kTile;
    for (int i = 0; i < padded; ++i) {
      const int other = a.sample_step == 1 ? from + i : sampled_token(a, from + i);
      const bool counts = other < end && (other < token || other >= token + kExact);
      bias[kOthers + i] = !counts                                   ? kLowest
                          : from + i < kSinks || a.sample_step == 1 ? 0.f
                                                                    : a.sample_bias;
    }
    for (int i = 0; i < padded; i += kTile) {
      const bool is_all = a.sample_step == 1;
      const T* k =
          is_all ? prompt_tile<T>(a, head, from + i) : sample_tile<T>(a, head, (from + i) / kTile);
      dot(turned, k, is_all ? slots : kTile, others + i);
    }
    if (a.sample_step == 1 && width < padded) {  // slots without a token may hold NaN
      no_scores(others + width, num_rows, kReplayRow, padded - width);
    }
    const bool is_last = from + kMostOthers >= count;
    const int skipped = is_last ? 0 : kOthers;
    const int columns = kOthers + (width + kLanes - 1) / kLanes * kLanes - skipped;
    add_exponentials(sums, scores + skipped, a.scale, bias + skipped, columns, kOthers - skipped);
  }

  float* inverses = sums.next;  // [rows]
  for (int row = 0; row < most_rows; row += kLanes)
    save(inverses + row, 1.f / load(sums.totals + row));
  float* parts = a.parts + (static_cast<int64_t>(head) * replay_tiles(a) + tile) * kExact;
  const float* exact = scores + kNear;
  for (int t = 0; t < kExact; t += kLanes) {
    Floats energy = {};
    for (int q = 0; q < queries; ++q) {
      Floats pooled = pool_init(a.pooling);
      for (int row = q * group; row < (q + 1) * group; ++row) {
        const Floats p = load(exact + row * kReplayRow + t) * inverses[row];
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
  const HeadRecord& record = record_of(a, head);
  if (token / slots < record.read_only) return;
  const StreamPage page = head_page(a.pool, a.block_row, record, token / slots);
  float* values = a.values + page.meta_slot + token % slots;
  for (int t = 0; t < count; ++t) {
    const float before = tile > 0 ? parts[t - kTile] : 0.f;  // of the tile of queries before
    values[t] += parts[t] + before;
  }
}

}  // namespace FASTGEN_ISA
}  // namespace fastgen
