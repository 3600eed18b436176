// What launchers hand to kernels: plain structs of raw pointers, and one table of kernels per
// instruction set. Kernels know neither torch nor threads; a launcher calls them once per work
// item.
#pragma once

#include <cstdint>

#include "fastgen/head_record.h"
#include "fastgen/pages.h"

namespace fastgen {

// How the probabilities of the G query heads of a head become one number per token.
enum Pooling { kMean, kMax, kMin };

// Slots or tokens that kernels handle together; S is a multiple.
constexpr int kTile = 32;
// Slots of whole pages whose scores become weights together, at most; a longer page alone.
constexpr int kMostRunSlots = 256;

// Compacted requests of a step, one new token each, and their heads in one layer.
struct StepRequests {
  const int64_t* token_index;  // [R] row of query, key and value
  const int32_t* lanes;        // [R]
  const int32_t* block_rows;   // [R, row_stride]
  int64_t row_stride;
  int row_blocks;    // M, blocks of a row
  int num_requests;  // R
  int num_tokens;    // T
  int num_lanes;
  int layer;
  HeadRecord* heads;  // [lanes, L, H]
};

FASTGEN_ANYWHERE static inline BlockRow row_of(const StepRequests& step, int request) {
  return {step.block_rows + request * step.row_stride, step.row_blocks};
}

FASTGEN_ANYWHERE static inline HeadRecord& record_of(const StepRequests& step, const PagePool& pool,
                                                     int request, int head) {
  const int64_t lane = step.lanes[request];
  return step.heads[(lane * pool.num_layers + step.layer) * pool.num_heads + head];
}

// By how much queries are turned, to lie behind all keys.
struct Turn {
  const float* angles;  // [2, pairs] cosines and sines
  int pairs;            // of columns; those behind them stay
  bool interleaved;     // a pair is columns 2i and 2i + 1, not i and i + pairs
};

// Queries of one prompt, in one layer.
struct PromptQueries {
  PagePool pool;
  const char* query;  // [W, H*G, D]
  int64_t query_token_stride;
  int64_t query_head_stride;
  int num_queries;     // W
  int group_size;      // G
  int first_position;  // position of query 0
  int layer;
  BlockRow block_row;
  const HeadRecord* heads;  // [L, H]
  float scale;
  Pooling pooling;
  Turn turn;  // of a replay
};

FASTGEN_ANYWHERE static inline const HeadRecord& record_of(const PromptQueries& a, int head) {
  return a.heads[a.layer * a.pool.num_heads + head];
}

struct AttentionMassArgs : PromptQueries {
  bool is_replay;        // queries are turned and see all keys, and their own near ones as well
  int block_queries;     // queries of one item
  int64_t score_stride;  // floats between the rows of a block's scores
  float* mass;           // [H, >= first_position + W]
  int64_t mass_stride;
  float* energy;  // [H, >= first_position + W]
  int64_t energy_stride;
};

// First keys, which every sum of a replay has exactly.
constexpr int kSinks = 4;
// Tokens up to its own that a query of a replay keeps seeing as it was.
constexpr int kNear = 32;
// Of a cache that the CPU's replay takes.
constexpr int kMostHeadSize = 1024;
// Floats of a row of the CPU's scores: whole tiles, and a cache line more, as rows a power of two
// apart would crowd the same sets.
constexpr int kReplayRow = 12 * kTile + 16;

// Query 0 is at a multiple of kTile.
struct ReplayArgs : PromptQueries {
  int sample_step;    // 1: all keys
  float sample_bias;  // its logarithm
  int sample_tiles;   // of kTile keys
  char* sample;       // [H, sample_tiles, a tile of K]
  float* parts;       // [H, tiles of queries, 2 * kTile]
  float* values;      // [B, L*H, S]
};

// Keys that there are.
FASTGEN_ANYWHERE static inline int replay_end(const ReplayArgs& a) {
  return a.first_position + a.num_queries;
}
static inline int replay_tiles(const ReplayArgs& a) { return (a.num_queries + kTile - 1) / kTile; }
// The token of number k of the sample: the first few, then the last one of every `sample_step`.
FASTGEN_ANYWHERE static inline int sampled_token(const ReplayArgs& a, int k) {
  return k < kSinks ? k : (k - kSinks) * a.sample_step + a.sample_step - 1;
}
FASTGEN_ANYWHERE static inline int num_sampled(const ReplayArgs& a) {
  return kSinks + replay_end(a) / a.sample_step;
}

struct ValueNormArgs {
  PagePool pool;
  BlockRow block_row;
  const HeadRecord* heads;  // [L*H]
  int num_tokens;           // N
  float* norm;              // [L*H, N]
};

// Slots of an item of the CPU's value_norm.
static inline int norm_run_slots(const ValueNormArgs& a) { return 8 * a.pool.page_slots; }

struct CompactArgs {
  PagePool pool;
  PagePool saved;               // copies of the C blocks that are in both rows; none has no address
  BlockRow old_row;             // of blocks of the pool, [0, B), and of saved ones, [B, B + C)
  const HeadRecord* old_heads;  // [L*H]
  BlockRow new_row;
  int num_kept;                  // K
  const int32_t* kept;           // [K] slots of the old heads
  const int32_t* kept_position;  // [K] of their tokens
  const int64_t* kept_start;     // [L*H + 1], of slots beyond a head's stock pages, which stay
  const float* kept_value;       // [K]
  const HeadRecord* heads;       // [L*H]
  int32_t* positions;            // [B, L*H, S]
  float* values;                 // [B, L*H, S]
};

struct StoreArgs {
  PagePool pool;
  StepRequests step;
  const char* key;  // [T, H, D]
  int64_t key_token_stride;
  int64_t key_head_stride;
  const char* value;  // [T, H, D]
  int64_t value_token_stride;
  int64_t value_head_stride;
  const int32_t* token_position;  // [R]
  const int32_t* token_class;     // [R]
  int32_t* positions;             // [B, L*H, S]
  float* values;                  // [B, L*H, S]
};

struct DecodeArgs {
  PagePool pool;
  StepRequests step;
  const char* query;  // [T, H*G, D]
  int64_t query_token_stride;
  int64_t query_head_stride;
  char* output;  // [T, H*G, D]
  int64_t output_token_stride;
  int64_t output_head_stride;
  int group_size;  // G
  float scale;
  Pooling pooling;
  float* values;   // [B, L*H, S]
  int part_pages;  // pages of one part
};

// A part of the pages of one (request, head); long heads are several work items.
struct DecodePart {
  int32_t request;
  int32_t head;
  int32_t first_page;
  int32_t num_slots;
  float* state;   // [G * (D + 2)] unnormalised output, maxima, sums; see decode_attention.h
  float* scores;  // [G, part_pages * S] scaled dot products
};

struct Kernels {
  const char* isa;
  void (*mass_observe)(const AttentionMassArgs&, int head, int query_block, float* workspace);
  void (*mass_add)(const AttentionMassArgs&, int head, int query_block, float* workspace);
  void (*compact)(const CompactArgs&, int layer_head, int page);
  void (*store)(const StoreArgs&, int request, int head);
  void (*value_norm)(const ValueNormArgs&, int layer_head, int run);
  void (*replay_sample)(const ReplayArgs&, int head, int tile);
  void (*replay_rows)(const ReplayArgs&, int head, int tile, float* workspace);
  void (*replay_add)(const ReplayArgs&, int head, int tile);
  void (*decode_part)(const DecodeArgs&, const DecodePart&, const DecodePart& following,
                      float* workspace);
  void (*decode_finish)(const DecodeArgs&, const DecodePart* parts, int num_parts);
};

// Floats of workspace that one worker needs.
static inline int64_t mass_workspace(const AttentionMassArgs& a) {
  const int64_t rows = static_cast<int64_t>(a.block_queries) * a.group_size;
  const int near = a.is_replay ? a.pool.head_size + 4 * kTile : 0;  // rows as they were, scores
  return rows * (a.score_stride + a.pool.head_size + near);
}
static inline int64_t replay_workspace(const ReplayArgs& a) {
  const int64_t rows = static_cast<int64_t>(kTile) * a.group_size;
  return rows * (kReplayRow + 3 + 2 * a.pool.head_size);
}
static inline int64_t decode_workspace(const DecodeArgs& a) {
  const int run = a.pool.page_slots > kMostRunSlots ? a.pool.page_slots : kMostRunSlots;
  return static_cast<int64_t>(a.group_size) * (a.pool.head_size + run + kTile);
}

}  // namespace fastgen
