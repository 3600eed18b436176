#include "cpu/isa.h"

#include <atomic>
#include <stdexcept>
#include <vector>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastgen {

extern const Kernels kBaselineKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512Bf16Kernels;
extern const Kernels kAmxKernels;
#endif

namespace {

#if defined(__x86_64__)
// Linux lets a process use tiles when it has asked for their state: for all its threads, and for
// good.
bool tiles_allowed() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

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
      if (__builtin_cpu_supports("avx512bf16")) {
        tables.push_back(&kAvx512Bf16Kernels);
        if (__builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
            tiles_allowed()) {
          tables.push_back(&kAmxKernels);
        }
      }
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
