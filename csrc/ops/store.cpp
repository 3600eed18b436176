#include "ops/op.h"

namespace fastgen {
namespace {

void store(const Tensor& key, const Tensor& value, const Tensor& token_index, const Tensor& lanes,
           const Tensor& block_rows, const Tensor& token_position, const Tensor& token_class,
           int64_t layer, const Tensor& arena, const Tensor& heads, const Tensor& positions,
           const Tensor& values) {
  const Checks check("store", arena);
  StoreArgs a = {};
  a.pool = check.arena();
  check.rows("key", key, arena.scalar_type(), {kAny, a.pool.num_heads, a.pool.head_size});
  check.rows("value", value, arena.scalar_type(),
             {key.size(0), a.pool.num_heads, a.pool.head_size});
  a.step = check.step(token_index, lanes, block_rows, heads, layer, key.size(0), a.pool);
  check.contiguous("token_position", token_position, ScalarType::Int, {token_index.size(0)});
  check.contiguous("token_class", token_class, ScalarType::Int, {token_index.size(0)});
  check.metadata("positions", positions, ScalarType::Int, a.pool);
  check.metadata("values", values, ScalarType::Float, a.pool);

  a.key = static_cast<const char*>(key.data_ptr());
  a.key_token_stride = key.stride(0);
  a.key_head_stride = key.stride(1);
  a.value = static_cast<const char*>(value.data_ptr());
  a.value_token_stride = value.stride(0);
  a.value_head_stride = value.stride(1);
  a.token_position = static_cast<const int32_t*>(token_position.data_ptr());
  a.token_class = static_cast<const int32_t*>(token_class.data_ptr());
  a.positions = static_cast<int32_t*>(positions.data_ptr());
  a.values = static_cast<float*>(values.data_ptr());
  FASTGEN_LAUNCH(store, a, arena);
}

FASTGEN_OP(store,
           "(Tensor key, Tensor value, Tensor token_index, Tensor lanes, Tensor block_rows, "
           "Tensor token_position, Tensor token_class, int layer, Tensor(a!) arena, "
           "Tensor(b!) heads, Tensor(c!) positions, Tensor(d!) values)")

}  // namespace
}  // namespace fastgen
