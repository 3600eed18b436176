#include "cuda/attention_mass.h"
#include "cuda/ops.h"

namespace fastgen {
namespace {

template <typename T, int kHeadSize>
cudaError_t observe(const AttentionMassArgs& a, SoftmaxRow* softmax_rows, cudaStream_t stream) {
  constexpr int kKeysBytes = kKeyTiles<T, kHeadSize> * kKeyTileBytes<T, kHeadSize>;
  constexpr int kQueries = kMassWarps * kQueryTile;
  const auto sums = mass_rows<T, kHeadSize>;
  if (const cudaError_t error = allow_shared(sums, kKeysBytes)) return error;
  const dim3 query_grid((a.num_queries + kQueries - 1) / kQueries, a.pool.num_heads * a.group_size);
  const cudaError_t error =
      launch(sums, query_grid, dim3(kMassThreads), kKeysBytes, stream, a, softmax_rows);
  if (error != cudaSuccess) return error;
  return add_mass<T, kHeadSize>(a, softmax_rows, stream);
}

}  // namespace

cudaError_t attention_mass(const AttentionMassArgs& a, SoftmaxRow* softmax_rows,
                           cudaStream_t stream) {
  if (a.num_queries == 0) return cudaSuccess;
  return with_element(a.pool.dtype, [&](auto type) {
    using Element = typename decltype(type)::Element;
    return with_head_size(a.pool.head_size, [&](auto size) {
      return observe<Element, decltype(size)::value>(a, softmax_rows, stream);
    });
  });
}

}  // namespace fastgen
