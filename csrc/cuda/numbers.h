// Elements of the cache as numbers, sixteen bytes at a time.
#pragma once

#include "cuda/device.h"
#include "fastgen/kernels.h"

namespace fastgen {

constexpr int kWarpSize = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr float kLog2E = 1.44269504088896340736f;

constexpr int kVectorBytes = 16;

// What one load instruction of a thread brings.
template <typename T>
struct alignas(kVectorBytes) Vector {
  static constexpr int kSize = kVectorBytes / sizeof(T);
  T at[kSize];
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float(float x) {
  return __float2bfloat16_rn(x);
}

template <typename T>
struct Type {
  using Element = T;
};

// Calls f(Type<Element>{}) for the cache's element type.
template <typename Function>
cudaError_t with_element(DataType dtype, const Function& f) {
  if (dtype == kFloat32) return f(Type<float>{});
  return dtype == kFloat16 ? f(Type<__half>{}) : f(Type<__nv_bfloat16>{});
}

template <int kSize>
struct Size {
  static constexpr int value = kSize;
};

// Calls f(Size<n>{}) for the least n of 64, 128 and 256 that holds the head size.
template <typename Function>
cudaError_t with_head_size(int head_size, const Function& f) {
  if (head_size > 256) return cudaErrorInvalidValue;
  if (head_size > 128) return f(Size<256>{});
  return head_size > 64 ? f(Size<128>{}) : f(Size<64>{});
}

// Pooling over the G query heads of a head, one by one.
__device__ __forceinline__ float pool_start(Pooling pooling) {
  return pooling == kMean ? 0.f : pooling == kMax ? -INFINITY : INFINITY;
}
__device__ __forceinline__ float pool_add(Pooling pooling, float pooled, float x) {
  return pooling == kMean ? pooled + x : pooling == kMax ? fmaxf(pooled, x) : fminf(pooled, x);
}
__device__ __forceinline__ float pool_result(Pooling pooling, float pooled, int group_size) {
  return pooling == kMean ? pooled / static_cast<float>(group_size) : pooled;
}

}  // namespace fastgen
