// Shared memory of a block. Each piece is an allocation of exactly its size, for AddressSanitizer
// to guard, and starts as NaN in every floating point format.
#pragma once

#include <cstddef>
#include <vector>

namespace fastgen::emulator {

constexpr size_t kSharedOfAnyKernel = 48 << 10;  // more has to be allowed
constexpr size_t kSharedOfDevice = 99 << 10;     // the least of all since compute capability 8.0

class SharedMemory {
 public:
  SharedMemory(size_t dynamic_bytes, size_t limit);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  void* dynamic() const { return pieces_.front().memory; }
  // The same memory for all threads that come with the same key.
  void* variable(const void* key, size_t bytes);
  bool contains(const void* address, size_t bytes) const;

 private:
  struct Piece {
    const void* key;
    size_t bytes;
    char* memory;
  };
  char* add(const void* key, size_t bytes);

  std::vector<Piece> pieces_;
  size_t limit_, used_ = 0;
};

}  // namespace fastgen::emulator
