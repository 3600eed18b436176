// Kernels that the interpreter is tested with. FAULTS compiles some of them with a mistake.
#include "cuda/device.h"

namespace {

struct ScaleArguments {
  const float* from;
  float* to;
  int count;
  float factor;
};

}  // namespace

__global__ void scale(const ScaleArguments arguments) {
  const int step = gridDim.x * blockDim.x;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < arguments.count; i += step) {
    arguments.to[i] = arguments.factor * arguments.from[i];
  }
}

// Steps of the Collatz sequence down to 1: each lane's own number of turns, two branches in each.
__global__ void collatz(const unsigned* from, int* steps) {
  unsigned value = from[threadIdx.x];
  int count = 0;
  while (value != 1) {
    if (value % 2 == 0) {
      value /= 2;
    } else if (value % 3 == 0) {
      value = 3 * value + 1;
    } else {
      value = 2 * value + value + 1;
    }
    ++count;
  }
  steps[threadIdx.x] = count;
}

// Sums of all lanes and of groups of 8 in the lower half, ranks by shuffle and by vote.
__global__ void shuffles(const float* from, float* sums, int* ranks) {
  const unsigned lane = threadIdx.x;
  float sum = from[lane];
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(0xffffffff, sum, distance);
  }
  sums[lane] = sum;
  if (lane < 16) {
    const unsigned group = 0xffu << (lane & ~7);
    float part = from[lane];
    part += __shfl_down_sync(group, part, 4, 8);
    part += __shfl_down_sync(group, part, 2, 8);
    part += __shfl_down_sync(group, part, 1, 8);
    part = __shfl_sync(group, part, 0, 8);
    sums[32 + lane] = part;
  }
  int rank = 1;
  for (int distance = 1; distance < 32; distance *= 2) {
    const int below = __shfl_up_sync(0xffffffff, rank, distance);
    if (lane >= distance) {
      rank += below;
    }
  }
  ranks[lane] = rank;
  const unsigned positive = __ballot_sync(0xffffffff, from[lane] > 0);
  ranks[32 + lane] = __popc(positive & ((1u << lane) - 1));
  ranks[64 + lane] = __reduce_max_sync(0xffffffff, lane * 7 % 32);
  ranks[96 + lane] = __any_sync(0xffffffff, lane == 40) + 2 * __all_sync(0xffffffff, rank > 0);
}

__global__ void never_meet(float* values) {
  float value = values[threadIdx.x];
  if (threadIdx.x < 16) {
    value += __shfl_xor_sync(0xffffffff, value, 1);
  }
  __syncwarp();
  values[threadIdx.x] = value;
}

// to[block] = the sum of the block's numbers, through shared memory and several warps.
__global__ void block_sum(const float* from, float* to, int* threads) {
  FASTGEN_DYNAMIC_SHARED(float, values);
  FASTGEN_SHARED(float, last, [1]);
  values[threadIdx.x] = from[blockIdx.x * blockDim.x + threadIdx.x];
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) {
      values[threadIdx.x] += values[threadIdx.x + half];
    }
#ifndef FAULTS
    __syncthreads();
#endif
  }
  if (threadIdx.x == blockDim.x - 1) {
    last[0] = values[0];
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    to[blockIdx.x] = last[0];
  }
  atomicAdd(threads, 1);
  atomicMax(threads + 1, threadIdx.x);
}

// Each thread adds up its 16 bytes of each of `count` tiles, two of which are under way.
__global__ void pipeline(const float4* from, float4* to, int count) {
  FASTGEN_SHARED(float4, tiles, [2][32]);
  const int lane = threadIdx.x;
  float4 sum = {0, 0, 0, 0};
  fastgen::copy_async<16>(&tiles[0][lane], &from[lane]);
  fastgen::commit_copies();
  for (int i = 0; i < count; ++i) {
    if (i + 1 < count) {
      fastgen::copy_async<16>(&tiles[(i + 1) % 2][lane], &from[32 * (i + 1) + lane]);
    }
    fastgen::commit_copies();
#ifdef FAULTS
    fastgen::wait_for_copies<2>();
#else
    fastgen::wait_for_copies<1>();
#endif
    __syncthreads();
    const float4 tile = tiles[i % 2][lane ^ 1];
    sum = {sum.x + tile.x, sum.y + tile.y, sum.z + tile.z, sum.w + tile.w};
    __syncthreads();
  }
  fastgen::wait_for_copies<0>();
  to[lane] = sum;
}

// c [16, 8] += a [16, K] b [8, K] transposed.
template <typename T>
__global__ void multiply(const T* a, const T* b, float* c, int K) {
  const int row = threadIdx.x / 4, column = threadIdx.x % 4 * 2;
  const auto pair = [&](const T* matrix, int r, int k) {
    return *reinterpret_cast<const uint32_t*>(&matrix[r * K + k]);
  };
  float sum[4] = {0, 0, 0, 0};
  for (int k = column; k < K; k += 16) {
#ifdef FAULTS
    const uint32_t of_a[4] = {pair(a, row, k), pair(a, row, k + 8), pair(a, row + 8, k),
                              pair(a, row + 8, k + 8)};
#else
    const uint32_t of_a[4] = {pair(a, row, k), pair(a, row + 8, k), pair(a, row, k + 8),
                              pair(a, row + 8, k + 8)};
#endif
    const uint32_t of_b[2] = {pair(b, row, k), pair(b, row, k + 8)};
    fastgen::mma_16x8x16(T(), sum, of_a, of_b);
  }
  for (int i = 0; i < 4; ++i) {
    c[(row + i / 2 * 8) * 8 + column + i % 2] = sum[i];
  }
}
template __global__ void multiply(const __half*, const __half*, float*, int);
template __global__ void multiply(const __nv_bfloat16*, const __nv_bfloat16*, float*, int);

// Eight numbers a thread, 16 bytes in and out.
template <typename T>
__global__ void square(const uint4* from, uint4* to) {
  union {
    uint4 bits;
    T numbers[8];
  } vector;
  vector.bits = from[threadIdx.x];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float number = static_cast<float>(vector.numbers[i]);
    vector.numbers[i] = static_cast<T>(number * number);
  }
  to[threadIdx.x] = vector.bits;
}
template __global__ void square<__half>(const uint4*, uint4*);
template __global__ void square<__nv_bfloat16>(const uint4*, uint4*);

__global__ void packed(const __half2* from, __half2* to, const __nv_bfloat162* from_b,
                       __nv_bfloat162* to_b) {
  const int i = threadIdx.x;
  to[i] = __hfma2(from[i], from[i], __half2half2(__float2half(0.5f)));
  to_b[i] = __hadd2(from_b[i], from_b[i]);
  to[32 + i] = __floats2half2_rn(i, -i);
  to_b[32 + i] = __floats2bfloat162_rn(i, -i);
}

__global__ void functions(const float* from, float* to) {
  const float x = from[threadIdx.x];
  const float results[] = {
      exp2f(x),         __expf(x),    expf(x),         logf(fabsf(x)),
      sqrtf(fabsf(x)),  x / 3.0f,     fmaxf(x, 0.f),   fminf(x, NAN),
      rintf(x),         floorf(x),    fmaf(x, x, 1),   rsqrtf(x * x),
      __fdividef(x, 3), __frcp_rn(x), copysignf(2, x), isnan(x) ? 1.f : 0.f,
  };
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    to[i * 32 + threadIdx.x] = results[i];
  }
}

__global__ void integers(const int* a, const int* b, long long* to) {
  const int x = a[threadIdx.x], y = b[threadIdx.x];
  const unsigned ux = x, uy = y;
  const long long wide = static_cast<long long>(x) * y;
  const long long results[] = {
      x / y,
      x % y,
      ux / uy,
      ux % uy,
      wide,
      wide / 1000003,
      wide % y,
      __mulhi(x, y),
      __umulhi(ux, uy),
      __umul64hi(wide, ~wide),
      x >> (y & 31),
      ux >> (y & 31),
      ux << (y & 31),
      __popc(x),
      __clz(x),
      __ffs(x),
      __brev(x),
      __byte_perm(x, y, 0x4602),
      __funnelshift_l(x, y, y & 31),
      (x & y) | (~x ^ y),
      min(x, y),
      max(ux, uy),
      static_cast<signed char>(x),
      static_cast<unsigned short>(y),
      static_cast<int>(static_cast<float>(x)),
      abs(x),
  };
#pragma unroll
  for (int i = 0; i < 26; ++i) {
    to[i * 32 + threadIdx.x] = results[i];
  }
}

__global__ void vector_load(const float4* from, float* to) {
  const float4 vector = from[threadIdx.x];
  to[threadIdx.x] = vector.x + vector.y + vector.z + vector.w;
}
