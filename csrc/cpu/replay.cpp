#include "cpu/contents.h"
#include "cpu/isa.h"
#include "cpu/work.h"
#include "launchers.h"

namespace fastgen::cpu {

void replay(ReplayArgs a) {
  Contents("replay", a.pool).queries(a);
  if (a.num_queries == 0) return;
  const int64_t heads = a.pool.num_heads, tiles = replay_tiles(a);
  a.sample_tiles = a.sample_step == 1 ? 0 : (num_sampled(a) + kTile - 1) / kTile;
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t workspace = whole_lines(replay_workspace(a));
  const int64_t parts = whole_lines(heads * tiles * 2 * kTile);
  const int64_t sample = heads * a.sample_tiles * kTile * a.pool.head_size * a.pool.element_size;
  thread_local Scratch scratch;
  float* memory = scratch.floats(threads * workspace + parts + sample / sizeof(float));
  a.parts = memory + threads * workspace;
  a.sample = reinterpret_cast<char*>(a.parts + parts);

  const Kernels& kernel = kernels();
  for_each_item(heads * a.sample_tiles, [&](int64_t, int64_t item) {
    kernel.replay_sample(a, static_cast<int>(item / a.sample_tiles),
                         static_cast<int>(item % a.sample_tiles));
  });
  for_each_item(heads * tiles, [&](int64_t worker, int64_t item) {
    kernel.replay_rows(a, static_cast<int>(item / tiles), static_cast<int>(item % tiles),
                       memory + worker * workspace);
  });
  for (int head = 0; head < heads; ++head) {
    for (int tile = 0; tile < tiles; ++tile) kernel.replay_add(a, head, tile);
  }
}

}  // namespace fastgen::cpu
