// The kernels that the tests run as PTX: few of the many instances, which would take minutes to
// compile.
#include "cuda/attention_mass.h"
#include "cuda/compact.h"
#include "cuda/decode_attention.h"
#include "cuda/replay.h"
#include "cuda/store.h"
#include "cuda/value_norm.h"

namespace fastgen {

template <typename Kernel>
static const void* use(Kernel* kernel) {
  return reinterpret_cast<const void*>(kernel);
}

const void* const instances[] = {
    use(store_kernel<uint16_t>),        use(compact_kernel),
    use(value_norm_kernel<__half>),     use(mass_rows<__nv_bfloat16, 64>),
    use(mass_add<__nv_bfloat16, 64>),   use(mass_rows<__half, 64>),
    use(mass_add<__half, 64>),          use(decode_pieces<__nv_bfloat16, 64, 4>),
    use(decode_finish<__nv_bfloat16>),  use(decode_pieces<__half, 128, 2>),
    use(decode_finish<__half>),         use(replay_turn<__nv_bfloat16>),
    use(replay_sample<__nv_bfloat16>),  use(replay_rows<__nv_bfloat16, 64>),
    use(replay_add<__nv_bfloat16, 64>),
};

}  // namespace fastgen
