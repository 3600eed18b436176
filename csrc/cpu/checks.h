// What every launcher does: check its tensors, and hand out ragged work to torch's own threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>

#include "fastgen/kernels.h"

namespace fastgen {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kAny = -1;  // in an expected shape: a dimension of any size

// Python sees std::invalid_argument as ValueError.
template <typename... Parts>
void require(bool holds, const Parts&... message) {
  if (holds) return;
  std::ostringstream text;
  (text << ... << message);
  throw std::invalid_argument(text.str());
}

inline const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    default:
      return "another dtype";
  }
}

template <typename Sizes>
std::string shape_text(const Sizes& sizes) {
  std::string text = "[";
  for (int64_t size : sizes) {
    text += (text.size() > 1 ? ", " : "") + (size == kAny ? "any" : std::to_string(size));
  }
  return text + "]";
}

// Checks of one op's arguments; every message names the op, the argument and what is legal.
class Checks {
 public:
  explicit Checks(const char* op) : op_(op) {}

  void tensor(const char* name, const Tensor& t, ScalarType dtype,
              std::initializer_list<int64_t> shape) const {
    require(t.is_cpu(), op_, ": ", name, " must be on the CPU");
    require(t.scalar_type() == dtype, op_, ": ", name, " must be ", dtype_name(dtype), ", got ",
            dtype_name(t.scalar_type()));
    bool same = t.dim() == static_cast<int64_t>(shape.size());
    int64_t i = 0;
    for (int64_t size : shape) {
      same = same && (size == kAny || t.size(i) == size);
      ++i;
    }
    require(same, op_, ": ", name, " must have shape ", shape_text(shape), ", got ",
            shape_text(t.sizes()));
  }

  void contiguous(const char* name, const Tensor& t, ScalarType dtype,
                  std::initializer_list<int64_t> shape) const {
    tensor(name, t, dtype, shape);
    require(t.is_contiguous(), op_, ": ", name, " must be contiguous, call .contiguous()");
  }

  void rows(const char* name, const Tensor& t, ScalarType dtype,
            std::initializer_list<int64_t> shape) const {
    tensor(name, t, dtype, shape);
    const int64_t last = t.dim() - 1;
    require(t.size(last) <= 1 || t.stride(last) == 1, op_, ": ", name,
            " must be contiguous in its last dimension");
  }

  PagePool arena(const Tensor& t) const {
    const ScalarType dtype = t.scalar_type();
    require(
        dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16,
        op_, ": arena must be float32, float16 or bfloat16, got ", dtype_name(dtype));
    tensor("arena", t, dtype, {kAny, kAny, kAny, kAny, kAny});
    require(t.size(3) > 0 && t.size(3) % (2 * kTile) == 0, op_,
            ": arena must have 2 * S rows in a page, S a multiple of 32, got shape ",
            shape_text(t.sizes()));
    require(t.size(4) > 0 && t.size(4) % kTile == 0, op_,
            ": arena must have a head size D that is a multiple of 32, got shape ",
            shape_text(t.sizes()));
    require(t.stride(4) == 1 && t.stride(3) == t.size(4), op_,
            ": arena must be contiguous in its last two dimensions, got strides ",
            shape_text(t.strides()));
    return {static_cast<char*>(t.data_ptr()),
            dtype == ScalarType::Float  ? kFloat32
            : dtype == ScalarType::Half ? kFloat16
                                        : kBFloat16,
            dtype == ScalarType::Float ? 4 : 2,
            t.stride(0),
            t.stride(1),
            t.stride(2),
            static_cast<int>(t.size(0)),
            static_cast<int>(t.size(2)),
            static_cast<int>(t.size(3) / 2),
            static_cast<int>(t.size(4))};
  }

  // positions and values, parallel to the pages of the arena
  void metadata(const Tensor& arena, const Tensor& positions, const Tensor& values) const {
    const int64_t pages = arena.size(0) * arena.size(2), slots = arena.size(3) / 2;
    contiguous("positions", positions, ScalarType::Int, {arena.size(1), pages, slots});
    contiguous("values", values, ScalarType::Float, {arena.size(1), pages, slots});
  }

  void layer(int64_t layer, const PagePool& pool) const {
    require(layer >= 0 && layer < pool.num_layers, op_, ": layer must be in [0, ", pool.num_layers,
            "), got ", layer);
  }

  // G of a query [any, H*G, D]
  int group_size(const Tensor& query, const PagePool& pool) const {
    require(query.size(1) > 0 && query.size(1) % pool.num_heads == 0, op_,
            ": query must have a multiple of H = ", pool.num_heads, " query heads, got shape ",
            shape_text(query.sizes()));
    return static_cast<int>(query.size(1) / pool.num_heads);
  }

  Pooling pooling(const std::string& name) const {
    require(name == "mean" || name == "max" || name == "min", op_,
            ": pool must be one of mean, max, min, got '", name, "'");
    return name == "mean" ? kMean : name == "max" ? kMax : kMin;
  }

 private:
  const char* op_;
};

// Rounds a number of floats up to whole cache lines, so that no vector straddles two.
inline int64_t whole_lines(int64_t floats) { return (floats + 15) / 16 * 16; }

// Memory that only grows: a fresh mapping per call would cost its page faults every time.
class Scratch {
 public:
  // Uninitialised room for `count` floats, valid until the next call; 64-byte aligned.
  float* floats(int64_t count) {
    if (count > capacity_) {
      ::operator delete[](data_, std::align_val_t(64));
      data_ = nullptr;
      capacity_ = 0;
      data_ = static_cast<float*>(
          ::operator new[](static_cast<size_t>(count) * sizeof(float), std::align_val_t(64)));
      capacity_ = count;
    }
    return data_;
  }
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { ::operator delete[](data_, std::align_val_t(64)); }

 private:
  float* data_ = nullptr;
  int64_t capacity_ = 0;
};

// Calls work(worker, item) for every item in [0, items); who is free takes the next one. Workers
// are numbered from 0 and below torch's number of threads. There is one for every `least` items, at
// most: a little work is not worth waking threads for.
template <typename Work>
void for_each_item(int64_t items, const Work& work, int64_t least = 1) {
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t workers = std::clamp<int64_t>(items / least, 1, threads);
  if (workers == 1) {
    for (int64_t i = 0; i < items; ++i) work(0, i);
    return;
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t worker, int64_t) {
    for (int64_t i = next++; i < items; i = next++) work(worker, i);
  });
}

}  // namespace fastgen
