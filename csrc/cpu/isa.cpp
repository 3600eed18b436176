#include "cpu/isa.h"

#include <atomic>
#include <stdexcept>
#include <vector>

namespace fastgen {

extern const Kernels kBaselineKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512Bf16Kernels;
#endif

namespace {

// Tables that this processor runs, best last.
std::vector<const Kernels*> runnable() {
  std::vector<const Kernels*> tables = {&kBaselineKernels};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    tables.push_back(&kAvx2Kernels);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
      tables.push_back(&kAvx512Kernels);
      if (__builtin_cpu_supports("avx512bf16")) tables.push_back(&kAvx512Bf16Kernels);
    }
  }
#endif
  return tables;
}

std::atomic<const Kernels*>& selected() {
  static std::atomic<const Kernels*> table{runnable().back()};
  return table;
}

}  // namespace

const Kernels& kernels() { return *selected().load(); }

std::string isa() { return kernels().isa; }

void set_isa(std::string name) {
  std::string names;
  for (const Kernels* table : runnable()) {
    if (name == table->isa) return selected().store(table);
    names += (names.empty() ? "" : ", ") + std::string(table->isa);
  }
  throw std::invalid_argument("set_isa: name must be one of " + names +
                              " on this processor, got '" + name + "'");
}

}  // namespace fastgen
