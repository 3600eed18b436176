// Value norms: the Euclidean norm of every token's value vector, on a prompt's stock pages.
//
// Grid (tokens / 16, L*H), 128 threads: a warp per token, four tokens one after the other; lanes
// read vectors of 16 bytes. Bytes: D elements read and one float written per token: the least
// possible. Untested on hardware: everything.
#pragma once

#include "cuda/found.h"

namespace fastgen {

constexpr int kNormThreads = 128;
constexpr int kNormTokens = 16;  // of a block

template <typename T>
__global__ void __launch_bounds__(kNormThreads) value_norm_kernel(ValueNormArgs a) {
  const int layer_head = blockIdx.y, d = a.pool.head_size;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  for (int i = warp; i < kNormTokens; i += kNormThreads / kWarpSize) {
    const int token = blockIdx.x * kNormTokens + i;
    if (token >= a.num_tokens) return;
    float* norm = a.norm + static_cast<int64_t>(layer_head) * a.num_tokens + token;
    const int32_t block = find_block(a.pool, a.block_row, token);
    if (block < 0) {
      if (lane == 0) *norm = NAN;
      continue;
    }
    const T* page = reinterpret_cast<const T*>(
        stock_page(a.pool, layer_head / a.pool.num_heads, block, layer_head % a.pool.num_heads));
    const T* value = page + (token % a.pool.page_slots) * a.pool.slot_stride + d;
    float sum = 0.f;
    for (int first = lane * Vector<T>::kSize; first < d; first += kWarpSize * Vector<T>::kSize) {
      const Vector<T> x = *reinterpret_cast<const Vector<T>*>(value + first);
#pragma unroll
      for (int j = 0; j < Vector<T>::kSize; ++j) sum += to_float(x.at[j]) * to_float(x.at[j]);
    }
#pragma unroll
    for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(kWholeWarp, sum, distance);
    }
    if (lane == 0) *norm = sqrtf(sum);
  }
}

}  // namespace fastgen
