// What kernels ask of the emulator's runtime: to wait, to exchange values, for memory, for copies.
// Everything here is called on the fiber of a CUDA thread, except for `run` and `allow`.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <source_location>

namespace fastgen::emulator {

constexpr int kLanes = 32;
constexpr size_t kSlotBytes = 64;

// Where in the kernel's source a thread waits.
using Site = std::source_location;

struct Wait {
  const char* name;
  Site site;
};

// A value of each lane of a warp.
struct Slots {
  alignas(16) unsigned char lane[kLanes][kSlotBytes];
};

struct Launch {
  const void* kernel;
  dim3 grid, block;
  size_t shared_bytes;
  void (*body)(void* arguments);  // calls the kernel, once for each thread
  void* arguments;
};

// Runs all blocks of a launch, one after another. Says why if it cannot.
cudaError_t run(const Launch& launch);
cudaError_t allow(const void* kernel, int shared_bytes);
// True once `run` returned an error, which an entry point may have lost.
bool any_launch_failed();
// How often all threads of a block met, in all blocks of all launches.
uint64_t barriers();

void wait_for_block(Site site);
void wait_for_warp(unsigned mask, Site site);

// Waits for the lanes of the mask. What they gave can be read until this thread waits again.
const Slots& exchange(unsigned mask, const Wait& wait, const void* value, size_t bytes);
int lane_of_warp();

void* dynamic_shared();
void* shared_variable(const void* key, size_t bytes);

void copy(void* shared, const void* global, size_t bytes);
void commit();
void wait_for_copies(int later_groups);

// Orders what other blocks did before their fences before what this thread does next.
void fence();

// Ends the process with a message that names the running thread.
[[noreturn, gnu::format(printf, 1, 2)]] void fail(const char* format, ...);

}  // namespace fastgen::emulator
