#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <deque>

#include "runtime.h"
#include "sanitizers.h"

#ifndef __x86_64__
#error "the emulator switches fibers in x86-64 assembly"
#endif

// Keeps what a called function has to keep. (ucontext is 8 times slower: it asks the kernel.)
extern "C" void fastgen_switch(void** from, void* to);
asm(R"(
.text
.globl fastgen_switch
.type fastgen_switch, @function
fastgen_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastgen_switch, .-fastgen_switch
)");

namespace fastgen::emulator {

Fiber::Fiber() : context_(create_context()) {}

// ThreadSanitizer takes a new context for the same as the destroyed one whose place it gets, and
// would find no race between the two: many are kept, of the 8000 or so that it has place for.
Fiber::~Fiber() {
  constexpr size_t kKept = 6000;
  static std::deque<void*> kept;
  if (context_ == nullptr) return;
  kept.push_back(context_);
  if (kept.size() <= kKept) return;
  destroy_context(kept.front());
  kept.pop_front();
}

void Fiber::prepare(char* stack, size_t bytes, void (*entry)()) {
  constexpr int kRegisters = 6;
  bottom_ = stack;
  bytes_ = bytes;
  void** top = reinterpret_cast<void**>(stack + bytes);
  *--top = nullptr;  // where `entry` would return to
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kRegisters; ++i) *--top = nullptr;
  stack_pointer_ = top;
}

void Fiber::begin(Fiber& from) { enter_stack(nullptr, &from.bottom_, &from.bytes_); }

void Fiber::switch_to(Fiber& next, bool last) {
  enter_context(next.context_);
  leave_stack(last ? nullptr : &saved_, next.bottom_, next.bytes_);
  fastgen_switch(&stack_pointer_, next.stack_pointer_);
  enter_stack(saved_, nullptr, nullptr);
}

void Stacks::reserve(size_t count) {
#ifndef FASTGEN_THREAD
  if (count <= count_) return;
#endif
  // ThreadSanitizer gets new memory each time: what earlier blocks did on theirs is forgotten.
  if (memory_ != nullptr) munmap(memory_, count_ * kBytes);
  void* memory = mmap(nullptr, count * kBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) fail("no memory for %zu stacks", count);
  memory_ = static_cast<char*>(memory);
  count_ = count;
}

}  // namespace fastgen::emulator
