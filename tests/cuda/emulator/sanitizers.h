// What sanitizers have to be told about fibers; nothing in a plain build. The runtime is compiled
// without instrumentation, so they see what kernels do and not how they are scheduled.
#pragma once

#include <cstddef>

#ifdef FASTGEN_ADDRESS
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef FASTGEN_THREAD
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace fastgen::emulator {

// AddressSanitizer wants to know which stack is in use.
#ifdef FASTGEN_ADDRESS
inline void leave_stack(void** saved, const void* next_bottom, size_t next_bytes) {
  __sanitizer_start_switch_fiber(saved, next_bottom, next_bytes);
}
inline void enter_stack(void* saved, const void** last_bottom, size_t* last_bytes) {
  __sanitizer_finish_switch_fiber(saved, last_bottom, last_bytes);
}
#else
inline void leave_stack(void**, const void*, size_t) {}
inline void enter_stack(void*, const void**, size_t*) {}
#endif

// ThreadSanitizer takes a context for a thread, which begins after what its creator did. Entering
// one orders nothing: what is released at a tag comes before what acquires there. A freed tag
// forgets, one on the stack does not.
#ifdef FASTGEN_THREAD
inline void* current_context() { return __tsan_get_current_fiber(); }
inline void* create_context() { return __tsan_create_fiber(0); }
inline void destroy_context(void* context) { __tsan_destroy_fiber(context); }
inline void enter_context(void* context) {
  __tsan_switch_to_fiber(context, __tsan_switch_to_fiber_no_sync);
}
inline void release(char& tag) { __tsan_release(&tag); }
inline void acquire(char& tag) { __tsan_acquire(&tag); }

// Hides accesses of the runtime, and of library functions that it calls.
struct IgnoreAccesses {
  IgnoreAccesses() {
    AnnotateIgnoreReadsBegin(nullptr, 0);
    AnnotateIgnoreWritesBegin(nullptr, 0);
  }
  ~IgnoreAccesses() {
    AnnotateIgnoreWritesEnd(nullptr, 0);
    AnnotateIgnoreReadsEnd(nullptr, 0);
  }
};
#else
inline void* current_context() { return nullptr; }
inline void* create_context() { return nullptr; }
inline void destroy_context(void*) {}
inline void enter_context(void*) {}
inline void release(char&) {}
inline void acquire(char&) {}
struct IgnoreAccesses {
  IgnoreAccesses() {}
  ~IgnoreAccesses() {}
};
#endif

}  // namespace fastgen::emulator
