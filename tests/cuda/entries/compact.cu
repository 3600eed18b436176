#include "cuda/compact.cu"

namespace fastgen {

struct Call {
  CompactArgs a;
};

}  // namespace fastgen

extern "C" int run(const fastgen::Call* call) {
  return static_cast<int>(fastgen::compact(call->a, nullptr));
}
