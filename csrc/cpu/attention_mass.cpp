#include "cpu/checks.h"
#include "cpu/isa.h"
#include "cpu/ops.h"

namespace fastgen {

void attention_mass(const Tensor& query, const Tensor& arena, int64_t layer,
                    const Tensor& block_row, int64_t first_position, double scale, std::string pool,
                    Tensor mass, Tensor energy) {
  const Checks check("attention_mass");
  AttentionMassArgs a = {};
  a.pool = check.arena(arena);
  check.layer(layer, a.pool);
  check.rows("query", query, arena.scalar_type(), {kAny, kAny, a.pool.head_size});
  a.group_size = check.group_size(query, a.pool);
  a.pooling = check.pooling(pool);
  require(first_position >= 0, "attention_mass: first_position must be at least 0, got ",
          first_position);
  check.contiguous("block_row", block_row, ScalarType::Int, {kAny});
  const int64_t end = first_position + query.size(0);
  require(block_row.size(0) * a.pool.page_slots >= end, "attention_mass: block_row must cover ",
          end, " tokens, got ", block_row.size(0), " blocks of ", a.pool.page_slots);
  const auto sums = [&](const char* name, const Tensor& tensor) {
    check.rows(name, tensor, ScalarType::Float, {a.pool.num_heads, kAny});
    require(tensor.size(1) >= end, "attention_mass: ", name, " must have room for ", end,
            " tokens, got shape ", shape_text(tensor.sizes()));
    return static_cast<float*>(tensor.data_ptr());
  };
  a.mass = sums("mass", mass);
  a.mass_stride = mass.stride(0);
  a.energy = sums("energy", energy);
  a.energy_stride = energy.stride(0);
  if (query.size(0) == 0) return;

  a.query = static_cast<const char*>(query.data_ptr());
  a.query_token_stride = query.stride(0);
  a.query_head_stride = query.stride(1);
  a.num_queries = static_cast<int>(query.size(0));
  a.first_position = static_cast<int>(first_position);
  a.layer = static_cast<int>(layer);
  a.block_row = static_cast<const int32_t*>(block_row.data_ptr());
  a.scale = static_cast<float>(scale);
  a.block_queries = std::max(1, kTile / a.group_size);

  const int64_t heads = a.pool.num_heads;
  const int64_t rows = heads * a.num_queries * a.group_size;
  const int64_t workspace = mass_workspace(a);
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  thread_local Scratch scratch;
  a.rows = scratch.floats(rows * a.pool.head_size + 2 * whole_lines(rows) + threads * workspace);
  a.maximum = a.rows + rows * a.pool.head_size;
  a.inverse = a.maximum + whole_lines(rows);
  float* workspaces = a.inverse + whole_lines(rows);

  const Kernels& kernel = kernels();
  const int64_t blocks = (a.num_queries + a.block_queries - 1) / a.block_queries;
  for_each_item(heads * blocks, [&](int64_t worker, int64_t item) {
    // The last queries see the most tokens: they go first.
    kernel.mass_normalise(a, static_cast<int>(item % heads),
                          static_cast<int>(blocks - 1 - item / heads),
                          workspaces + worker * workspace);
  });
  const int64_t tiles = (end + kTile - 1) / kTile;
  for_each_item(heads * tiles, [&](int64_t worker, int64_t item) {
    kernel.mass_accumulate(a, static_cast<int>(item / tiles), static_cast<int>(item % tiles),
                           workspaces + worker * workspace);
  });
}

}  // namespace fastgen
