#include "cuda/ops.h"
#include "cuda/store.h"

namespace fastgen {

cudaError_t store(const StoreArgs& a, cudaStream_t stream) {
  if (a.step.num_requests == 0) return cudaSuccess;
  const dim3 grid(a.pool.num_heads, a.step.num_requests);
  const auto kernel = a.pool.element_size == 4 ? store_kernel<uint32_t> : store_kernel<uint16_t>;
  return launch(kernel, grid, dim3(kStoreThreads), 0, stream, a);
}

}  // namespace fastgen
