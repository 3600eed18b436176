#include "cuda/replay.cu"

namespace fastgen {

struct Call {
  ReplayArgs a;
  ReplayScratch scratch;
};

}  // namespace fastgen

extern "C" int run(const fastgen::Call* call) {
  return static_cast<int>(fastgen::replay(call->a, call->scratch, nullptr));
}
