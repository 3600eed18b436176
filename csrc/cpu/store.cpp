#include "cpu/isa.h"
#include "cpu/work.h"
#include "launchers.h"

namespace fastgen::cpu {

namespace {

// Stores of a worker. One takes less than a microsecond, waking a thread ten or more.
constexpr int64_t kLeastStores = 32;

}  // namespace

void store(const StoreArgs& a) {
  const Kernels& kernel = kernels();
  const int64_t num_heads = a.pool.num_heads;
  for_each_item(
      a.step.num_requests * num_heads,
      [&](int64_t, int64_t item) {
        kernel.store(a, static_cast<int>(item / num_heads), static_cast<int>(item % num_heads));
      },
      kLeastStores);
}

}  // namespace fastgen::cpu
