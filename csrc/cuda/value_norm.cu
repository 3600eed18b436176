#include "cuda/ops.h"
#include "cuda/value_norm.h"

namespace fastgen {

cudaError_t value_norm(const ValueNormArgs& a, cudaStream_t stream) {
  if (a.num_tokens == 0) return cudaSuccess;
  const dim3 grid((a.num_tokens + kNormTokens - 1) / kNormTokens, pages_per_block(a.pool));
  return with_element(a.pool.dtype, [&](auto type) {
    using Element = typename decltype(type)::Element;
    return launch(value_norm_kernel<Element>, grid, dim3(kNormThreads), 0, stream, a);
  });
}

}  // namespace fastgen
