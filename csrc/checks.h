// What is legal: checks of an op's tensors, whatever device they are on.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
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
[[noreturn]] void refuse(const Parts&... message) {
  std::ostringstream text;
  (text << ... << message);
  throw std::invalid_argument(text.str());
}

template <typename... Parts>
void require(bool holds, const Parts&... message) {
  if (!holds) refuse(message...);
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

inline std::string device_name(const Tensor& t) {
  return t.is_cpu() ? "the CPU" : "GPU " + std::to_string(t.get_device_index());
}

// Checks of one op's arguments; every message names the op, the argument and what is legal.
class Checks {
 public:
  // All tensors of a call are on the device of its cache.
  Checks(const char* op, const Tensor& arena) : op_(op), arena_(arena) {}

  void tensor(const char* name, const Tensor& t, ScalarType dtype,
              std::initializer_list<int64_t> shape) const {
    require(t.device() == arena_.device(), op_, ": ", name, " must be on ", device_name(arena_),
            ", like arena, got ", device_name(t));
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

  // Kernels read so many bytes at once: of `dims` dimensions none may end between them.
  void aligned(const char* name, const Tensor& t, int64_t bytes, int64_t dims) const {
    const int64_t element_size = t.scalar_type() == ScalarType::Float ? 4 : 2;
    bool holds = reinterpret_cast<uintptr_t>(t.data_ptr()) % bytes == 0;
    for (int64_t i = 0; i < dims; ++i) {
      holds = holds && (t.size(i) <= 1 || t.stride(i) * element_size % bytes == 0);
    }
    require(holds, op_, ": ", name, " must begin at a multiple of ", bytes,
            " bytes, in every one of its first ", dims, " dimensions; got an address of ",
            reinterpret_cast<uintptr_t>(t.data_ptr()) % bytes, " beyond one, strides ",
            shape_text(t.strides()), " of ", element_size, " bytes");
  }

  PagePool arena() const { return arena("arena", arena_); }

  // A cache; the layouts are drawn in fastgen/pages.h.
  PagePool arena(const char* name, const Tensor& t) const {
    const ScalarType dtype = t.scalar_type();
    require(
        dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16,
        op_, ": ", name, " must be float32, float16 or bfloat16, got ", dtype_name(dtype));
    const bool cpu = t.is_cpu(), in_pairs = cpu && t.dim() == 6;
    if (in_pairs) {
      require(dtype == ScalarType::BFloat16, op_, ": ", name,
              " must be bfloat16 where pages are in pairs, got ", dtype_name(dtype));
      tensor(name, t, dtype, {kAny, kAny, kAny, kAny, kAny, 2});
    } else {
      tensor(name, t, dtype, {kAny, kAny, kAny, kAny, kAny});
    }
    const int64_t slots = cpu ? t.size(3) / 2 : t.size(3);
    const int64_t head_size = in_pairs ? t.size(4) * 2 : cpu ? t.size(4) : t.size(4) / 2;
    if (cpu) {
      require(t.size(3) > 0 && t.size(3) % (2 * kTile) == 0, op_, ": ", name,
              " must have 2 * S rows in a page, S a multiple of 32, got shape ",
              shape_text(t.sizes()));
      require(head_size > 0 && head_size % kTile == 0, op_, ": ", name,
              " must have a head size D that is a multiple of 32, got shape ",
              shape_text(t.sizes()));
      require(
          t.stride(t.dim() - 1) == 1 && t.stride(3) == head_size && (!in_pairs || t.stride(4) == 2),
          op_, ": ", name, " must be contiguous in its last ", in_pairs ? "three" : "two",
          " dimensions, got strides ", shape_text(t.strides()));
    } else {
      require(slots > 0 && slots % 16 == 0, op_, ": ", name,
              " must have pages of S slots, S a multiple of 16, got shape ", shape_text(t.sizes()));
      require(t.size(4) > 0 && t.size(4) % (2 * kTile) == 0 && head_size <= 256, op_, ": ", name,
              " must have rows of 2 * D elements, D a multiple of 32 and at most 256, got shape ",
              shape_text(t.sizes()));
      require(t.stride(4) == 1 && t.stride(3) % head_size == 0, op_, ": ", name,
              " must be contiguous in its last dimension, got strides ", shape_text(t.strides()));
    }
    aligned(name, t, 16, 4);
    return {static_cast<char*>(t.data_ptr()),
            dtype == ScalarType::Float  ? kFloat32
            : dtype == ScalarType::Half ? kFloat16
                                        : kBFloat16,
            dtype == ScalarType::Float ? 4 : 2,
            t.stride(0),
            t.stride(1),
            t.stride(2),
            t.stride(3),
            static_cast<int>(t.size(1)),
            static_cast<int>(t.size(0)),
            static_cast<int>(t.size(2)),
            static_cast<int>(slots),
            static_cast<int>(head_size),
            in_pairs};
  }

  // positions or values, parallel to the pages of the arena
  void metadata(const char* name, const Tensor& t, ScalarType dtype, const PagePool& pool) const {
    contiguous(name, t, dtype, {arena_.size(1), pages_per_block(pool), pool.page_slots});
  }

  // The blocks of one request.
  BlockRow row(const char* name, const Tensor& t) const {
    contiguous(name, t, ScalarType::Int, {kAny});
    return {static_cast<const int32_t*>(t.data_ptr()), static_cast<int>(t.size(0))};
  }

  // Head records [L, H, 16] of one request.
  const HeadRecord* heads(const char* name, const Tensor& t, const PagePool& pool) const {
    contiguous(name, t, ScalarType::Int, {pool.num_layers, pool.num_heads, kHeadFields});
    return static_cast<const HeadRecord*>(t.data_ptr());
  }

  // The requests of a step of `num_tokens` tokens.
  StepRequests step(const Tensor& token_index, const Tensor& lanes, const Tensor& block_rows,
                    const Tensor& heads, int64_t layer, int64_t num_tokens,
                    const PagePool& pool) const {
    this->layer(layer, pool);
    contiguous("token_index", token_index, ScalarType::Long, {kAny});
    const int64_t requests = token_index.size(0);
    contiguous("lanes", lanes, ScalarType::Int, {requests});
    rows("block_rows", block_rows, ScalarType::Int, {requests, kAny});
    contiguous("heads", heads, ScalarType::Int,
               {kAny, pool.num_layers, pool.num_heads, kHeadFields});
    return {static_cast<const int64_t*>(token_index.data_ptr()),
            static_cast<const int32_t*>(lanes.data_ptr()),
            static_cast<const int32_t*>(block_rows.data_ptr()),
            block_rows.stride(0),
            static_cast<int>(block_rows.size(1)),
            static_cast<int>(requests),
            static_cast<int>(num_tokens),
            static_cast<int>(heads.size(0)),
            static_cast<int>(layer),
            static_cast<HeadRecord*>(heads.data_ptr())};
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

  Turn turn(const Tensor& angles, bool interleaved, const PagePool& pool) const {
    require(pool.head_size <= kMostHeadSize, op_, ": head size D must be at most ", kMostHeadSize,
            ", got ", pool.head_size);
    contiguous("turn", angles, ScalarType::Float, {2, kAny});
    require(2 * angles.size(1) <= pool.head_size, op_,
            ": turn must have at most D / 2 = ", pool.head_size / 2, " angles, got ",
            angles.size(1));
    return {static_cast<const float*>(angles.data_ptr()), static_cast<int>(angles.size(1)),
            interleaved};
  }

  // Queries of a prompt, which meet its keys in one layer: what all such calls have in common.
  void queries(PromptQueries& a, const Tensor& query, int64_t layer, const Tensor& block_row,
               const Tensor& heads, int64_t first_position, double scale,
               const std::string& pool) const {
    a.pool = arena();
    this->layer(layer, a.pool);
    rows("query", query, arena_.scalar_type(), {kAny, kAny, a.pool.head_size});
    aligned("query", query, 4, 2);
    a.group_size = group_size(query, a.pool);
    a.pooling = pooling(pool);
    require(first_position >= 0, op_, ": first_position must be at least 0, got ", first_position);
    require(first_position < kMostSlots && query.size(0) < kMostSlots, op_,
            ": a prompt must have less than ", kMostSlots, " tokens, got ", query.size(0),
            " queries from ", first_position);
    a.block_row = row("block_row", block_row);
    a.heads = this->heads("heads", heads, a.pool);
    a.query = static_cast<const char*>(query.data_ptr());
    a.query_token_stride = query.stride(0);
    a.query_head_stride = query.stride(1);
    a.num_queries = static_cast<int>(query.size(0));
    a.first_position = static_cast<int>(first_position);
    a.layer = static_cast<int>(layer);
    a.scale = static_cast<float>(scale);
  }

  Pooling pooling(const std::string& name) const {
    require(name == "mean" || name == "max" || name == "min", op_,
            ": pool must be one of mean, max, min, got '", name, "'");
    return name == "mean" ? kMean : name == "max" ? kMax : kMin;
  }

 private:
  const char* op_;
  const Tensor& arena_;
};

}  // namespace fastgen
