// What kernels use beyond plain CUDA C++: shared memory, asynchronous copies, tensor cores and
// launches by functions and macros that have a second implementation, tests/cuda/emulator, which
// runs the very same kernel source on the CPU.
#pragma once

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

// Shared memory whose size the launch gives; T* name.
#define FASTGEN_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char fastgen_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(fastgen_dynamic_shared)

// Shared memory of a fixed size: FASTGEN_SHARED(float, sums, [4][32]);
#define FASTGEN_SHARED(T, name, dims) __shared__ __align__(16) T name dims

namespace fastgen {

// Copies kBytes (4, 8 or 16) to shared memory; they are there after a wait that covers them.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(to), "l"(global) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;\n" ::"r"(to), "l"(global), "n"(kBytes)
                 : "memory");
  }
}

__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Waits until all but the kLater most recently committed groups of this thread are there.
template <int kLater>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kLater) : "memory");
}

// sum += a * b for a 16x16 and a 16x8 tile that a warp holds in fragments (PTX ISA, "Matrix
// fragments for mma.m16n8k16"). Lane l has, with r = l / 4 and c = 2 * (l % 4), pairs of elements
//   a[0] = A[r][c..], a[1] = A[r + 8][c..], a[2] = A[r][c + 8..], a[3] = A[r + 8][c + 8..]
//   b[0] = B[c..][r], b[1] = B[c + 8..][r]
//   sum[0..1] = C[r][c..], sum[2..3] = C[r + 8][c..]
#define FASTGEN_MMA(Element, name)                                                              \
  __device__ __forceinline__ void mma_16x8x16(Element, float (&sum)[4], const uint32_t (&a)[4], \
                                              const uint32_t (&b)[2]) {                         \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                         \
                 ".f32 "                                                                        \
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"                      \
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));           \
  }
FASTGEN_MMA(__half, "f16")
FASTGEN_MMA(__nv_bfloat16, "bf16")
#undef FASTGEN_MMA

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

// Lets a kernel be launched with more than 48 KiB of dynamic shared memory.
template <typename Kernel>
cudaError_t allow_shared(Kernel* kernel, int bytes) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

}  // namespace fastgen

#else
#include "emulator.h"
#endif
