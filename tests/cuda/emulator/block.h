// A block that runs: its threads, each on a fiber, and what they wait for.
#pragma once

#include <list>
#include <vector>

#include "copies.h"
#include "fiber.h"
#include "runtime.h"
#include "shared_memory.h"

namespace fastgen::emulator {

struct Thread {
  enum State { kReady, kWaiting, kReturned };

  Fiber fiber;
  uint3 index = {};
  int lane = 0, warp = 0;
  State state = kReady;
  Wait wait = {};  // if it waits
  Copies copies;
};

// Two tags, for two meetings in turn: a thread that is ahead does not order those behind it.
struct Tags {
  char& operator[](unsigned meeting) { return tags[meeting % 2]; }
  char tags[2] = {};
};

// Lanes of a warp that meet again and again with the same mask.
struct Group {
  explicit Group(unsigned mask) : mask(mask) {}

  const unsigned mask;
  unsigned arrived = 0;
  unsigned meetings = 0;  // complete ones
  Wait first = {};        // of the first lane to arrive
  Slots slots[2];         // like tags: some lanes have yet to read those of the last meeting
  Tags tags;
};

class Block {
 public:
  Block(const Launch& launch, uint3 index, size_t shared_limit, Stacks& stacks);

  // Runs all threads to their ends.
  void run();
  // What happened before an end is released here, for the host.
  static char ends;

  Thread& current() { return *current_; }
  SharedMemory& shared() { return shared_; }
  void meet_block(Site site);
  const Slots& meet_lanes(unsigned mask, const Wait& wait, const void* value, size_t bytes,
                          bool orders);

 private:
  static void thread_main();
  void resume(Thread& thread);
  void suspend(const Wait& wait);
  void finish();
  [[noreturn]] void report_deadlock() const;
  Group& group(int warp, unsigned mask);

  const Launch& launch_;
  SharedMemory shared_;
  std::vector<Thread> threads_;
  std::vector<std::list<Group>> groups_;  // of each warp
  Fiber scheduler_;
  Thread* current_ = nullptr;

  size_t returned_ = 0;
  size_t at_barrier_ = 0;
  unsigned barriers_ = 0;  // complete ones
  Site barrier_ = {};      // where the first thread waits
  Tags barrier_tags_;
};

// The one that runs, if any.
extern Block* running_block;

}  // namespace fastgen::emulator
