#include <cmath>

#include "ops/op.h"

namespace fastgen {
namespace {

void replay(const Tensor& query, const Tensor& arena, int64_t layer, const Tensor& block_row,
            int64_t first_position, double scale, std::string pool, const Tensor& turn,
            bool interleaved, int64_t sample, const Tensor& values) {
  const Checks check("replay", arena);
  ReplayArgs a = {};
  a.pool = check.arena();
  check.layer(layer, a.pool);
  check.rows("query", query, arena.scalar_type(), {kAny, kAny, a.pool.head_size});
  check.aligned("query", query, 4, 2);
  a.group_size = check.group_size(query, a.pool);
  a.pooling = check.pooling(pool);
  require(first_position >= 0 && first_position % kTile == 0,
          "replay: first_position must be a multiple of ", kTile, ", got ", first_position);
  require(first_position < kMostSlots && query.size(0) < kMostSlots,
          "replay: a prompt must have less than ", kMostSlots, " tokens, got ", query.size(0),
          " queries from ", first_position);
  require(sample == 1 || sample == 8 || sample == 16 || sample == 32,
          "replay: sample must be 1, 8, 16 or 32, got ", sample);
  a.turn = check.turn(turn, interleaved, a.pool);
  check.metadata("values", values, ScalarType::Float, a.pool);
  a.block_row = check.row("block_row", block_row, first_position + query.size(0), a.pool);
  a.query = static_cast<const char*>(query.data_ptr());
  a.query_token_stride = query.stride(0);
  a.query_head_stride = query.stride(1);
  a.num_queries = static_cast<int>(query.size(0));
  a.first_position = static_cast<int>(first_position);
  a.layer = static_cast<int>(layer);
  a.scale = static_cast<float>(scale);
  a.sample_step = static_cast<int>(sample);
  a.sample_bias = std::log(static_cast<float>(sample));
  a.values = static_cast<float*>(values.data_ptr());
  FASTGEN_LAUNCH(replay, a, arena);
}

FASTGEN_OP(replay,
           "(Tensor query, Tensor arena, int layer, Tensor block_row, int first_position, "
           "float scale, str pool, Tensor turn, bool interleaved, int sample, Tensor(a!) values)")

}  // namespace
}  // namespace fastgen
