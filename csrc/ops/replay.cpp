#include <cmath>

#include "ops/op.h"

namespace fastgen {
namespace {

void replay(const Tensor& query, const Tensor& arena, int64_t layer, const Tensor& block_row,
            const Tensor& heads, int64_t first_position, double scale, std::string pool,
            const Tensor& turn, bool interleaved, int64_t sample, const Tensor& values) {
  const Checks check("replay", arena);
  ReplayArgs a = {};
  check.queries(a, query, layer, block_row, heads, first_position, scale, pool);
  require(first_position % kTile == 0, "replay: first_position must be a multiple of ", kTile,
          ", got ", first_position);
  require(sample == 1 || sample == 8 || sample == 16 || sample == 32,
          "replay: sample must be 1, 8, 16 or 32, got ", sample);
  a.turn = check.turn(turn, interleaved, a.pool);
  check.metadata("values", values, ScalarType::Float, a.pool);
  a.sample_step = static_cast<int>(sample);
  a.sample_bias = std::log(static_cast<float>(sample));
  a.values = static_cast<float*>(values.data_ptr());
  FASTGEN_LAUNCH(replay, a, arena);
}

FASTGEN_OP(replay,
           "(Tensor query, Tensor arena, int layer, Tensor block_row, Tensor heads, "
           "int first_position, float scale, str pool, Tensor turn, bool interleaved, int sample, "
           "Tensor(a!) values)")

}  // namespace
}  // namespace fastgen
