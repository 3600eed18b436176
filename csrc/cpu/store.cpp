#include "arguments.h"
#include "cpu/isa.h"
#include "cpu/ops.h"
#include "cpu/work.h"

namespace fastgen {

namespace {

// Stores of a worker. One takes less than a microsecond, waking a thread ten or more.
constexpr int64_t kLeastStores = 32;

}  // namespace

void store(const Tensor& key, const Tensor& value, const Tensor& token_index, const Tensor& lanes,
           const Tensor& block_rows, const Tensor& token_position, const Tensor& token_class,
           int64_t layer, Tensor arena, Tensor heads, Tensor positions, Tensor values) {
  const StoreArgs a = store_arguments(key, value, token_index, lanes, block_rows, token_position,
                                      token_class, layer, arena, heads, positions, values);
  const Kernels& kernel = kernels();
  const int64_t num_heads = a.pool.num_heads;
  for_each_item(
      token_index.size(0) * num_heads,
      [&](int64_t, int64_t item) {
        kernel.store(a, static_cast<int>(item / num_heads), static_cast<int>(item % num_heads));
      },
      kLeastStores);
}

}  // namespace fastgen
