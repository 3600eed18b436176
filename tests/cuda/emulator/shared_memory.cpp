#include "shared_memory.h"

#include <cstdlib>
#include <cstring>

#include "runtime.h"

namespace fastgen::emulator {

constexpr size_t kAlignment = 16;

SharedMemory::SharedMemory(size_t dynamic_bytes, size_t limit) : limit_(limit) {
  add(nullptr, dynamic_bytes);
}

SharedMemory::~SharedMemory() {
  for (const Piece& piece : pieces_) std::free(piece.memory);
}

void* SharedMemory::variable(const void* key, size_t bytes) {
  for (const Piece& piece : pieces_) {
    if (piece.key == key) return piece.memory;
  }
  if (used_ - pieces_.front().bytes + bytes > kSharedOfAnyKernel) {
    fail("shared variables of more than 48 KiB");
  }
  return add(key, bytes);
}

bool SharedMemory::contains(const void* address, size_t bytes) const {
  const char* first = static_cast<const char*>(address);
  for (const Piece& piece : pieces_) {
    if (first >= piece.memory && first + bytes <= piece.memory + piece.bytes) return true;
  }
  return false;
}

char* SharedMemory::add(const void* key, size_t bytes) {
  used_ += bytes;
  if (used_ > limit_)
    fail("a block of %zu bytes of shared memory; the limit is %zu", used_, limit_);
  void* memory = nullptr;
  if (bytes > 0) {
    if (posix_memalign(&memory, kAlignment, bytes) != 0) fail("out of memory");
    std::memset(memory, 0xff, bytes);
  }
  pieces_.push_back({key, bytes, static_cast<char*>(memory)});
  return pieces_.back().memory;
}

}  // namespace fastgen::emulator
