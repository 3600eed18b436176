// In which order blocks run, and the threads of a block between two waits.
#pragma once

#include <cstddef>
#include <vector>

namespace fastgen::emulator {

enum class Order { kForward, kReverse, kRandom };

void set_order(Order order, unsigned seed);

// 0..count-1 in that order.
std::vector<size_t> turns(size_t count);
// For the next round: random ones differ.
void renew(std::vector<size_t>& turns);

}  // namespace fastgen::emulator
