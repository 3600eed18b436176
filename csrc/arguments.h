// From an op's tensors to what its kernels take: all checks that need no look at the numbers in the
// tensors, which on a GPU the host must not take.
#pragma once

#include <string>

#include "checks.h"

namespace fastgen {

AttentionMassArgs attention_mass_arguments(const Tensor& query, const Tensor& arena, int64_t layer,
                                           const Tensor& block_row, int64_t first_position,
                                           double scale, const std::string& pool,
                                           const Tensor& mass, const Tensor& energy);

ValueNormArgs value_norm_arguments(const Tensor& arena, const Tensor& block_row,
                                   const Tensor& norm);

CompactArgs compact_arguments(const Tensor& source, const Tensor& old_row, const Tensor& arena,
                              const Tensor& new_row, const Tensor& kept, const Tensor& kept_start,
                              const Tensor& kept_value, const Tensor& heads,
                              const Tensor& positions, const Tensor& values);

StoreArgs store_arguments(const Tensor& key, const Tensor& value, const Tensor& token_index,
                          const Tensor& lanes, const Tensor& block_rows,
                          const Tensor& token_position, const Tensor& token_class, int64_t layer,
                          const Tensor& arena, const Tensor& heads, const Tensor& positions,
                          const Tensor& values);

DecodeArgs decode_arguments(const Tensor& query, const Tensor& token_index, const Tensor& lanes,
                            const Tensor& block_rows, int64_t layer, double scale,
                            const std::string& pool, const Tensor& arena, const Tensor& heads,
                            const Tensor& values, const Tensor& output);

}  // namespace fastgen
