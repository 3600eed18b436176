#include "cuda/attention_mass.cu"

namespace fastgen {

struct Call {
  AttentionMassArgs a;
  SoftmaxRow* softmax_rows;
};

}  // namespace fastgen

extern "C" int run(const fastgen::Call* call) {
  return static_cast<int>(fastgen::attention_mass(call->a, call->softmax_rows, nullptr));
}
