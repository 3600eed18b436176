// Scratch comes from torch's allocator, the stream is torch's current one. The host reads nothing
// of what is on the device.
#include "launchers.h"

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <stdexcept>

#include "checks.h"
#include "cuda/ops.h"

namespace fastgen::cuda {
namespace {

constexpr int64_t kBlocksPerProcessor = 4;
constexpr int64_t kScoreFloats = int64_t{1} << 24;  // 64 MiB

using CurrentStream = AOTITorchError (*)(int32_t device, void** stream);

// The stable ABI has the stream's handle from torch 2.13 on; this is in every CUDA build. Looked
// up, because the library that has it is none of a CPU build's.
CurrentStream find_current_stream() {
  void* const torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  if (torch_cuda == nullptr) return nullptr;
  return reinterpret_cast<CurrentStream>(dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream"));
}

// Makes a tensor's device the current one; knows its stream.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& arena)
      : arena_(arena), index_(arena.get_device_index()), guard_(index_) {}

  cudaStream_t stream() const {
    static const auto current = find_current_stream();
    void* stream = nullptr;
    if (current == nullptr || current(index_, &stream) != AOTI_TORCH_SUCCESS) {
      throw std::runtime_error("torch has no current CUDA stream on GPU " + std::to_string(index_));
    }
    return static_cast<cudaStream_t>(stream);
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

void attention_mass(const AttentionMassArgs& a, const Tensor& arena) {
  const OnDevice device(arena);
  const int64_t query_heads = static_cast<int64_t>(a.pool.num_heads) * a.group_size;
  const Tensor rows = device.scratch(2 * a.num_queries * query_heads, ScalarType::Float);
  device.check(
      "attention_mass",
      fastgen::attention_mass(a, static_cast<SoftmaxRow*>(rows.data_ptr()), device.stream()));
}

namespace {

// Scratch of a replay of so many queries, and of so many keys that stand for others.
struct ReplayTensors {
  Tensor rows, turned, sample;

  ReplayTensors(const OnDevice& device, const Tensor& arena, const PagePool& pool, int group_size,
                int64_t num_queries, int64_t sampled)
      : rows(device.scratch(2 * num_queries * pool.num_heads * group_size, ScalarType::Float)),
        turned(device.scratch(num_queries * pool.num_heads * group_size * pool.head_size,
                              arena.scalar_type())),
        sample(device.scratch(sampled * pool.num_heads * pool.head_size, arena.scalar_type())) {}

  ReplayScratch scratch() const {
    return {static_cast<SoftmaxRow*>(rows.data_ptr()), static_cast<char*>(turned.data_ptr()),
            static_cast<char*>(sample.data_ptr())};
  }
};

}  // namespace

void replay(const ReplayArgs& a, const Tensor& arena) {
  const OnDevice device(arena);
  const int64_t sampled = a.sample_step == 1 ? 0 : num_sampled(a);
  const ReplayTensors tensors(device, arena, a.pool, a.group_size, a.num_queries, sampled);
  device.check("replay", fastgen::replay(a, tensors.scratch(), device.stream()));
}

void replayed_mass(const AttentionMassArgs& a, const Tensor& arena) {
  const OnDevice device(arena);
  const ReplayTensors tensors(device, arena, a.pool, a.group_size, a.num_queries, 0);
  device.check("replayed_mass", fastgen::replayed_mass(a, tensors.scratch(), device.stream()));
}

void value_norm(const ValueNormArgs& a, const Tensor& arena) {
  const OnDevice device(arena);
  device.check("value_norm", fastgen::value_norm(a, device.stream()));
}

void compact(const CompactArgs& a, const Tensor& arena) {
  const OnDevice device(arena);
  device.check("compact", fastgen::compact(a, device.stream()));
}

void store(const StoreArgs& a, const Tensor& arena) {
  const OnDevice device(arena);
  device.check("store", fastgen::store(a, device.stream()));
}

void decode_attention(const DecodeArgs& a, const Tensor& arena) {
  const OnDevice device(arena);
  const int64_t jobs = static_cast<int64_t>(a.step.num_requests) * a.pool.num_heads;
  const int64_t blocks = kBlocksPerProcessor * device.num_processors();
  const int64_t page_scores = static_cast<int64_t>(a.pool.page_slots) * a.group_size;
  const int64_t scored_pages = std::min(jobs * a.step.row_blocks, kScoreFloats / page_scores);

  const Tensor first_page = device.scratch(jobs + 1, ScalarType::Int);
  const Tensor states =
      device.scratch((jobs + blocks) * a.group_size * (a.pool.head_size + 2), ScalarType::Float);
  const Tensor scores = device.scratch(scored_pages * page_scores, ScalarType::Float);
  const DecodeScratch scratch = {static_cast<int32_t*>(first_page.data_ptr()),
                                 static_cast<float*>(states.data_ptr()),
                                 static_cast<float*>(scores.data_ptr()),
                                 static_cast<int32_t>(scored_pages), static_cast<int32_t>(blocks)};
  device.check("decode_attention", fastgen::decode_attention(a, scratch, device.stream()));
}

}  // namespace fastgen::cuda
