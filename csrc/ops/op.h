// How an op becomes torch.ops.fastgen.*: its schema and the function that checks its tensors, for
// either device, stand in one file; contracts are in fastgen_vllm/ops/*.py.
#pragma once

#include <torch/csrc/stable/library.h>

#include <stdexcept>

#include "checks.h"
#include "launchers.h"

namespace fastgen {

#ifdef FASTGEN_CUDA
#define FASTGEN_LAUNCH(op, a, arena) ((arena).is_cpu() ? cpu::op(a) : cuda::op(a, arena))
#define FASTGEN_ON_CUDA(op) TORCH_BOX(&op)
#else
#define FASTGEN_LAUNCH(op, a, arena) cpu::op(a)
#define FASTGEN_ON_CUDA(op) &not_built

inline void not_built(StableIValue*, uint64_t, uint64_t) {
  throw std::runtime_error(
      "fastgen_vllm was built without its CUDA kernels: put nvcc on PATH and install it again with "
      "FASTGEN_CUDA=1");
}
#endif

// FASTGEN_OP(store, "(Tensor key, ...)") makes an op of the function `store`, which returns
// nothing.
#define FASTGEN_OP(op, arguments)                                              \
  STABLE_TORCH_LIBRARY_FRAGMENT(fastgen, m) { m.def(#op arguments " -> ()"); } \
  STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) { m.impl(#op, TORCH_BOX(&op)); }  \
  STABLE_TORCH_LIBRARY_IMPL(fastgen, CUDA, m) { m.impl(#op, FASTGEN_ON_CUDA(op)); }

}  // namespace fastgen
