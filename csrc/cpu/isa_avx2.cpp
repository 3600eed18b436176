// Kernels for AVX2, FMA and F16C.
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#define FASTGEN_ISA avx2
#define FASTGEN_VECTOR_BYTES 32
#define FASTGEN_BF16_DOT 0
#define FASTGEN_AMX 0
#define FASTGEN_TABLE kAvx2Kernels
#include "fastgen/isa_kernels.h"
#endif
