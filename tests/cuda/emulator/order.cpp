#include "order.h"

#include <algorithm>
#include <numeric>
#include <random>

namespace fastgen::emulator {

static Order order = Order::kForward;
static std::mt19937 engine;

void set_order(Order next, unsigned seed) {
  order = next;
  engine.seed(seed);
}

std::vector<size_t> turns(size_t count) {
  std::vector<size_t> result(count);
  std::iota(result.begin(), result.end(), 0);
  if (order == Order::kReverse) std::reverse(result.begin(), result.end());
  renew(result);
  return result;
}

void renew(std::vector<size_t>& turns) {
  if (order == Order::kRandom) std::shuffle(turns.begin(), turns.end(), engine);
}

}  // namespace fastgen::emulator
