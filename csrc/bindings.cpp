// The module that Python imports to load the ops of csrc/ops, and what tells how it was built.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include "cpu/isa.h"

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
  m.def("has_cuda() -> bool");
  m.def("isa() -> str");
  m.def("set_isa(str name) -> ()");
}

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
