#include "ops/op.h"

namespace fastgen {
namespace {

void decode_attention(const Tensor& query, const Tensor& token_index, const Tensor& lanes,
                      const Tensor& block_rows, int64_t layer, double scale, std::string pool,
                      const Tensor& arena, const Tensor& heads, const Tensor& values,
                      const Tensor& output) {
  const Checks check("decode_attention", arena);
  DecodeArgs a = {};
  a.pool = check.arena();
  check.rows("query", query, arena.scalar_type(), {kAny, kAny, a.pool.head_size});
  a.group_size = check.group_size(query, a.pool);
  check.rows("output", output, arena.scalar_type(),
             {query.size(0), query.size(1), a.pool.head_size});
  a.pooling = check.pooling(pool);
  a.step = check.step(token_index, lanes, block_rows, heads, layer, query.size(0), a.pool);
  check.metadata("values", values, ScalarType::Float, a.pool);

  a.query = static_cast<const char*>(query.data_ptr());
  a.query_token_stride = query.stride(0);
  a.query_head_stride = query.stride(1);
  a.output = static_cast<char*>(output.data_ptr());
  a.output_token_stride = output.stride(0);
  a.output_head_stride = output.stride(1);
  a.scale = static_cast<float>(scale);
  a.values = static_cast<float*>(values.data_ptr());
  FASTGEN_LAUNCH(decode_attention, a, arena);
}

FASTGEN_OP(decode_attention,
           "(Tensor query, Tensor token_index, Tensor lanes, Tensor block_rows, int layer, "
           "float scale, str pool, Tensor arena, Tensor heads, Tensor(a!) values, "
           "Tensor(b!) output)")

}  // namespace
}  // namespace fastgen
