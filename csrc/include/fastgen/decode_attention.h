// Decode attention: one query per request over the ragged pages of each head.
//
//   decode_part    item = (request, head, part of its pages): softmax over the part, a run of
//                  pages at a time, each byte of K and V read once for all G query heads; writes
//                  one unmerged state.
//   decode_finish  item = (request, head): merges its parts in page order, writes the output rows
//                  and, for heads that value tokens, adds the pooled probabilities, or their
//                  squares, to `values`.
// Parts have a fixed length, so results depend neither on the number of threads nor on the other
// requests of the step. Bytes: 2 * D elements per slot; 4 * G per slot of scores stay in cache.
// K and V of a run of pages are taken together, so that the prefetch goes a whole run ahead; heads
// that value tokens keep their scores, because probabilities are known only after the last page.
// During its last run a part prefetches the first one of the part that its thread does next; and
// all along the values that decode_finish will add to.
//
// State of a part, in floats: [G, D] sum of exp(score - maximum) * V, [G] maximum, [G] sum of exp.
#pragma once

#include "fastgen/tiles.h"

namespace fastgen {
namespace FASTGEN_ISA {

// sum[r, :] += acc[r, :]
template <int kRows, int kVectors>
FASTGEN_INLINE void add_rows(const Floats (&acc)[kRows][kVectors], int64_t head_size, float* sum) {
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      float* to = sum + r * head_size + j * kLanes;
      save(to, load(to) + acc[r][j]);
    }
  }
}

// sum[g, d:d+kVectors*kLanes] += p[g, t] * V[t, ...] over the tokens of one page. A page is summed
// by itself first: over long heads that loses less than one running sum.
template <int kRows, int kVectors, typename T>
FASTGEN_INLINE void weigh_rows(const float* p, int64_t p_stride, int num_tokens, const T* v,
                               const T* ahead, int64_t head_size, float* sum) {
  Floats acc[kRows][kVectors] = {};
  for (int t = 0; t < num_tokens; ++t) {
    const T* token = v + static_cast<int64_t>(t) * head_size;
    prefetch_span<kVectors * kLanes>(ahead + static_cast<int64_t>(t) * head_size);
    Floats x[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) x[j] = load(token + j * kLanes);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) acc[r][j] += p[r * p_stride + t] * x[j];
    }
  }
  add_rows(acc, head_size, sum);
}

#if FASTGEN_BF16_DOT
// Two tokens at a time, with probabilities rounded to bfloat16, as torch's own attention does.
template <int kRows, int kVectors>
FASTGEN_INLINE void weigh_rows(const BFloat* p, int64_t p_stride, int num_tokens, const BFloat* v,
                               const BFloat* ahead, int64_t head_size, float* sum) {
  constexpr int kHalves = kVectors / 2;
  Floats acc[kRows][kHalves][2] = {};
  for (int t = 0; t < num_tokens; t += 2) {
    const BFloat* token = v + static_cast<int64_t>(t) * head_size;
    prefetch_span<kVectors * kLanes>(ahead + static_cast<int64_t>(t) * head_size);
    prefetch_span<kVectors * kLanes>(ahead + static_cast<int64_t>(t + 1) * head_size);
    const bool alone = t + 1 == num_tokens;  // what follows may be NaN
#pragma GCC unroll 4
    for (int j = 0; j < kHalves; ++j) {
      const __m512i first = load_pairs(token + j * kTile);
      const __m512i second = alone ? __m512i{} : load_pairs(token + head_size + j * kTile);
      const Paired pairs = pair_up(first, second);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) add_products(pairs, p + r * p_stride + t, acc[r][j]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kHalves; ++j) {
      put_in_order(acc[r][j]);
      float* to = sum + r * head_size + j * kTile;
      save(to, load(to) + acc[r][j][0]);
      save(to + kLanes, load(to + kLanes) + acc[r][j][1]);
    }
  }
}
#endif

template <int kVectors, typename R, typename T>
FASTGEN_INLINE void weigh_columns(const R* p, int64_t p_stride, int num_rows, int num_tokens,
                                  const T* v, const T* ahead, int64_t head_size, float* sum) {
  for_row_batches<4>(num_rows, [&](int r, auto count) {
    weigh_rows<decltype(count)::value, kVectors>(p + r * p_stride, p_stride, num_tokens, v, ahead,
                                                 head_size, sum + r * head_size);
  });
}

template <typename R, typename T>
static void weigh_page(const R* p, int64_t p_stride, int, int num_rows, int num_tokens, const T* v,
                       const T* ahead, int64_t head_size, float* sum) {
  constexpr int kWide = kMaxRegisters / 8;  // four rows of accumulators fill half the registers
  int64_t d = 0;
  for (; d + kWide * kLanes <= head_size; d += kWide * kLanes) {
    weigh_columns<kWide>(p, p_stride, num_rows, num_tokens, v + d, ahead + d, head_size, sum + d);
  }
  for (; d < head_size; d += 2 * kLanes) {
    weigh_columns<2>(p, p_stride, num_rows, num_tokens, v + d, ahead + d, head_size, sum + d);
  }
}

// As above, of a page in pairs: two tokens at a time lie side by side.
template <int kRows, int kVectors>
FASTGEN_INLINE void weigh_pairs(const PairFactor* p, int64_t p_stride, int slots, int num_tokens,
                                const PairedBFloat* v, const PairedBFloat* ahead, int64_t head_size,
                                float* sum) {
  Floats acc[kRows][kVectors] = {};
  for (int t = 0; t < num_tokens; t += 2) {
    const bool alone = t + 1 == num_tokens;  // what follows may be NaN
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      const int64_t line = pair_lane(j * kLanes, slots) + static_cast<int64_t>(t) * kPairLanes;
      prefetch_span<2 * kLanes>(ahead + line);
      const Pairs both = load_pairs(v + line);
      const Pairs x = alone ? first_only(both) : both;
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) acc[r][j] = add_products(x, p + r * p_stride + t, acc[r][j]);
    }
  }
  add_rows(acc, head_size, sum);
}

static void weigh_page(const PairFactor* p, int64_t p_stride, int slots, int num_rows,
                       int num_tokens, const PairedBFloat* v, const PairedBFloat* ahead,
                       int64_t head_size, float* sum) {
  const auto weigh_columns = [&](int d, auto vectors) {
    const int64_t from = pair_lane(d, slots);
    for_row_batches<4>(num_rows, [&](int r, auto rows) {
      weigh_pairs<decltype(rows)::value, decltype(vectors)::value>(
          p + r * p_stride, p_stride, slots, num_tokens, v + from, ahead + from, head_size,
          sum + r * head_size + d);
    });
  };
  constexpr int kWide = kMaxRegisters / 8;  // four rows of accumulators fill half the registers
  int d = 0;
  for (; d + kWide * kLanes <= head_size; d += kWide * kLanes) weigh_columns(d, Count<kWide>());
  for (; d < head_size; d += 2 * kLanes) weigh_columns(d, Count<2>());
}

template <typename R, typename T>
FASTGEN_INLINE void weigh(const Tiles<T>&, const R* p, int64_t p_stride, int slots, int num_rows,
                          int num_tokens, const T* v, const T* ahead, int head_size, float* sum) {
  weigh_page(p, p_stride, slots, num_rows, num_tokens, v, ahead, head_size, sum);
}
#if FASTGEN_AMX
FASTGEN_INLINE void weigh(const Tiles<PairedBFloat>& tiles, const BFloat* p, int64_t p_stride,
                          int slots, int num_rows, int num_tokens, const PairedBFloat* v,
                          const PairedBFloat* ahead, int head_size, float* sum) {
  if (num_tokens == slots) return tiles.weigh(p, p_stride, slots, v, ahead, head_size, sum);
  weigh_page(p, p_stride, slots, num_rows, num_tokens, v, ahead, head_size, sum);
}
#endif

static const HeadRecord& head_of(const DecodeArgs& a, const DecodePart& part) {
  return record_of(a.step, a.pool, part.request, part.head);
}

// The i-th page of a part.
static StreamPage page_of_part(const DecodeArgs& a, const DecodePart& part, int i) {
  return head_page(a.pool, row_of(a.step, part.request), head_of(a, part), part.first_page + i);
}

// Slots of whole pages whose scores become weights together: it spares steps of the softmax, which
// with tiles are most of the arithmetic; elsewhere it is no gain (docs/benchmarks.md).
constexpr int kRunSlots = FASTGEN_AMX ? kMostRunSlots : kTile;
constexpr int kMostPages = kMostRunSlots / kTile;
// Whether V of the next page is asked for before the softmax too, so that memory stays busy while
// scores become weights. That the weighing asks again for the same lines is measured to be worth
// it, but with AMX.
constexpr bool kPrefetchValues = !FASTGEN_AMX;

template <typename T>
FASTGEN_INLINE void prefetch_elements(const T* p, int64_t count) {
  for (int64_t i = 0; i < count; i += kTile) prefetch_span<kTile>(p + i);
}

template <typename T>
static void decode_part_of(const DecodeArgs& a, const DecodePart& part, const DecodePart& following,
                           float* workspace) {
  typedef typename Factor<T>::Element R;
  const int d = a.pool.head_size, group = a.group_size, slots = a.pool.page_slots;
  const int num_pages = (part.num_slots + slots - 1) / slots;
  const int64_t score_stride = static_cast<int64_t>(a.part_pages) * slots;
  const bool by_value = values_tokens(head_of(a, part).rule);
  // Past its last page a part goes on with those of the following one, to fetch them ahead.
  const int following_pages = (following.num_slots + slots - 1) / slots;
  const auto page_of = [&](int page) {
    const int beyond = page - num_pages, last = following_pages - 1;
    const StreamPage found = beyond < 0 ? page_of_part(a, part, page)
                                        : page_of_part(a, following, beyond < last ? beyond : last);
    for (int t = 0; by_value && t < slots; t += kTile) {
      prefetch_span<kTile>(a.values + found.meta_slot + t);
    }
    return reinterpret_cast<const T*>(found.data);
  };
  const int64_t half_page = static_cast<int64_t>(slots) * d;

  const auto* query = reinterpret_cast<const typename Type<T>::Plain*>(a.query) +
                      a.step.token_index[part.request] * a.query_token_stride +
                      static_cast<int64_t>(part.head) * group * a.query_head_stride;
  float* totals = workspace;                                                      // [G, kLanes]
  R* rows = reinterpret_cast<R*>(totals + static_cast<int64_t>(group) * kLanes);  // [G, D]
  R* weights = rows + static_cast<int64_t>(group) * d;                            // [G, run * S]
  load_rows(query, a.query_head_stride, group, d, rows);

  float* sum = part.state;
  float* most = sum + static_cast<int64_t>(group) * d;
  float* total = most + group;
  for (int g = 0; g < group; ++g) {
    most[g] = kLowest;
    save(totals + g * kLanes, Floats{});
    for (int i = 0; i < d; i += kLanes) save(sum + g * d + i, Floats{});
  }

  const Tiles<T> tiles(group);
  const int run = kRunSlots > slots ? kRunSlots / slots : 1;
  const int64_t weight_stride = static_cast<int64_t>(run) * slots;
  const T *pages[kMostPages], *next[kMostPages];
  for (int j = 0; j < run; ++j) pages[j] = page_of(j);
  for (int first = 0; first < num_pages; first += run) {
    const int count = num_pages - first < run ? num_pages - first : run;
    for (int j = 0; j < run; ++j) next[j] = page_of(first + count + j);
    const int left = part.num_slots - first * slots;
    const int tokens = left < count * slots ? left : count * slots;
    float* scores = part.scores + first * slots;
    for (int j = 0; j < count; ++j) {
      for (int t = 0; t < slots; t += kTile) {
        tiles.dot(rows, d, key_tile(pages[j], t, d), slots, key_tile(next[j], t, d), a.scale,
                  scores + j * slots + t, score_stride);
      }
      if (kPrefetchValues) prefetch_elements(next[j] + half_page, half_page);
    }
    // The next run may be longer than this one.
    for (int j = count; j < run; ++j) prefetch_elements(next[j], 2 * half_page);
    for (int g = 0; g < group; ++g) {
      float* s = scores + g * score_stride;
      for (int t = tokens; t < count * slots; ++t) s[t] = kLowest;
      Floats run_most = broadcast(most[g]);
      for (int t = 0; t < count * slots; t += kLanes) run_most = maximum(run_most, load(s + t));
      const float now = reduce_max(run_most);
      Floats lanes_total = load(totals + g * kLanes);
      if (now > most[g]) {
        const float shrink = exp_nonpositive(most[g] - now);
        lanes_total *= shrink;
        for (int j = 0; j < d; j += kLanes) save(sum + g * d + j, load(sum + g * d + j) * shrink);
        most[g] = now;
      }
      for (int t = 0; t < count * slots; t += kLanes) {
        const Floats e = exp_nonpositive(load(s + t) - now);
        save(weights + g * weight_stride + t, e);
        lanes_total += e;
      }
      save(totals + g * kLanes, lanes_total);
    }
    for (int j = 0; j < count; ++j) {
      const int in_page = tokens - j * slots < slots ? tokens - j * slots : slots;
      weigh(tiles, weights + j * slots, weight_stride, slots, group, in_page, pages[j] + half_page,
            next[j] + half_page, d, sum);
      pages[j] = next[j];
    }
    for (int j = count; j < run; ++j) pages[j] = next[j];
  }
  for (int g = 0; g < group; ++g) total[g] = reduce_sum(load(totals + g * kLanes));
}

static void decode_part(const DecodeArgs& a, const DecodePart& part, const DecodePart& following,
                        float* workspace) {
  with_type(a.pool, [&](auto type) {
    decode_part_of<typename decltype(type)::Element>(a, part, following, workspace);
  });
}

// Turns the parts' sums into the factors that make exp(score - maximum) probabilities.
FASTGEN_INLINE void merge_weights(const DecodeArgs& a, const DecodePart* parts, int num_parts) {
  const int64_t maxima = static_cast<int64_t>(a.group_size) * a.pool.head_size;
  for (int g = 0; g < a.group_size; ++g) {
    float most = kLowest;
    for (int i = 0; i < num_parts; ++i) {
      const float m = parts[i].state[maxima + g];
      most = m > most ? m : most;
    }
    float total = 0.f;
    for (int i = 0; i < num_parts; ++i) {
      const float* m = parts[i].state + maxima + g;
      total += exp_nonpositive(*m - most) * m[a.group_size];
    }
    for (int i = 0; i < num_parts; ++i) {
      float* m = parts[i].state + maxima + g;
      m[a.group_size] = exp_nonpositive(*m - most) / total;
    }
  }
}

FASTGEN_INLINE void add_values(const DecodeArgs& a, const DecodePart& part) {
  const int slots = a.pool.page_slots, group = a.group_size;
  const int64_t score_stride = static_cast<int64_t>(a.part_pages) * slots;
  const float* most = part.state + static_cast<int64_t>(group) * a.pool.head_size;
  const float* factor = most + group;
  const HeadRecord& head = head_of(a, part);
  const bool squares = head.rule == kByEnergy;
  const int fixed = head.read_only > part.first_page ? head.read_only - part.first_page : 0;
  for (int first = fixed * slots; first < part.num_slots; first += slots) {
    float* values = a.values + page_of_part(a, part, first / slots).meta_slot;
    const int left = part.num_slots - first;
    // Slots past the end of the head have probability 0, up to the end of the page.
    for (int t = 0; t < slots && t < left; t += kLanes) {
      Floats pooled = pool_init(a.pooling);
      for (int g = 0; g < group; ++g) {
        const Floats s = load(part.scores + g * score_stride + first + t) - most[g];
        const Floats p = exp_nonpositive(s) * factor[g];
        pooled = pool_add(a.pooling, pooled, squares ? p * p : p);
      }
      save(values + t, load(values + t) + pool_result(a.pooling, pooled, group));
    }
  }
}

static void decode_finish(const DecodeArgs& a, const DecodePart* parts, int num_parts) {
  const int d = a.pool.head_size, group = a.group_size;
  const DecodePart& first = parts[0];
  const int64_t factors = static_cast<int64_t>(group) * (d + 1);
  merge_weights(a, parts, num_parts);
  with_type(a.pool, [&](auto type) {
    auto* output = reinterpret_cast<typename decltype(type)::Plain*>(a.output) +
                   a.step.token_index[first.request] * a.output_token_stride +
                   static_cast<int64_t>(first.head) * group * a.output_head_stride;
    for (int g = 0; g < group; ++g) {
      for (int i = 0; i < d; i += kLanes) {
        Floats sum = {};
        for (int part = 0; part < num_parts; ++part) {
          const float* state = parts[part].state;
          sum += load(state + g * d + i) * state[factors + g];
        }
        for (int j = 0; j < kLanes; ++j) narrow(sum[j], output + g * a.output_head_stride + i + j);
      }
    }
  });
  if (!values_tokens(head_of(a, first).rule)) return;
  for (int part = 0; part < num_parts; ++part) add_values(a, parts[part]);
}

}  // namespace FASTGEN_ISA
}  // namespace fastgen
