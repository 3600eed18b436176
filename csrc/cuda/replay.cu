#include "cuda/ops.h"
#include "cuda/replay.h"

namespace fastgen {
namespace {

constexpr int kQueries = kMassWarps * kQueryTile;  // of a block of threads

// Leaves the softmax of every row, and the turned queries, in scratch.
template <typename T, int kHeadSize>
cudaError_t sum_rows(const ReplayArgs& a, const ReplayScratch& scratch, cudaStream_t stream) {
  T* const turned = reinterpret_cast<T*>(scratch.turned);
  T* const sample = reinterpret_cast<T*>(scratch.sample);
  cudaError_t error =
      launch(replay_turn<T>, dim3(a.num_queries), dim3(kMassThreads), 0, stream, a, turned);
  if (error != cudaSuccess) return error;
  if (a.sample_step > 1) {
    const dim3 grid((num_sampled(a) + kSampledKeys - 1) / kSampledKeys, a.pool.num_heads);
    error = launch(replay_sample<T>, grid, dim3(kMassThreads), 0, stream, a, sample);
    if (error != cudaSuccess) return error;
  }
  constexpr int kShared = kKeyTiles<T, kHeadSize> * kKeyTileBytes<T, kHeadSize>;
  const auto rows = replay_rows<T, kHeadSize>;
  if ((error = allow_shared(rows, kShared)) != cudaSuccess) return error;
  const dim3 grid((a.num_queries + kQueries - 1) / kQueries, a.pool.num_heads * a.group_size);
  return launch(rows, grid, dim3(kMassThreads), kShared, stream, a, turned, sample,
                scratch.softmax_rows);
}

template <typename Function>
cudaError_t with_kind(const PagePool& pool, const Function& f) {
  return with_element(pool.dtype, [&](auto type) {
    return with_head_size(pool.head_size, [&](auto size) { return f(type, size); });
  });
}

}  // namespace

cudaError_t replay(const ReplayArgs& a, const ReplayScratch& scratch, cudaStream_t stream) {
  if (a.num_queries == 0) return cudaSuccess;
  return with_kind(a.pool, [&](auto type, auto size) {
    using T = typename decltype(type)::Element;
    constexpr int kHeadSize = decltype(size)::value, kShared = kReplayAddBytes<T, kHeadSize>;
    cudaError_t error = sum_rows<T, kHeadSize>(a, scratch, stream);
    if (error != cudaSuccess) return error;
    const auto add = replay_add<T, kHeadSize>;
    if ((error = allow_shared(add, kShared)) != cudaSuccess) return error;
    const dim3 grid((a.num_queries + kTokenTile - 1) / kTokenTile, a.pool.num_heads);
    return launch(add, grid, dim3(kMassThreads), kShared, stream, a,
                  reinterpret_cast<const T*>(scratch.turned), scratch.softmax_rows);
  });
}

cudaError_t replayed_mass(const AttentionMassArgs& a, const ReplayScratch& scratch,
                          cudaStream_t stream) {
  if (a.num_queries == 0) return cudaSuccess;
  ReplayArgs rows = {};
  static_cast<PromptQueries&>(rows) = a;
  rows.sample_step = 1;
  AttentionMassArgs sums = a;
  sums.query = scratch.turned;
  sums.query_head_stride = a.pool.head_size;
  sums.query_token_stride =
      static_cast<int64_t>(a.pool.num_heads) * a.group_size * a.pool.head_size;
  return with_kind(a.pool, [&](auto type, auto size) {
    using T = typename decltype(type)::Element;
    constexpr int kHeadSize = decltype(size)::value;
    const cudaError_t error = sum_rows<T, kHeadSize>(rows, scratch, stream);
    if (error != cudaSuccess) return error;
    return add_mass<T, kHeadSize>(sums, scratch.softmax_rows, stream);
  });
}

}  // namespace fastgen
