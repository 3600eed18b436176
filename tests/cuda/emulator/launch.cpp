#include <cstdio>
#include <map>
#include <memory>

#include "block.h"
#include "order.h"
#include "sanitizers.h"

namespace fastgen::emulator {

static std::map<const void*, size_t> allowed_bytes;
static bool failed = false;

bool any_launch_failed() { return failed; }

cudaError_t allow(const void* kernel, int shared_bytes) {
  if (shared_bytes < 0 || static_cast<size_t>(shared_bytes) > kSharedOfDevice) {
    return cudaErrorInvalidValue;
  }
  allowed_bytes[kernel] = static_cast<size_t>(shared_bytes);
  return cudaSuccess;
}

static cudaError_t reject(const Launch& launch, cudaError_t error, const char* reason) {
  const dim3 grid = launch.grid, block = launch.block;
  std::fprintf(stderr, "emulator: launch of grid %u,%u,%u, block %u,%u,%u, %zu shared bytes: %s\n",
               grid.x, grid.y, grid.z, block.x, block.y, block.z, launch.shared_bytes, reason);
  failed = true;
  return error;
}

cudaError_t run(const Launch& launch) {
  const dim3 grid = launch.grid, block = launch.block;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || block.x == 0 || block.y == 0 || block.z == 0) {
    return reject(launch, cudaErrorInvalidConfiguration, "a dimension is 0");
  }
  if (grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) {
    return reject(launch, cudaErrorInvalidConfiguration, "the grid is too large");
  }
  if (block.x > 1024 || block.y > 1024 || block.z > 64 || block.x * block.y * block.z > 1024) {
    return reject(launch, cudaErrorInvalidConfiguration, "the block is too large");
  }
  const auto allowed = allowed_bytes.find(launch.kernel);
  const bool any = allowed == allowed_bytes.end();
  if (launch.shared_bytes > (any ? kSharedOfAnyKernel : allowed->second)) {
    return reject(launch, cudaErrorInvalidValue, "more shared memory than 48 KiB or was allowed");
  }

  // Blocks are not ordered among themselves, only after the launch and before its end.
  const IgnoreAccesses ignore;
  static Stacks stacks;
  const size_t limit = any ? kSharedOfAnyKernel : kSharedOfDevice;
  const size_t slice = size_t{grid.x} * grid.y;
  for (const size_t i : turns(slice * grid.z)) {
    const uint3 index = {static_cast<unsigned>(i % grid.x),
                         static_cast<unsigned>(i % slice / grid.x),
                         static_cast<unsigned>(i / slice)};
    std::make_unique<Block>(launch, index, limit, stacks)->run();
  }
  acquire(Block::ends);
  return cudaSuccess;
}

}  // namespace fastgen::emulator
