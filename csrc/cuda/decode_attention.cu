#include <algorithm>

#include "cuda/decode_attention.h"

namespace fastgen {
namespace {

template <typename T, int kHeadSize, int kRows>
cudaError_t attend_rows(const DecodeArgs& a, const DecodeScratch& scratch, cudaStream_t stream) {
  constexpr int kShared = decode_shared_bytes<T, kHeadSize, kRows>();
  const auto kernel = decode_pieces<T, kHeadSize, kRows>;
  if (const cudaError_t error = allow_shared(kernel, kShared)) return error;
  return launch(kernel, dim3(scratch.num_blocks), dim3(kDecodeThreads), kShared, stream, a,
                scratch);
}

template <typename T, int kHeadSize>
cudaError_t attend_all(const DecodeArgs& a, const DecodeScratch& scratch, cudaStream_t stream) {
  const int g = a.group_size;
  if (g == 1) return attend_rows<T, kHeadSize, 1>(a, scratch, stream);
  if (g == 2) return attend_rows<T, kHeadSize, 2>(a, scratch, stream);
  if (g <= 4) return attend_rows<T, kHeadSize, 4>(a, scratch, stream);
  return attend_rows<T, kHeadSize, kMostRows>(a, scratch, stream);
}

}  // namespace

cudaError_t decode_attention(const DecodeArgs& a, const DecodeScratch& scratch,
                             cudaStream_t stream) {
  if (a.step.num_requests == 0) return cudaSuccess;
  return with_element(a.pool.dtype, [&](auto type) {
    using Element = typename decltype(type)::Element;
    const cudaError_t error = with_head_size(a.pool.head_size, [&](auto size) {
      return attend_all<Element, decltype(size)::value>(a, scratch, stream);
    });
    if (error != cudaSuccess) return error;
    // As many as fill the GPU, and no more than a row has slots for: lengths are not known here.
    const int jobs = a.step.num_requests * a.pool.num_heads;
    const int row_slots = a.step.row_blocks * a.pool.page_slots;
    const int shares = std::min((row_slots + kFinishSlots - 1) / kFinishSlots,
                                (scratch.num_blocks + jobs - 1) / jobs);
    const dim3 grid(jobs, std::max(1, shares));  // rows may be empty
    return launch(decode_finish<Element>, grid, dim3(kDecodeThreads),
                  2 * a.group_size * sizeof(float), stream, a, scratch);
  });
}

}  // namespace fastgen
