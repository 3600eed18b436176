#include <atomic>
#include <memory>
#include <thread>

#include "cpu/contents.h"
#include "cpu/isa.h"
#include "cpu/work.h"
#include "launchers.h"

namespace fastgen::cpu {
namespace {

constexpr int64_t kBlockScores = 1 << 17;  // floats of one block's scores: half a megabyte

}  // namespace

void attention_mass(AttentionMassArgs a) {
  const int64_t end = a.first_position + a.num_queries;
  Contents(a.is_replay ? "replayed_mass" : "attention_mass", a.pool).queries(a);
  if (a.num_queries == 0) return;
  // Whole tiles, and a cache line more: rows a power of two apart would crowd the same sets.
  a.score_stride = (a.is_replay ? kNear : 0) + (end + kTile - 1) / kTile * kTile + 16;

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

void replayed_mass(const AttentionMassArgs& a) { attention_mass(a); }

}  // namespace fastgen::cpu
