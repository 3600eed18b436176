// Kernels for the compiler's own target: x86-64, or whatever this machine is.
#define FASTGEN_ISA baseline
#define FASTGEN_VECTOR_BYTES 16
#define FASTGEN_BF16_DOT 0
#define FASTGEN_AMX 0
#define FASTGEN_TABLE kBaselineKernels
#include "fastgen/isa_kernels.h"
