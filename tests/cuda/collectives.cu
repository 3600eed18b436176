// What lanes, blocks and launches do, one operation a kernel, for comparison with plain arithmetic.
#include "cuda/device.h"

struct Shuffles {
  const int* value;     // [32]
  const int* argument;  // [32] of each lane
  int* result;          // [4, 32]
  int width;
};

__global__ void shuffles_kernel(Shuffles a) {
  const int lane = threadIdx.x, value = a.value[lane], argument = a.argument[lane];
  a.result[lane] = __shfl_sync(~0u, value, argument, a.width);
  a.result[32 + lane] = __shfl_up_sync(~0u, value, argument, a.width);
  a.result[64 + lane] = __shfl_down_sync(~0u, value, argument, a.width);
  a.result[96 + lane] = __shfl_xor_sync(~0u, value, argument, a.width);
}

extern "C" int shuffles(const Shuffles* a) {
  return fastgen::launch(shuffles_kernel, dim3(1), dim3(32), 0, nullptr, *a);
}

struct Votes {
  const int* value;  // [32]
  int* result;       // [6, 32]
  unsigned mask;     // the other lanes form a group of their own
};

__global__ void votes_kernel(Votes a) {
  const int lane = threadIdx.x, value = a.value[lane];
  const unsigned mask = (a.mask >> lane) & 1 ? a.mask : ~a.mask;
  a.result[lane] = __ballot_sync(mask, value > 0);
  a.result[32 + lane] = __any_sync(mask, value > 0);
  a.result[64 + lane] = __all_sync(mask, value > 0);
  a.result[96 + lane] = __reduce_add_sync(mask, value);
  a.result[128 + lane] = __reduce_min_sync(mask, value);
  a.result[160 + lane] = __reduce_max_sync(mask, value);
}

extern "C" int votes(const Votes* a) {
  return fastgen::launch(votes_kernel, dim3(1), dim3(32), 0, nullptr, *a);
}

struct Product {
  const void* a;   // [16, 16]
  const void* b;   // [16, 8]
  const float* c;  // [16, 8]
  float* result;   // [16, 8]
  int is_bf16;
};

template <typename Element>
__global__ void product_kernel(Product p) {
  const Element* a = static_cast<const Element*>(p.a);
  const Element* b = static_cast<const Element*>(p.b);
  const int lane = threadIdx.x, group = lane >> 2, in_group = lane & 3;
  Element a_parts[8], b_parts[4];
  float sum[4];
  // By the formulas of the PTX ISA for the row and column of element i of a fragment.
  for (int i = 0; i < 8; ++i) {
    const int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
    const int column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
    a_parts[i] = a[row * 16 + column];
  }
  for (int i = 0; i < 4; ++i) {
    const int row = in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0);
    b_parts[i] = b[row * 8 + group];
  }
  for (int i = 0; i < 4; ++i) {
    sum[i] = p.c[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)];
  }
  uint32_t a_fragment[4], b_fragment[2];
  memcpy(a_fragment, a_parts, sizeof(a_parts));
  memcpy(b_fragment, b_parts, sizeof(b_parts));
  fastgen::mma_16x8x16(Element(), sum, a_fragment, b_fragment);
  for (int i = 0; i < 4; ++i) {
    p.result[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)] = sum[i];
  }
}

extern "C" int product(const Product* p) {
  auto* kernel = p->is_bf16 ? product_kernel<__nv_bfloat16> : product_kernel<__half>;
  return fastgen::launch(kernel, dim3(1), dim3(32), 0, nullptr, *p);
}

struct Turns {
  int* result;  // [blocks * threads] who wrote here
  int* next;    // [1] 0
  float* sum;   // [1] 0
  int* last;    // [1] 0
};

__global__ void turns_kernel(Turns a) {
  const int me = blockIdx.x * blockDim.x + threadIdx.x;
  a.result[atomicAdd(a.next, 1)] = me;
  atomicAdd(a.sum, 0.5f);
  atomicMax(a.last, me);
}

extern "C" int turns(const Turns* a) {
  return fastgen::launch(turns_kernel, dim3(3), dim3(40), 0, nullptr, *a);
}

struct Places {
  int* result;  // [blocks, threads, 3 + 3] indices of thread and block
};

__global__ void places_kernel(Places a) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  int* to = a.result + (block * blockDim.x * blockDim.y * blockDim.z + thread) * 6;
  to[0] = threadIdx.x, to[1] = threadIdx.y, to[2] = threadIdx.z;
  to[3] = blockIdx.x, to[4] = blockIdx.y, to[5] = blockIdx.z;
}

extern "C" int places(const Places* a) {
  return fastgen::launch(places_kernel, dim3(2, 3, 4), dim3(5, 2, 3), 0, nullptr, *a);
}

// Halves of a warp that part and come together: one waits for all while the other is on its own.
struct Halves {
  int* result;  // [32]
};

__global__ void halves_kernel(Halves a) {
  int sum = 1;
  if (threadIdx.x >= 16) sum = __reduce_add_sync(0xffff0000, sum);
  a.result[threadIdx.x] = __reduce_add_sync(~0u, sum);
}

extern "C" int halves(const Halves* a) {
  return fastgen::launch(halves_kernel, dim3(1), dim3(32), 0, nullptr, *a);
}

struct Configuration {
  int grid, block, dynamic_bytes, allowed_bytes, has_variable;
};

__global__ void plain_kernel() {}

__global__ void variable_kernel() {
  FASTGEN_SHARED(int, row, [1024]);
  row[threadIdx.x] = 0;
}

extern "C" int configured(const Configuration* a) {
  auto* kernel = a->has_variable ? variable_kernel : plain_kernel;
  if (a->allowed_bytes > 0) {
    const cudaError_t error = fastgen::allow_shared(kernel, a->allowed_bytes);
    if (error != cudaSuccess) return error;
  }
  return fastgen::launch(kernel, dim3(a->grid), dim3(a->block), a->dynamic_bytes, nullptr);
}

// Loses the error.
extern "C" int careless(const Configuration* a) {
  configured(a);
  return 0;
}
