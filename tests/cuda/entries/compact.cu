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
extern "C" int size_of_call(const int64_t* const* size) {
  return **size == static_cast<int64_t>(sizeof(fastgen::Call)) ? 0 : 1;
}
