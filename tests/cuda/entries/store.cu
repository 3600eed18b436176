#include "cuda/store.cu"

namespace fastgen {

struct Call {
  StoreArgs a;
};

}  // namespace fastgen

extern "C" int run(const fastgen::Call* call) {
  return static_cast<int>(fastgen::store(call->a, nullptr));
}
