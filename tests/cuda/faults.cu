// Kernels with one fault each, which `fixed` repairs: what emulator and sanitizers have to find.
#include "cuda/device.h"

constexpr int kThreads = 64;
constexpr int kRowBytes = kThreads * sizeof(float);

struct Faults {
  const float* in;  // [kThreads + 4]
  float* out;       // [kThreads]
  int* counter;     // [1] 0
  int fixed;
};

namespace kernels {

__global__ void missing_syncwarp(Faults a) {
  FASTGEN_DYNAMIC_SHARED(float, row);
  const int t = threadIdx.x;
  row[t] = a.in[t];
  if (a.fixed) __syncwarp();
  a.out[t] = row[t ^ 1];
}

// A shuffle lets lanes wait for each other, and orders none of their accesses.
__global__ void shuffle_for_syncwarp(Faults a) {
  FASTGEN_DYNAMIC_SHARED(float, row);
  const int t = threadIdx.x;
  row[t] = a.in[t];
  const float other = __shfl_xor_sync(~0u, a.in[t], 1);
  if (a.fixed) __syncwarp();
  a.out[t] = row[t ^ 1] - other;
}

// Lanes of one half are ordered, those of the two are not.
__global__ void syncwarp_of_half(Faults a) {
  FASTGEN_DYNAMIC_SHARED(float, row);
  const int t = threadIdx.x, lane = t % warpSize;
  row[t] = a.in[t];
  __syncwarp(lane < 16 ? 0xffff : 0xffff0000);
  a.out[t] = row[t ^ (a.fixed ? 1 : 16)];
}

// A warp's barrier where the block's is needed.
__global__ void syncwarp_for_barrier(Faults a) {
  FASTGEN_DYNAMIC_SHARED(float, row);
  const int t = threadIdx.x;
  row[t] = a.in[t];
  if (a.fixed) {
    __syncthreads();
  } else {
    __syncwarp();
  }
  a.out[t] = row[t ^ 32];
}

// Writes of the second round meet reads of the first.
__global__ void missing_second_barrier(Faults a) {
  FASTGEN_DYNAMIC_SHARED(float, row);
  const int t = threadIdx.x;
  for (int round = 0; round < 2; ++round) {
    row[t] = a.in[t];
    __syncthreads();
    a.out[t] = row[(t + 33) % kThreads];
    if (a.fixed) __syncthreads();
  }
}

__global__ void cross_block_race(Faults a) {
  if (threadIdx.x != 0) return;
  if (a.fixed) {
    atomicAdd(a.out, 1.f);
  } else {
    a.out[0] += 1.f;
  }
}

// Barriers of two blocks have nothing to do with each other.
__global__ void cross_block_race_at_barrier(Faults a) {
  const bool second = blockIdx.x == 1;
  const int place = a.fixed ? blockIdx.x : 0;
  if (!second && threadIdx.x == 0) a.out[place] = 1.f;
  __syncthreads();
  if (second && threadIdx.x == 1) a.out[place] = 2.f;
}

// The last block reads what the others wrote.
__global__ void missing_fence(Faults a) {
  if (threadIdx.x != 0) return;
  a.out[blockIdx.x] = a.in[blockIdx.x];
  if (a.fixed) __threadfence();
  if (atomicAdd(a.counter, 1) != static_cast<int>(gridDim.x) - 1) return;
  if (a.fixed) __threadfence();
  for (unsigned i = 0; i < gridDim.x; ++i) a.out[gridDim.x] += a.out[i];
}

__global__ void divergent_barrier(Faults a) {
  if (a.fixed || threadIdx.x < kThreads / 2) __syncthreads();
  a.out[threadIdx.x] = 1.f;
}

__global__ void two_barriers(Faults a) {
  if (a.fixed || threadIdx.x < kThreads / 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  a.out[threadIdx.x] = 1.f;
}

__global__ void divergent_shuffle(Faults a) {
  const int lane = threadIdx.x % warpSize;
  if (a.fixed || lane < 16) a.out[threadIdx.x] = __shfl_xor_sync(~0u, a.in[threadIdx.x], 1);
}

__global__ void lane_outside_mask(Faults a) {
  a.out[threadIdx.x] = __ballot_sync(a.fixed ? ~0u : 0xffff, 1);
}

__global__ void shuffle_from_outside_mask(Faults a) {
  if (threadIdx.x % warpSize >= 16) return;
  a.out[threadIdx.x] = __shfl_xor_sync(0xffff, a.in[threadIdx.x], a.fixed ? 8 : 16);
}

__global__ void two_collectives(Faults a) {
  const int t = threadIdx.x;
  a.out[t] = a.fixed || t % 2 ? __any_sync(~0u, 1) : __shfl_sync(~0u, 1, 0);
}

__global__ void uninitialised_shared(Faults a) {
  FASTGEN_DYNAMIC_SHARED(float, row);
  if (a.fixed) row[threadIdx.x] = 0.f;
  __syncthreads();
  a.out[threadIdx.x] = row[threadIdx.x];
}

__global__ void static_overrun(Faults a) {
  FASTGEN_SHARED(float, row, [kThreads]);
  float* const first = row;  // of an array, its type tells the size
  first[threadIdx.x + (a.fixed ? 0 : 1)] = 1.f;
  __syncthreads();
}

__global__ void dynamic_overrun(Faults a) {
  FASTGEN_DYNAMIC_SHARED(float, row);
  row[threadIdx.x + (a.fixed ? 0 : 1)] = 1.f;
  __syncthreads();
}

__global__ void short_buffer(Faults a) {
  a.out[threadIdx.x] = a.in[threadIdx.x + (a.fixed ? 4 : 5)];
}

__global__ void misaligned_load(Faults a) {
  const float4 four = *reinterpret_cast<const float4*>(a.in + (a.fixed ? 4 : 1));
  a.out[threadIdx.x] = four.x;
}

__global__ void misaligned_copy(Faults a) {
  FASTGEN_DYNAMIC_SHARED(float, row);
  if (threadIdx.x == 0) fastgen::copy_async<16>(row, a.in + (a.fixed ? 4 : 1));
  fastgen::commit_copies();
  fastgen::wait_for_copies<0>();
}

__global__ void copy_from_short_buffer(Faults a) {
  FASTGEN_DYNAMIC_SHARED(float, row);
  fastgen::copy_async<4>(row + threadIdx.x, a.in + threadIdx.x + (a.fixed ? 4 : 5));
  fastgen::commit_copies();
  fastgen::wait_for_copies<0>();
}

__global__ void copy_beyond_shared(Faults a) {
  FASTGEN_DYNAMIC_SHARED(float, row);
  if (threadIdx.x == 0) fastgen::copy_async<8>(row + kThreads - (a.fixed ? 2 : 0), a.in);
  fastgen::commit_copies();
  fastgen::wait_for_copies<0>();
}

__global__ void copy_used_before_wait(Faults a) {
  FASTGEN_DYNAMIC_SHARED(float, row);
  const int t = threadIdx.x;
  fastgen::copy_async<4>(row + t, a.in + t);
  fastgen::commit_copies();
  if (a.fixed) fastgen::wait_for_copies<0>();
  a.out[t] = row[t];
  fastgen::wait_for_copies<0>();
}

__global__ void wait_too_weak(Faults a) {
  FASTGEN_DYNAMIC_SHARED(float, row);
  const int t = threadIdx.x;
  fastgen::copy_async<4>(row + t, a.in + t);
  fastgen::commit_copies();
  fastgen::commit_copies();
  if (a.fixed) {
    fastgen::wait_for_copies<1>();
  } else {
    fastgen::wait_for_copies<2>();
  }
  a.out[t] = row[t];
  fastgen::wait_for_copies<0>();
}

__global__ void copy_never_committed(Faults a) {
  FASTGEN_DYNAMIC_SHARED(float, row);
  fastgen::copy_async<4>(row + threadIdx.x, a.in);
  if (a.fixed) fastgen::commit_copies();
  fastgen::wait_for_copies<0>();
}

__global__ void copy_pending_at_exit(Faults a) {
  FASTGEN_DYNAMIC_SHARED(float, row);
  fastgen::copy_async<4>(row + threadIdx.x, a.in);
  fastgen::commit_copies();
  if (a.fixed) fastgen::wait_for_copies<0>();
}

// A wait is for one's own copies, a barrier for those of others.
__global__ void copy_of_other_thread(Faults a) {
  FASTGEN_DYNAMIC_SHARED(float, row);
  const int t = threadIdx.x;
  fastgen::copy_async<4>(row + t, a.in + t);
  fastgen::commit_copies();
  fastgen::wait_for_copies<0>();
  if (a.fixed) __syncthreads();
  a.out[t] = row[(t + 1) % kThreads];
}

}  // namespace kernels

#define ENTRY(name, blocks)                                                                 \
  extern "C" int name(const Faults* faults) {                                               \
    return fastgen::launch(kernels::name, dim3(blocks), dim3(kThreads), kRowBytes, nullptr, \
                           *faults);                                                        \
  }
ENTRY(missing_syncwarp, 1)
ENTRY(shuffle_for_syncwarp, 1)
ENTRY(syncwarp_of_half, 1)
ENTRY(syncwarp_for_barrier, 1)
ENTRY(missing_second_barrier, 1)
ENTRY(cross_block_race, 3)
ENTRY(cross_block_race_at_barrier, 2)
ENTRY(missing_fence, 3)
ENTRY(divergent_barrier, 1)
ENTRY(two_barriers, 1)
ENTRY(divergent_shuffle, 1)
ENTRY(lane_outside_mask, 1)
ENTRY(shuffle_from_outside_mask, 1)
ENTRY(two_collectives, 1)
ENTRY(uninitialised_shared, 1)
ENTRY(static_overrun, 1)
ENTRY(dynamic_overrun, 1)
ENTRY(short_buffer, 1)
ENTRY(misaligned_load, 1)
ENTRY(misaligned_copy, 1)
ENTRY(copy_from_short_buffer, 1)
ENTRY(copy_beyond_shared, 1)
ENTRY(copy_used_before_wait, 1)
ENTRY(wait_too_weak, 1)
ENTRY(copy_never_committed, 1)
ENTRY(copy_pending_at_exit, 1)
ENTRY(copy_of_other_thread, 1)
