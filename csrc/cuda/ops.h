// The CUDA ops behind their checks: pointers in, one stream, no allocation and no read of device
// memory by the host, so that each can be captured in a CUDA graph.
#pragma once

#include <cuda_runtime_api.h>

#include "fastgen/kernels.h"

namespace fastgen {

// Requests of a step may be padded to a fixed number: a lane of -1 is nobody's.
cudaError_t store(const StoreArgs& a, cudaStream_t stream);

cudaError_t compact(const CompactArgs& a, cudaStream_t stream);

cudaError_t value_norm(const ValueNormArgs& a, cudaStream_t stream);

// Of the scaled scores of one (query, query head), for powers of two.
struct SoftmaxRow {
  float most;
  float inverse;  // of the sum of exp2(score - most)
};

// `softmax_rows` is scratch: [H*G, W].
cudaError_t attention_mass(const AttentionMassArgs& a, SoftmaxRow* softmax_rows,
                           cudaStream_t stream);

// Scratch of a replay; see replay.h.
struct ReplayScratch {
  SoftmaxRow* softmax_rows;  // [H*G, W]
  char* turned;              // [W, H*G, D], of the cache's elements
  char* sample;              // [H, num_sampled, D]; with a step of 1 none
};

cudaError_t replay(const ReplayArgs& a, const ReplayScratch& scratch, cudaStream_t stream);

// `turn` of the arguments says by what; see attention_mass.h.
cudaError_t replayed_mass(const AttentionMassArgs& a, const ReplayScratch& scratch,
                          cudaStream_t stream);

// Scratch of decode_attention; see decode_attention.h.
struct DecodeScratch {
  int32_t* first_page;   // [R*H + 1]
  float* states;         // [R*H + num_blocks, G * (D + 2)]
  float* scores;         // [scored_pages, S, G]
  int32_t scored_pages;  // what does not fit is computed twice
  int32_t num_blocks;    // thread blocks that share the work
};

cudaError_t decode_attention(const DecodeArgs& a, const DecodeScratch& scratch,
                             cudaStream_t stream);

}  // namespace fastgen
