#include "cpu/checks.h"
#include "cpu/isa.h"
#include "cpu/ops.h"

namespace fastgen {

namespace {

// Stores of a worker. One takes less than a microsecond, waking a thread ten or more.
constexpr int64_t kLeastStores = 32;

}  // namespace

void store(const Tensor& key, const Tensor& value, const Tensor& token_index, const Tensor& lanes,
           const Tensor& block_rows, const Tensor& token_position, const Tensor& token_class,
           int64_t layer, Tensor arena, Tensor heads, Tensor positions, Tensor values) {
  const Checks check("store");
  StoreArgs a = {};
  a.pool = check.arena(arena);
  check.layer(layer, a.pool);
  check.rows("key", key, arena.scalar_type(), {kAny, a.pool.num_heads, a.pool.head_size});
  check.rows("value", value, arena.scalar_type(),
             {key.size(0), a.pool.num_heads, a.pool.head_size});
  check.contiguous("token_index", token_index, ScalarType::Long, {kAny});
  const int64_t requests = token_index.size(0);
  check.contiguous("lanes", lanes, ScalarType::Int, {requests});
  check.rows("block_rows", block_rows, ScalarType::Int, {requests, kAny});
  check.contiguous("token_position", token_position, ScalarType::Int, {requests});
  check.contiguous("token_class", token_class, ScalarType::Int, {requests});
  check.contiguous("heads", heads, ScalarType::Int,
                   {kAny, a.pool.num_layers, a.pool.num_heads, kHeadFields});
  check.metadata(arena, positions, values);

  a.key = static_cast<const char*>(key.data_ptr());
  a.key_token_stride = key.stride(0);
  a.key_head_stride = key.stride(1);
  a.value = static_cast<const char*>(value.data_ptr());
  a.value_token_stride = value.stride(0);
  a.value_head_stride = value.stride(1);
  a.token_index = static_cast<const int64_t*>(token_index.data_ptr());
  a.lanes = static_cast<const int32_t*>(lanes.data_ptr());
  a.block_rows = static_cast<const int32_t*>(block_rows.data_ptr());
  a.row_stride = block_rows.stride(0);
  a.token_position = static_cast<const int32_t*>(token_position.data_ptr());
  a.token_class = static_cast<const int32_t*>(token_class.data_ptr());
  a.layer = static_cast<int>(layer);
  a.heads = static_cast<HeadRecord*>(heads.data_ptr());
  a.positions = static_cast<int32_t*>(positions.data_ptr());
  a.values = static_cast<float*>(values.data_ptr());

  const Kernels& kernel = kernels();
  const int64_t num_heads = a.pool.num_heads;
  for_each_item(
      requests * num_heads,
      [&](int64_t, int64_t item) {
        kernel.store(a, static_cast<int>(item / num_heads), static_cast<int>(item % num_heads));
      },
      kLeastStores);
}

}  // namespace fastgen
