// CUDA C++ for g++: the names that csrc/cuda/device.h and CUDA itself give to kernels, so that the
// same source runs on the CPU, with a fiber for each CUDA thread. Types and conversions are those
// of NVIDIA's own headers, which compile for the host.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "atomics.h"
#include "runtime.h"
#include "warp.h"

#undef __launch_bounds__
#define __launch_bounds__(...)

// Of the thread that runs.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

inline void __syncthreads(FASTGEN_SITE) { fastgen::emulator::wait_for_block(site); }

inline void __threadfence() { fastgen::emulator::fence(); }

template <typename T>
T __ldg(const T* from) {
  return *from;
}

template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}

inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __fdividef(float a, float b) { return a / b; }
// A template, because some versions of glibc have a function of this name.
template <typename T>
T rsqrtf(T x) {
  static_assert(std::is_same_v<T, float>);
  return 1.f / std::sqrt(x);
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }

#define FASTGEN_DYNAMIC_SHARED(T, name) \
  T* const name = static_cast<T*>(::fastgen::emulator::dynamic_shared())

#define FASTGEN_SHARED(T, name, dims)             \
  using name##_type = T dims;                     \
  static char name##_key;                         \
  name##_type& name = *static_cast<name##_type*>( \
      ::fastgen::emulator::shared_variable(&name##_key, sizeof(name##_type)))

namespace fastgen {

template <int kBytes>
void copy_async(void* shared, const void* global) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  emulator::copy(shared, global, kBytes);
}

inline void commit_copies() { emulator::commit(); }

template <int kLater>
void wait_for_copies() {
  emulator::wait_for_copies(kLater);
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t, Arguments&&... arguments) {
  auto body = [&] { kernel(static_cast<Parameters>(arguments)...); };
  const auto call = [](void* captured) { (*static_cast<decltype(body)*>(captured))(); };
  return emulator::run(
      {reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, call, &body});
}

template <typename Kernel>
cudaError_t allow_shared(Kernel* kernel, int bytes) {
  return emulator::allow(reinterpret_cast<const void*>(kernel), bytes);
}

}  // namespace fastgen

#undef FASTGEN_SITE
