#include "cuda/store.cu"

namespace fastgen {

struct Call {
  StoreArgs a;
  int32_t num_requests;
};

}  // namespace fastgen

extern "C" int run(const fastgen::Call* call) {
  return static_cast<int>(fastgen::store(call->a, call->num_requests, nullptr));
}
