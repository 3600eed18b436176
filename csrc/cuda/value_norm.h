// Value norms: the Euclidean norm of the value vector in every slot of a request's heads.
//
// Grid (tokens / 16, L*H), 128 threads: the tokens of a block lie on one page, since S is a
// multiple of 16; a warp per token, four tokens one after the other; lanes read vectors of 16
// bytes. Bytes: D elements read and one float written per token: the least possible. Untested on
// hardware: everything.
#pragma once

#include "cuda/found.h"

namespace fastgen {

constexpr int kNormThreads = 128;
constexpr int kNormTokens = 16;  // of a block

template <typename T>
__global__ void __launch_bounds__(kNormThreads, 12) value_norm_kernel(ValueNormArgs a) {
  const int layer_head = blockIdx.y, d = a.pool.head_size, slots = a.pool.page_slots;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const HeadRecord& record = a.heads[layer_head];
  const int first_token = blockIdx.x * kNormTokens;
  const int count = min(kNormTokens, a.num_tokens - first_token);
  float* norm = a.norm + static_cast<int64_t>(layer_head) * a.num_tokens + first_token;
  if (!has_slots(a.pool, a.block_row, record, a.num_tokens) ||
      !has_page(a.pool, a.block_row, record, first_token / slots)) {
    if (threadIdx.x < count) norm[threadIdx.x] = NAN;
    return;
  }
  const StreamPage page = head_page(a.pool, a.block_row, record, first_token / slots);
  const T* values = reinterpret_cast<const T*>(page.data) + d;
  for (int i = warp; i < count; i += kNormThreads / kWarpSize) {
    const T* value = values + (first_token % slots + i) * a.pool.slot_stride;
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
    if (lane == 0) norm[i] = sqrtf(sum);
  }
}

}  // namespace fastgen
