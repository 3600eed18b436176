#include "copies.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "runtime.h"

namespace fastgen::emulator {

// Calls of library functions, which sanitizers see although this file is not instrumented.
void Copies::issue(void* shared, const void* global, size_t bytes) {
  const auto misaligned = [=](const void* address) {
    return reinterpret_cast<uintptr_t>(address) % bytes != 0;
  };
  if (misaligned(shared)) fail("copy_async<%zu> to a misaligned address", bytes);
  if (misaligned(global)) fail("copy_async<%zu> from a misaligned address", bytes);
  std::memset(shared, 0xff, bytes);
  copies_.push_back({shared, global, bytes, groups_});
}

void Copies::wait(int later_groups) {
  const auto covered = [=, this](const Copy& copy) { return copy.group < groups_ - later_groups; };
  const auto first_later = std::find_if_not(copies_.begin(), copies_.end(), covered);
  for (auto copy = copies_.begin(); copy != first_later; ++copy) {
    std::memcpy(copy->to, copy->from, copy->bytes);
  }
  copies_.erase(copies_.begin(), first_later);
}

}  // namespace fastgen::emulator
