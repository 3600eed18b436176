#include "cuda/compact.cu"

namespace fastgen {

struct Call {
  CompactArgs a;
  int32_t max_kept;
};

}  // namespace fastgen

extern "C" int run(const fastgen::Call* call) {
  return static_cast<int>(fastgen::compact(call->a, call->max_kept, nullptr));
}
