#include "arguments.h"

namespace fastgen {

AttentionMassArgs attention_mass_arguments(const Tensor& query, const Tensor& arena, int64_t layer,
                                           const Tensor& block_row, int64_t first_position,
                                           double scale, const std::string& pool,
                                           const Tensor& mass, const Tensor& energy) {
  const Checks check("attention_mass", arena);
  AttentionMassArgs a = {};
  a.pool = check.arena();
  check.layer(layer, a.pool);
  check.rows("query", query, arena.scalar_type(), {kAny, kAny, a.pool.head_size});
  a.group_size = check.group_size(query, a.pool);
  a.pooling = check.pooling(pool);
  require(first_position >= 0, "attention_mass: first_position must be at least 0, got ",
          first_position);
  check.contiguous("block_row", block_row, ScalarType::Int, {kAny});
  const int64_t end = first_position + query.size(0);
  require(block_row.size(0) * a.pool.page_slots >= end, "attention_mass: block_row must cover ",
          end, " tokens, got ", block_row.size(0), " blocks of ", a.pool.page_slots);
  const auto sums = [&](const char* name, const Tensor& tensor) {
    check.rows(name, tensor, ScalarType::Float, {a.pool.num_heads, kAny});
    require(tensor.size(1) >= end, "attention_mass: ", name, " must have room for ", end,
            " tokens, got shape ", shape_text(tensor.sizes()));
    return static_cast<float*>(tensor.data_ptr());
  };
  a.mass = sums("mass", mass);
  a.mass_stride = mass.stride(0);
  a.energy = sums("energy", energy);
  a.energy_stride = energy.stride(0);
  a.query = static_cast<const char*>(query.data_ptr());
  a.query_token_stride = query.stride(0);
  a.query_head_stride = query.stride(1);
  a.num_queries = static_cast<int>(query.size(0));
  a.first_position = static_cast<int>(first_position);
  a.layer = static_cast<int>(layer);
  a.block_row = static_cast<const int32_t*>(block_row.data_ptr());
  a.scale = static_cast<float>(scale);
  return a;
}

ValueNormArgs value_norm_arguments(const Tensor& arena, const Tensor& block_row,
                                   const Tensor& norm) {
  const Checks check("value_norm", arena);
  ValueNormArgs a = {};
  a.pool = check.arena();
  check.contiguous("norm", norm, ScalarType::Float, {a.pool.num_layers, a.pool.num_heads, kAny});
  check.contiguous("block_row", block_row, ScalarType::Int, {kAny});
  require(block_row.size(0) * a.pool.page_slots >= norm.size(2),
          "value_norm: block_row must cover ", norm.size(2), " tokens, got ", block_row.size(0),
          " blocks of ", a.pool.page_slots);
  a.block_row = static_cast<const int32_t*>(block_row.data_ptr());
  a.num_tokens = static_cast<int>(norm.size(2));
  a.norm = static_cast<float*>(norm.data_ptr());
  return a;
}

CompactArgs compact_arguments(const Tensor& source, const Tensor& old_row, const Tensor& arena,
                              const Tensor& new_row, const Tensor& kept, const Tensor& kept_start,
                              const Tensor& kept_value, const Tensor& heads,
                              const Tensor& positions, const Tensor& values) {
  const Checks check("compact", arena);
  CompactArgs a = {};
  a.pool = check.arena();
  a.source = check.arena("source", source);
  require(source.scalar_type() == arena.scalar_type() && source.dim() == arena.dim() &&
              source.size(0) == arena.size(0) && source.size(2) == arena.size(2) &&
              source.size(3) == arena.size(3) && source.size(4) == arena.size(4),
          "compact: source must have the dtype and shape of arena, except for its blocks");
  const int64_t layer_heads = static_cast<int64_t>(a.pool.num_layers) * a.pool.num_heads;
  check.contiguous("old_row", old_row, ScalarType::Int, {kAny});
  check.contiguous("new_row", new_row, ScalarType::Int, {kAny});
  check.contiguous("kept", kept, ScalarType::Int, {kAny});
  check.contiguous("kept_start", kept_start, ScalarType::Long, {layer_heads + 1});
  check.contiguous("kept_value", kept_value, ScalarType::Float, {kept.size(0)});
  check.contiguous("heads", heads, ScalarType::Int,
                   {a.pool.num_layers, a.pool.num_heads, kHeadFields});
  check.metadata("positions", positions, ScalarType::Int, a.pool);
  check.metadata("values", values, ScalarType::Float, a.pool);

  a.old_row = static_cast<const int32_t*>(old_row.data_ptr());
  a.new_row = static_cast<const int32_t*>(new_row.data_ptr());
  a.kept = static_cast<const int32_t*>(kept.data_ptr());
  a.kept_start = static_cast<const int64_t*>(kept_start.data_ptr());
  a.kept_value = static_cast<const float*>(kept_value.data_ptr());
  a.heads = static_cast<const HeadRecord*>(heads.data_ptr());
  a.positions = static_cast<int32_t*>(positions.data_ptr());
  a.values = static_cast<float*>(values.data_ptr());
  return a;
}

StoreArgs store_arguments(const Tensor& key, const Tensor& value, const Tensor& token_index,
                          const Tensor& lanes, const Tensor& block_rows,
                          const Tensor& token_position, const Tensor& token_class, int64_t layer,
                          const Tensor& arena, const Tensor& heads, const Tensor& positions,
                          const Tensor& values) {
  const Checks check("store", arena);
  StoreArgs a = {};
  a.pool = check.arena();
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
  check.metadata("positions", positions, ScalarType::Int, a.pool);
  check.metadata("values", values, ScalarType::Float, a.pool);

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
  return a;
}

DecodeArgs decode_arguments(const Tensor& query, const Tensor& token_index, const Tensor& lanes,
                            const Tensor& block_rows, int64_t layer, double scale,
                            const std::string& pool, const Tensor& arena, const Tensor& heads,
                            const Tensor& values, const Tensor& output) {
  const Checks check("decode_attention", arena);
  DecodeArgs a = {};
  a.pool = check.arena();
  check.layer(layer, a.pool);
  check.rows("query", query, arena.scalar_type(), {kAny, kAny, a.pool.head_size});
  a.group_size = check.group_size(query, a.pool);
  check.rows("output", output, arena.scalar_type(),
             {query.size(0), query.size(1), a.pool.head_size});
  a.pooling = check.pooling(pool);
  check.contiguous("token_index", token_index, ScalarType::Long, {kAny});
  const int64_t requests = token_index.size(0);
  check.contiguous("lanes", lanes, ScalarType::Int, {requests});
  check.rows("block_rows", block_rows, ScalarType::Int, {requests, kAny});
  check.contiguous("heads", heads, ScalarType::Int,
                   {kAny, a.pool.num_layers, a.pool.num_heads, kHeadFields});
  check.metadata("values", values, ScalarType::Float, a.pool);

  a.query = static_cast<const char*>(query.data_ptr());
  a.query_token_stride = query.stride(0);
  a.query_head_stride = query.stride(1);
  a.output = static_cast<char*>(output.data_ptr());
  a.output_token_stride = output.stride(0);
  a.output_head_stride = output.stride(1);
  a.token_index = static_cast<const int64_t*>(token_index.data_ptr());
  a.lanes = static_cast<const int32_t*>(lanes.data_ptr());
  a.block_rows = static_cast<const int32_t*>(block_rows.data_ptr());
  a.row_stride = block_rows.stride(0);
  a.layer = static_cast<int>(layer);
  a.scale = static_cast<float>(scale);
  a.heads = static_cast<const HeadRecord*>(heads.data_ptr());
  a.values = static_cast<float*>(values.data_ptr());
  return a;
}

}  // namespace fastgen
