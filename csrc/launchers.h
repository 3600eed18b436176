// What carries out an op whose arguments are checked, on either device.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "fastgen/kernels.h"

namespace fastgen {

namespace cpu {

void attention_mass(AttentionMassArgs a);
void replay(ReplayArgs a);
void replayed_mass(const AttentionMassArgs& a);
void value_norm(const ValueNormArgs& a);
void compact(const CompactArgs& a);
void store(const StoreArgs& a);
void decode_attention(DecodeArgs a);

}  // namespace cpu

// Work on the device of the arena, in torch's current stream.
namespace cuda {

void attention_mass(const AttentionMassArgs& a, const torch::stable::Tensor& arena);
void replay(const ReplayArgs& a, const torch::stable::Tensor& arena);
void replayed_mass(const AttentionMassArgs& a, const torch::stable::Tensor& arena);
void value_norm(const ValueNormArgs& a, const torch::stable::Tensor& arena);
void compact(const CompactArgs& a, const torch::stable::Tensor& arena);
void store(const StoreArgs& a, const torch::stable::Tensor& arena);
void decode_attention(const DecodeArgs& a, const torch::stable::Tensor& arena);

}  // namespace cuda

}  // namespace fastgen
