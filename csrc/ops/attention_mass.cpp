#include "ops/op.h"

namespace fastgen {
namespace {

AttentionMassArgs checked(const char* op, const Tensor& query, const Tensor& arena, int64_t layer,
                          const Tensor& block_row, const Tensor& heads, int64_t first_position,
                          double scale, const std::string& pool, const Tensor& mass,
                          const Tensor& energy) {
  const Checks check(op, arena);
  AttentionMassArgs a = {};
  check.queries(a, query, layer, block_row, heads, first_position, scale, pool);
  const int end = a.first_position + a.num_queries;
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
  return a;
}

void attention_mass(const Tensor& query, const Tensor& arena, int64_t layer,
                    const Tensor& block_row, const Tensor& heads, int64_t first_position,
                    double scale, std::string pool, const Tensor& mass, const Tensor& energy) {
  const AttentionMassArgs a = checked("attention_mass", query, arena, layer, block_row, heads,
                                      first_position, scale, pool, mass, energy);
  FASTGEN_LAUNCH(attention_mass, a, arena);
}

void replayed_mass(const Tensor& query, const Tensor& arena, int64_t layer, const Tensor& block_row,
                   const Tensor& heads, int64_t first_position, double scale, std::string pool,
                   const Tensor& turn, bool interleaved, const Tensor& mass, const Tensor& energy) {
  AttentionMassArgs a = checked("replayed_mass", query, arena, layer, block_row, heads,
                                first_position, scale, pool, mass, energy);
  a.is_replay = true;
  a.turn = Checks("replayed_mass", arena).turn(turn, interleaved, a.pool);
  FASTGEN_LAUNCH(replayed_mass, a, arena);
}

FASTGEN_OP(attention_mass,
           "(Tensor query, Tensor arena, int layer, Tensor block_row, Tensor heads, "
           "int first_position, float scale, str pool, Tensor(a!) mass, Tensor(b!) energy)")
FASTGEN_OP(replayed_mass,
           "(Tensor query, Tensor arena, int layer, Tensor block_row, Tensor heads, "
           "int first_position, float scale, str pool, Tensor turn, bool interleaved, "
           "Tensor(a!) mass, Tensor(b!) energy)")

}  // namespace
}  // namespace fastgen
