// A stack and the registers of a function that is interrupted and continued at will.
#pragma once

#include <cstddef>

namespace fastgen::emulator {

class Fiber {
 public:
  // Without a stack: stands for the code that runs when it first switches to another.
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // `entry` must not return, and begins with begin().
  void prepare(char* stack, size_t bytes, void (*entry)());
  static void begin(Fiber& from);

  // Stops here until someone switches back. With `last`, nobody will.
  void switch_to(Fiber& next, bool last = false);

  void* context() const { return context_; }

 private:
  void* stack_pointer_ = nullptr;
  const void* bottom_ = nullptr;
  size_t bytes_ = 0;
  void* saved_ = nullptr;    // AddressSanitizer's
  void* context_ = nullptr;  // ThreadSanitizer's
};

// Memory for the stacks of a block; later blocks use it again.
class Stacks {
 public:
  static constexpr size_t kBytes = 256 << 10;

  void reserve(size_t count);
  char* operator[](size_t i) const { return memory_ + i * kBytes; }

 private:
  char* memory_ = nullptr;
  size_t count_ = 0;
};

}  // namespace fastgen::emulator
