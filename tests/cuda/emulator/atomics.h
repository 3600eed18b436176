// Atomic operations on the types for which CUDA has them. None of them orders other accesses.
#pragma once

#include <type_traits>

namespace fastgen::emulator {

template <typename T>
concept AtomicInteger =
    std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long>;

// Replaces *to by what `update` makes of it; returns what was there.
template <typename T, typename Update>
T replace(T* to, Update update) {
  T old, desired;
  __atomic_load(to, &old, __ATOMIC_RELAXED);
  do {
    desired = update(old);
  } while (
      !__atomic_compare_exchange(to, &old, &desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}

}  // namespace fastgen::emulator

template <typename T>
  requires(fastgen::emulator::AtomicInteger<T> || std::is_same_v<T, float>)
T atomicAdd(T* to, std::type_identity_t<T> value) {
  return fastgen::emulator::replace(to, [=](T old) { return static_cast<T>(old + value); });
}

template <fastgen::emulator::AtomicInteger T>
T atomicMax(T* to, std::type_identity_t<T> value) {
  return fastgen::emulator::replace(to, [=](T old) { return old < value ? value : old; });
}
