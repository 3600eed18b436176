#include "cuda/value_norm.cu"

namespace fastgen {

struct Call {
  ValueNormArgs a;
};

}  // namespace fastgen

extern "C" int run(const fastgen::Call* call) {
  return static_cast<int>(fastgen::value_norm(call->a, nullptr));
}
