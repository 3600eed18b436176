#include "ops/op.h"

namespace fastgen {
namespace {

AttentionMassArgs checked(const char* op, const Tensor& query, const Tensor& arena, int64_t layer,
                          const Tensor& block_row, int64_t first_position, double scale,
                          const std::string& pool, const Tensor& mass, const Tensor& energy) {
  const Checks check(op, arena);
  AttentionMassArgs a = {};
  a.pool = check.arena();
  check.layer(layer, a.pool);
  check.rows("query", query, arena.scalar_type(), {kAny, kAny, a.pool.head_size});
  check.aligned("query", query, 4, 2);
  a.group_size = check.group_size(query, a.pool);
  a.pooling = check.pooling(pool);
  require(first_position >= 0, op, ": first_position must be at least 0, got ", first_position);
  require(first_position < kMostSlots && query.size(0) < kMostSlots, op,
          ": a prompt must have less than ", kMostSlots, " tokens, got ", query.size(0),
          " queries from ", first_position);
  const int64_t end = first_position + query.size(0);
  a.block_row = check.row("block_row", block_row, end, a.pool);
  const auto sums = [&](const char* name, const Tensor& tensor) {
    check.rows(name, tensor, ScalarType::Float, {a.pool.num_heads, kAny});
    require(tensor.size(1) >= end, op, ": ", name, " must have room for ", end,
            " tokens, got shape ", shape_text(tensor.sizes()));
    return static_cast<float*>(tensor.data_ptr());
  };
  a.mass = sums("mass", mass);
  a.mass_stride = mass.stride(0);
  a.energy = sums("energy", energy);
  a.energy_stride = energy.stride(0);
  a.query = static_cast<const char*>(query.data_ptr());
  a.query_token_stride = query.stride(0);
  a.query_head_stride = query.stride(1);
  a.num_queries = static_cast<int>(query.size(0));
  a.first_position = static_cast<int>(first_position);
  a.layer = static_cast<int>(layer);
  a.scale = static_cast<float>(scale);
  return a;
}

void attention_mass(const Tensor& query, const Tensor& arena, int64_t layer,
                    const Tensor& block_row, int64_t first_position, double scale, std::string pool,
                    const Tensor& mass, const Tensor& energy) {
  const AttentionMassArgs a = checked("attention_mass", query, arena, layer, block_row,
                                      first_position, scale, pool, mass, energy);
  FASTGEN_LAUNCH(attention_mass, a, arena);
}

void replayed_mass(const Tensor& query, const Tensor& arena, int64_t layer, const Tensor& block_row,
                   int64_t first_position, double scale, std::string pool, const Tensor& turn,
                   bool interleaved, const Tensor& mass, const Tensor& energy) {
  AttentionMassArgs a = checked("replayed_mass", query, arena, layer, block_row, first_position,
                                scale, pool, mass, energy);
  a.is_replay = true;
  a.turn = Checks("replayed_mass", arena).turn(turn, interleaved, a.pool);
  FASTGEN_LAUNCH(replayed_mass, a, arena);
}

FASTGEN_OP(attention_mass,
           "(Tensor query, Tensor arena, int layer, Tensor block_row, int first_position, "
           "float scale, str pool, Tensor(a!) mass, Tensor(b!) energy)")
FASTGEN_OP(replayed_mass,
           "(Tensor query, Tensor arena, int layer, Tensor block_row, int first_position, "
           "float scale, str pool, Tensor turn, bool interleaved, Tensor(a!) mass, "
           "Tensor(b!) energy)")

}  // namespace
}  // namespace fastgen
