#include <atomic>
#include <memory>
#include <thread>

#include "cpu/checks.h"
#include "cpu/isa.h"
#include "cpu/ops.h"

namespace fastgen {
namespace {

constexpr int64_t kBlockScores = 1 << 17;  // floats of one block's scores: half a megabyte

}  // namespace

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

  a.query_token_stride = query.stride(0);
  a.query_head_stride = query.stride(1);
  a.layer = static_cast<int>(layer);
  a.block_row = static_cast<const int32_t*>(block_row.data_ptr());
  a.scale = static_cast<float>(scale);
  a.query = static_cast<const char*>(query.data_ptr());
  a.num_queries = static_cast<int>(query.size(0));
  a.first_position = static_cast<int>(first_position);
  // Whole tiles, and a cache line more: rows a power of two apart would crowd the same sets.
  a.score_stride = (end + kTile - 1) / kTile * kTile + 16;

  const int64_t heads = a.pool.num_heads;
  const int64_t rows = std::clamp<int64_t>(kBlockScores / a.score_stride, 1, kTile);
  a.block_queries = static_cast<int>(std::max<int64_t>(1, rows / a.group_size));
  const int64_t blocks = (a.num_queries + a.block_queries - 1) / a.block_queries;
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t workspace = mass_workspace(a);
  thread_local Scratch scratch;
  float* workspaces = scratch.floats(threads * workspace);

  // Blocks of a head are added in order, each by who observed it. Items are handed out in order,
  // so whoever waits, waits for a block that is being worked on.
  std::unique_ptr<std::atomic<int>[]> added(new std::atomic<int>[heads]());
  const Kernels& kernel = kernels();
  for_each_item(heads * blocks, [&](int64_t worker, int64_t item) {
    const int head = static_cast<int>(item % heads), block = static_cast<int>(item / heads);
    float* own = workspaces + worker * workspace;
    kernel.mass_observe(a, head, block, own);
    while (added[head].load(std::memory_order_acquire) != block) std::this_thread::yield();
    kernel.mass_add(a, head, block, own);
    added[head].store(block + 1, std::memory_order_release);
  });
}

}  // namespace fastgen
