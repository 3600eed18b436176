#include "cpu/contents.h"
#include "cpu/isa.h"
#include "cpu/work.h"
#include "launchers.h"

namespace fastgen::cpu {

namespace {

// Stores of a worker. One takes less than a microsecond, waking a thread ten or more.
constexpr int64_t kLeastStores = 32;

}  // namespace

void store(const StoreArgs& a) {
  const auto slots_to_have = [&](const HeadRecord& head, const Place& place, int request) {
    const int32_t position = a.token_position[request];
    const int32_t slots = slots_to_store(head, position, a.pool.page_slots);
    require(slots > 0, "store: token_position ", position, " is out of range, or too early for ",
            place, " with a LENGTH of ", head.length);
    return slots;
  };
  Contents("store", a.pool).step(a.step, slots_to_have);

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
