#include "cuda/decode_attention.cu"

namespace fastgen {

struct Call {
  DecodeArgs a;
  DecodeScratch scratch;
  int32_t num_requests;
  int32_t max_slots;
};

}  // namespace fastgen

extern "C" int run(const fastgen::Call* call) {
  return static_cast<int>(fastgen::decode_attention(call->a, call->scratch, call->num_requests,
                                                    call->max_slots, nullptr));
}
