// Names only: schemas, their launchers, and the module that Python imports to load them.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <stdexcept>

#include "cpu/isa.h"
#include "cpu/ops.h"
#ifdef FASTGEN_CUDA
#include "cuda/launchers.h"
#endif

namespace {

bool has_cuda() {
#ifdef FASTGEN_CUDA
  return true;
#else
  return false;
#endif
}

}  // namespace

STABLE_TORCH_LIBRARY(fastgen, m) {
  m.def(
      "attention_mass(Tensor query, Tensor arena, int layer, Tensor block_row, "
      "int first_position, float scale, str pool, Tensor(a!) mass, "
      "Tensor(b!) energy) -> ()");
  m.def(
      "compact(Tensor source, Tensor old_row, Tensor(a!) arena, Tensor new_row, Tensor kept, "
      "Tensor kept_start, Tensor kept_value, Tensor heads, Tensor(b!) positions, "
      "Tensor(c!) values) -> ()");
  m.def(
      "store(Tensor key, Tensor value, Tensor token_index, Tensor lanes, Tensor block_rows, "
      "Tensor token_position, Tensor token_class, int layer, Tensor(a!) arena, Tensor(b!) heads, "
      "Tensor(c!) positions, Tensor(d!) values) -> ()");
  m.def(
      "decode_attention(Tensor query, Tensor token_index, Tensor lanes, Tensor block_rows, "
      "int layer, float scale, str pool, Tensor arena, Tensor heads, Tensor(a!) values, "
      "Tensor(b!) output) -> ()");
  m.def("value_norm(Tensor arena, Tensor block_row, Tensor(a!) norm) -> ()");
  m.def("has_cuda() -> bool");
  m.def("isa() -> str");
  m.def("set_isa(str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("attention_mass", TORCH_BOX(&fastgen::attention_mass));
  m.impl("value_norm", TORCH_BOX(&fastgen::value_norm));
  m.impl("compact", TORCH_BOX(&fastgen::compact));
  m.impl("store", TORCH_BOX(&fastgen::store));
  m.impl("decode_attention", TORCH_BOX(&fastgen::decode_attention));
}

#ifdef FASTGEN_CUDA
STABLE_TORCH_LIBRARY_IMPL(fastgen, CUDA, m) {
  m.impl("attention_mass", TORCH_BOX(&fastgen::cuda::attention_mass));
  m.impl("value_norm", TORCH_BOX(&fastgen::cuda::value_norm));
  m.impl("compact", TORCH_BOX(&fastgen::cuda::compact));
  m.impl("store", TORCH_BOX(&fastgen::cuda::store));
  m.impl("decode_attention", TORCH_BOX(&fastgen::cuda::decode_attention));
}
#else
namespace {

void not_built(StableIValue*, uint64_t, uint64_t) {
  throw std::runtime_error(
      "fastgen_vllm was built without its CUDA kernels: put nvcc on PATH and install it again with "
      "FASTGEN_CUDA=1");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastgen, CUDA, m) {
  for (const char* op : {"attention_mass", "value_norm", "compact", "store", "decode_attention"}) {
    m.impl(op, &not_built);
  }
}
#endif

STABLE_TORCH_LIBRARY_IMPL(fastgen, CompositeExplicitAutograd, m) {
  m.impl("has_cuda", TORCH_BOX(&has_cuda));
  m.impl("isa", TORCH_BOX(&fastgen::isa));
  m.impl("set_isa", TORCH_BOX(&fastgen::set_isa));
}

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
