#include "cuda/compact.h"
#include "cuda/ops.h"

namespace fastgen {

cudaError_t compact(const CompactArgs& a, cudaStream_t stream) {
  // No head keeps more than all that is kept, nor than the prompt has.
  const int kept_pages = (a.num_kept + a.pool.page_slots - 1) / a.pool.page_slots;
  const int pages = kept_pages < a.old_row.num_blocks ? kept_pages : a.old_row.num_blocks;
  if (pages == 0) return cudaSuccess;
  const dim3 grid(a.pool.num_layers * a.pool.num_heads,
                  pages < kCompactPages ? pages : kCompactPages);
  return launch(compact_kernel, grid, dim3(kCompactThreads), 0, stream, a);
}

}  // namespace fastgen
