#include "cuda/compact.h"
#include "cuda/ops.h"

namespace fastgen {

cudaError_t compact(const CompactArgs& a, cudaStream_t stream) {
  // No head keeps more than all that is kept; most have no more pages than the row has blocks.
  const int kept_pages = (a.num_kept + a.pool.page_slots - 1) / a.pool.page_slots;
  const int pages = kept_pages < a.old_row.num_blocks ? kept_pages : a.old_row.num_blocks;
  if (pages == 0) return cudaSuccess;
  const dim3 grid(pages_per_block(a.pool), pages < kCompactPages ? pages : kCompactPages);
  return launch(compact_kernel, grid, dim3(kCompactThreads), 0, stream, a);
}

}  // namespace fastgen
