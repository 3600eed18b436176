// The kernel table of one instruction set. Included once by each csrc/cpu/isa_*.cpp level file,
// after its target pragma: FASTGEN_ISA is the level's name, FASTGEN_VECTOR_BYTES the width of its
// vectors, FASTGEN_TABLE its table.
#pragma once

#include "fastgen/attention_mass.h"
#include "fastgen/compact.h"
#include "fastgen/decode_attention.h"
#include "fastgen/replay.h"
#include "fastgen/store.h"
#include "fastgen/value_norm.h"

#define FASTGEN_STRING_OF(x) #x
#define FASTGEN_STRING(x) FASTGEN_STRING_OF(x)

namespace fastgen {

extern const Kernels FASTGEN_TABLE;
const Kernels FASTGEN_TABLE = {
    FASTGEN_STRING(FASTGEN_ISA), FASTGEN_ISA::mass_observe,  FASTGEN_ISA::mass_add,
    FASTGEN_ISA::compact,        FASTGEN_ISA::store,         FASTGEN_ISA::value_norm,
    FASTGEN_ISA::replay_sample,  FASTGEN_ISA::replay_rows,   FASTGEN_ISA::replay_add,
    FASTGEN_ISA::decode_part,    FASTGEN_ISA::decode_finish,
};

}  // namespace fastgen
