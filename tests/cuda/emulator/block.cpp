#include "block.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "order.h"
#include "sanitizers.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace fastgen::emulator {

Block* running_block = nullptr;
char Block::ends;

static std::string describe(Site site) {
  return std::string(site.file_name()) + ":" + std::to_string(site.line());
}

static bool same(Site a, Site b) {
  return a.line() == b.line() && a.column() == b.column() &&
         std::strcmp(a.file_name(), b.file_name()) == 0;
}

Block::Block(const Launch& launch, uint3 index, size_t shared_limit, Stacks& stacks)
    : launch_(launch),
      shared_(launch.shared_bytes, shared_limit),
      threads_(size_t{launch.block.x} * launch.block.y * launch.block.z),
      groups_((threads_.size() + kLanes - 1) / kLanes) {
  stacks.reserve(threads_.size());
  blockIdx = index;
  blockDim = launch.block;
  gridDim = launch.grid;
  for (size_t i = 0; i < threads_.size(); ++i) {
    Thread& thread = threads_[i];
    const unsigned row = static_cast<unsigned>(i) / blockDim.x;
    thread.index = {static_cast<unsigned>(i) % blockDim.x, row % blockDim.y, row / blockDim.y};
    thread.lane = static_cast<int>(i % kLanes);
    thread.warp = static_cast<int>(i / kLanes);
    thread.fiber.prepare(stacks[i], Stacks::kBytes, &Block::thread_main);
  }
}

void Block::run() {
  void* const host = current_context();
  enter_context(scheduler_.context());
  running_block = this;
  std::vector<size_t> order = turns(threads_.size());
  while (returned_ < threads_.size()) {
    bool progress = false;
    for (const size_t i : order) {
      if (threads_[i].state != Thread::kReady) continue;
      progress = true;
      resume(threads_[i]);
    }
    if (!progress) report_deadlock();
    renew(order);
  }
  running_block = nullptr;
  enter_context(host);
}

void Block::thread_main() {
  Block& block = *running_block;
  Fiber::begin(block.scheduler_);
  block.launch_.body(block.launch_.arguments);
  release(ends);
  block.finish();
  block.current().fiber.switch_to(block.scheduler_, true);
  std::abort();
}

void Block::finish() {
  const IgnoreAccesses ignore;
  if (current_->copies.pending()) fail("a thread returns with asynchronous copies pending");
  if (at_barrier_ > 0) {
    fail("a thread returns while %zu of its block wait in __syncthreads at %s", at_barrier_,
         describe(barrier_).c_str());
  }
  current_->state = Thread::kReturned;
  ++returned_;
}

void Block::resume(Thread& thread) {
  current_ = &thread;
  threadIdx = thread.index;
  scheduler_.switch_to(thread.fiber);
}

void Block::suspend(const Wait& wait) {
  current_->state = Thread::kWaiting;
  current_->wait = wait;
  current_->fiber.switch_to(scheduler_);
}

static uint64_t num_barriers = 0;

uint64_t barriers() { return num_barriers; }

void Block::meet_block(Site site) {
  const IgnoreAccesses ignore;
  if (returned_ > 0) {
    fail("__syncthreads at %s after %zu threads of the block returned", describe(site).c_str(),
         returned_);
  }
  if (at_barrier_ > 0 && !same(site, barrier_)) {
    fail("threads of a block are in two __syncthreads, at %s and at %s", describe(barrier_).c_str(),
         describe(site).c_str());
  }
  barrier_ = site;
  char& tag = barrier_tags_[barriers_];
  release(tag);
  if (++at_barrier_ == threads_.size()) {
    at_barrier_ = 0;
    ++barriers_;
    ++num_barriers;
    for (Thread& thread : threads_) thread.state = Thread::kReady;
  } else {
    suspend({"__syncthreads", site});
  }
  acquire(tag);
}

Group& Block::group(int warp, unsigned mask) {
  for (Group& group : groups_[warp]) {
    if (group.mask == mask) return group;
  }
  return groups_[warp].emplace_back(mask);
}

const Slots& Block::meet_lanes(unsigned mask, const Wait& wait, const void* value, size_t bytes,
                               bool orders) {
  const IgnoreAccesses ignore;
  const int lane = current_->lane;
  if (!((mask >> lane) & 1)) {
    fail("%s at %s by lane %d, outside of its mask %08x", wait.name, describe(wait.site).c_str(),
         lane, mask);
  }
  Group& group = this->group(current_->warp, mask);
  if (group.arrived == 0) group.first = wait;
  if (std::strcmp(group.first.name, wait.name) != 0) {
    fail("lanes of mask %08x are in %s at %s and in %s at %s", mask, group.first.name,
         describe(group.first.site).c_str(), wait.name, describe(wait.site).c_str());
  }
  char& tag = group.tags[group.meetings];
  Slots& slots = group.slots[group.meetings % 2];
  if (orders) release(tag);
  if (bytes > 0) std::memcpy(slots.lane[lane], value, bytes);
  group.arrived |= 1u << lane;
  if (group.arrived == mask) {
    group.arrived = 0;
    ++group.meetings;
    for (int i = 0; i < kLanes; ++i) {
      if ((mask >> i) & 1) threads_[current_->warp * kLanes + i].state = Thread::kReady;
    }
  } else {
    suspend(wait);
  }
  if (orders) acquire(tag);
  return slots;
}

void Block::report_deadlock() const {
  std::map<std::string, int> waiting;
  for (const Thread& thread : threads_) {
    if (thread.state != Thread::kWaiting) continue;
    ++waiting[std::string(thread.wait.name) + " at " + describe(thread.wait.site)];
  }
  std::string message;
  for (const auto& [where, count] : waiting) {
    message += ", " + std::to_string(count) + " in " + where;
  }
  fail("deadlock: of %zu threads %zu returned%s", threads_.size(), returned_, message.c_str());
}

void fail(const char* format, ...) {
  std::fputs("emulator: ", stderr);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  if (running_block != nullptr) {
    std::fprintf(stderr, " (block %u,%u,%u, thread %u,%u,%u)", blockIdx.x, blockIdx.y, blockIdx.z,
                 threadIdx.x, threadIdx.y, threadIdx.z);
  }
  std::fputc('\n', stderr);
  std::_Exit(1);
}

void wait_for_block(Site site) { running_block->meet_block(site); }

void wait_for_warp(unsigned mask, Site site) {
  running_block->meet_lanes(mask, {"__syncwarp", site}, nullptr, 0, true);
}

const Slots& exchange(unsigned mask, const Wait& wait, const void* value, size_t bytes) {
  return running_block->meet_lanes(mask, wait, value, bytes, false);
}

int lane_of_warp() { return running_block->current().lane; }

void* dynamic_shared() { return running_block->shared().dynamic(); }

void* shared_variable(const void* key, size_t bytes) {
  const IgnoreAccesses ignore;
  return running_block->shared().variable(key, bytes);
}

void copy(void* shared, const void* global, size_t bytes) {
  if (!running_block->shared().contains(shared, bytes)) {
    fail("copy_async<%zu> to an address that is not in shared memory", bytes);
  }
  running_block->current().copies.issue(shared, global, bytes);
}

void commit() { running_block->current().copies.commit(); }

void wait_for_copies(int later_groups) { running_block->current().copies.wait(later_groups); }

void fence() {
  static char tag;
  release(tag);
  acquire(tag);
}

}  // namespace fastgen::emulator
