// Scratch comes from torch's allocator, the stream is torch's current one. The host reads nothing
// of what is on the device.
#include "cuda/launchers.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <stdexcept>

#include "arguments.h"
#include "cuda/ops.h"

namespace fastgen::cuda {
namespace {

constexpr int64_t kBlocksPerProcessor = 4;
constexpr int64_t kScoreFloats = int64_t{1} << 24;  // 64 MiB

// Makes a tensor's device the current one; knows its stream.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& arena)
      : arena_(arena), index_(arena.get_device_index()), guard_(index_) {}

  cudaStream_t stream() const {
    return static_cast<cudaStream_t>(
        torch::stable::accelerator::getCurrentStream(index_).nativeHandle());
  }

  Tensor scratch(int64_t size, ScalarType dtype) const {
    const int64_t sizes[] = {std::max<int64_t>(size, 1)};
    return torch::stable::new_empty(arena_, {sizes, 1}, dtype);
  }

  int64_t num_processors() const {
    int number = 0;
    check("decode_attention",
          cudaDeviceGetAttribute(&number, cudaDevAttrMultiProcessorCount, index_));
    return number;
  }

  static void check(const char* op, cudaError_t error) {
    if (error == cudaSuccess) return;
    throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(error));
  }

 private:
  const Tensor& arena_;
  const int32_t index_;
  const torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace

void attention_mass(const Tensor& query, const Tensor& arena, int64_t layer,
                    const Tensor& block_row, int64_t first_position, double scale, std::string pool,
                    Tensor mass, Tensor energy) {
  const AttentionMassArgs a = attention_mass_arguments(query, arena, layer, block_row,
                                                       first_position, scale, pool, mass, energy);
  const OnDevice device(arena);
  const Tensor rows = device.scratch(2 * query.size(0) * query.size(1), ScalarType::Float);
  device.check(
      "attention_mass",
      fastgen::attention_mass(a, static_cast<SoftmaxRow*>(rows.data_ptr()), device.stream()));
}

void value_norm(const Tensor& arena, const Tensor& block_row, Tensor norm) {
  const ValueNormArgs a = value_norm_arguments(arena, block_row, norm);
  const OnDevice device(arena);
  device.check("value_norm", fastgen::value_norm(a, device.stream()));
}

void compact(const Tensor& source, const Tensor& old_row, Tensor arena, const Tensor& new_row,
             const Tensor& kept, const Tensor& kept_start, const Tensor& kept_value,
             const Tensor& heads, Tensor positions, Tensor values) {
  const CompactArgs a = compact_arguments(source, old_row, arena, new_row, kept, kept_start,
                                          kept_value, heads, positions, values);
  const OnDevice device(arena);
  const int64_t most = std::min(kept.size(0), old_row.size(0) * a.pool.page_slots);
  device.check("compact", fastgen::compact(a, static_cast<int>(most), device.stream()));
}

void store(const Tensor& key, const Tensor& value, const Tensor& token_index, const Tensor& lanes,
           const Tensor& block_rows, const Tensor& token_position, const Tensor& token_class,
           int64_t layer, Tensor arena, Tensor heads, Tensor positions, Tensor values) {
  const StoreArgs a = store_arguments(key, value, token_index, lanes, block_rows, token_position,
                                      token_class, layer, arena, heads, positions, values);
  const OnDevice device(arena);
  const int requests = static_cast<int>(token_index.size(0));
  device.check("store", fastgen::store(a, requests, device.stream()));
}

void decode_attention(const Tensor& query, const Tensor& token_index, const Tensor& lanes,
                      const Tensor& block_rows, int64_t layer, double scale, std::string pool,
                      const Tensor& arena, const Tensor& heads, Tensor values, Tensor output) {
  const DecodeArgs a = decode_arguments(query, token_index, lanes, block_rows, layer, scale, pool,
                                        arena, heads, values, output);
  const OnDevice device(arena);
  const int64_t requests = token_index.size(0), jobs = requests * a.pool.num_heads;
  const int64_t blocks = kBlocksPerProcessor * device.num_processors();
  const int64_t max_slots = block_rows.size(1) * a.pool.page_slots;
  const int64_t page_scores = static_cast<int64_t>(a.pool.page_slots) * a.group_size;
  const int64_t scored_pages = std::min(jobs * block_rows.size(1), kScoreFloats / page_scores);

  const Tensor first_page = device.scratch(jobs + 1, ScalarType::Int);
  const Tensor states =
      device.scratch((jobs + blocks) * a.group_size * (a.pool.head_size + 2), ScalarType::Float);
  const Tensor scores = device.scratch(scored_pages * page_scores, ScalarType::Float);
  const DecodeScratch scratch = {static_cast<int32_t*>(first_page.data_ptr()),
                                 static_cast<float*>(states.data_ptr()),
                                 static_cast<float*>(scores.data_ptr()),
                                 static_cast<int32_t>(scored_pages), static_cast<int32_t>(blocks)};
  device.check("decode_attention",
               fastgen::decode_attention(a, scratch, static_cast<int>(requests),
                                         static_cast<int>(max_slots), device.stream()));
}

}  // namespace fastgen::cuda
