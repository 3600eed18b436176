#include "cuda/compact.h"
#include "cuda/ops.h"

namespace fastgen {

cudaError_t compact(const CompactArgs& a, int max_kept, cudaStream_t stream) {
  if (max_kept == 0) return cudaSuccess;
  const int pages = (max_kept + a.pool.page_slots - 1) / a.pool.page_slots;
  const dim3 grid(a.pool.num_layers * a.pool.num_heads,
                  pages < kCompactPages ? pages : kCompactPages);
  return launch(compact_kernel, grid, dim3(kCompactThreads), 0, stream, a);
}

}  // namespace fastgen
