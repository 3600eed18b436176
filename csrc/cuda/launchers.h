// The launchers behind torch.ops.fastgen.* on CUDA tensors; contracts are in fastgen_vllm/ops/*.py.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string>

namespace fastgen::cuda {

using torch::stable::Tensor;

void attention_mass(const Tensor& query, const Tensor& arena, int64_t layer,
                    const Tensor& block_row, int64_t first_position, double scale, std::string pool,
                    Tensor mass, Tensor energy);

void value_norm(const Tensor& arena, const Tensor& block_row, Tensor norm);

void compact(const Tensor& source, const Tensor& old_row, Tensor arena, const Tensor& new_row,
             const Tensor& kept, const Tensor& kept_start, const Tensor& kept_value,
             const Tensor& heads, Tensor positions, Tensor values);

void store(const Tensor& key, const Tensor& value, const Tensor& token_index, const Tensor& lanes,
           const Tensor& block_rows, const Tensor& token_position, const Tensor& token_class,
           int64_t layer, Tensor arena, Tensor heads, Tensor positions, Tensor values);

void decode_attention(const Tensor& query, const Tensor& token_index, const Tensor& lanes,
                      const Tensor& block_rows, int64_t layer, double scale, std::string pool,
                      const Tensor& arena, const Tensor& heads, Tensor values, Tensor output);

}  // namespace fastgen::cuda
