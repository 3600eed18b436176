// What the lanes of a warp do together: shuffles, votes, reductions and matrix products. As on a
// device, only __syncwarp orders their accesses to memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "runtime.h"

// The last parameter of what waits: where it is called.
#define FASTGEN_SITE fastgen::emulator::Site site = fastgen::emulator::Site::current()

constexpr int warpSize = fastgen::emulator::kLanes;

namespace fastgen::emulator {

// The values that the lanes of a mask gave to one collective.
template <typename T>
class Lanes {
 public:
  Lanes(unsigned mask, const char* name, Site site, const T& mine)
      : mask_(mask), name_(name), slots_(exchange(mask, {name, site}, &mine, sizeof(T))) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= kSlotBytes);
  }

  T operator[](int lane) const {
    if (!((mask_ >> lane) & 1)) fail("%s reads lane %d outside of mask %08x", name_, lane, mask_);
    T value;
    std::memcpy(&value, slots_.lane[lane], sizeof(T));
    return value;
  }

  template <typename Operation>
  T reduce(Operation operation) const {
    int lane = __builtin_ctz(mask_);
    T result = (*this)[lane];
    while (++lane < kLanes) {
      if ((mask_ >> lane) & 1) result = operation(result, (*this)[lane]);
    }
    return result;
  }

 private:
  const unsigned mask_;
  const char* const name_;
  const Slots& slots_;
};

// Lanes of the group of `width` that this lane belongs to.
struct Segment {
  explicit Segment(int width) : first(lane_of_warp() & ~(width - 1)), last(first + width - 1) {
    if (width < 1 || width > kLanes || (width & (width - 1))) {
      fail("a shuffle's width is a power of two up to 32, not %d", width);
    }
  }
  int first, last;
};

}  // namespace fastgen::emulator

inline void __syncwarp(unsigned mask = ~0u, FASTGEN_SITE) {
  fastgen::emulator::wait_for_warp(mask, site);
}

// A lane that would read beyond its segment gets its own value.
template <typename T>
T __shfl_sync(unsigned mask, T value, int from, int width = warpSize, FASTGEN_SITE) {
  const fastgen::emulator::Lanes<T> lanes(mask, "__shfl_sync", site, value);
  return lanes[fastgen::emulator::Segment(width).first + (from & (width - 1))];
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = warpSize, FASTGEN_SITE) {
  const fastgen::emulator::Lanes<T> lanes(mask, "__shfl_up_sync", site, value);
  const int from = fastgen::emulator::lane_of_warp() - static_cast<int>(distance);
  return from < fastgen::emulator::Segment(width).first ? value : lanes[from];
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = warpSize, FASTGEN_SITE) {
  const fastgen::emulator::Lanes<T> lanes(mask, "__shfl_down_sync", site, value);
  const int from = fastgen::emulator::lane_of_warp() + static_cast<int>(distance);
  return from > fastgen::emulator::Segment(width).last ? value : lanes[from];
}

// May read from an earlier segment, not from a later one.
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int flipped, int width = warpSize, FASTGEN_SITE) {
  const fastgen::emulator::Lanes<T> lanes(mask, "__shfl_xor_sync", site, value);
  const int from = fastgen::emulator::lane_of_warp() ^ flipped;
  return from > fastgen::emulator::Segment(width).last ? value : lanes[from];
}

inline unsigned __ballot_sync(unsigned mask, int predicate, FASTGEN_SITE) {
  const unsigned mine = predicate ? 1u << fastgen::emulator::lane_of_warp() : 0;
  return fastgen::emulator::Lanes<unsigned>(mask, "__ballot_sync", site, mine)
      .reduce([](unsigned a, unsigned b) { return a | b; });
}

inline int __any_sync(unsigned mask, int predicate, FASTGEN_SITE) {
  return __ballot_sync(mask, predicate, site) != 0;
}

inline int __all_sync(unsigned mask, int predicate, FASTGEN_SITE) {
  return __ballot_sync(mask, predicate, site) == mask;
}

#define FASTGEN_REDUCE(name, expression)                                               \
  template <typename T>                                                                \
    requires(std::is_same_v<T, int> || std::is_same_v<T, unsigned>)                    \
  T name(unsigned mask, T value, FASTGEN_SITE) {                                       \
    return fastgen::emulator::Lanes<T>(mask, #name, site, value).reduce([](T a, T b) { \
      return expression;                                                               \
    });                                                                                \
  }
FASTGEN_REDUCE(__reduce_add_sync, static_cast<T>(static_cast<unsigned>(a) + b))
FASTGEN_REDUCE(__reduce_min_sync, a < b ? a : b)
FASTGEN_REDUCE(__reduce_max_sync, a < b ? b : a)
#undef FASTGEN_REDUCE

namespace fastgen {

// The contract is in csrc/cuda/device.h, the layout in the PTX ISA, "Matrix fragments for
// mma.m16n8k16 with floating point type".
template <typename Element>
void mma_16x8x16(Element, float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                 FASTGEN_SITE) {
  static_assert(sizeof(Element) == 2);
  struct Fragments {
    float a[8], b[4];
  } mine;
  Element elements[12];
  std::memcpy(elements, a, sizeof(a));
  std::memcpy(elements + 8, b, sizeof(b));
  for (int i = 0; i < 8; ++i) mine.a[i] = static_cast<float>(elements[i]);
  for (int i = 0; i < 4; ++i) mine.b[i] = static_cast<float>(elements[8 + i]);

  const emulator::Lanes<Fragments> lanes(~0u, "mma_16x8x16", site, mine);
  const int lane = emulator::lane_of_warp();
  double exact[4] = {sum[0], sum[1], sum[2], sum[3]};
  for (int k = 0; k < 16; k += 2) {
    const int quarter = k % 8 / 2, upper = k / 8;  // who has columns k and k + 1 of a row of A
    const Fragments row = lanes[lane / 4 * 4 + quarter];
    for (int column = 0; column < 2; ++column) {
      const Fragments other = lanes[(lane % 4 * 2 + column) * 4 + quarter];
      for (int i = 0; i < 2; ++i) {
        const double factor = other.b[2 * upper + i];
        exact[column] += factor * row.a[4 * upper + i];
        exact[2 + column] += factor * row.a[4 * upper + 2 + i];
      }
    }
  }
  for (int i = 0; i < 4; ++i) sum[i] = static_cast<float>(exact[i]);
}

}  // namespace fastgen
