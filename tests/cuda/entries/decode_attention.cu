#include "cuda/decode_attention.cu"

namespace fastgen {

struct Call {
  DecodeArgs a;
  DecodeScratch scratch;
};

}  // namespace fastgen

extern "C" int run(const fastgen::Call* call) {
  return static_cast<int>(fastgen::decode_attention(call->a, call->scratch, nullptr));
}
