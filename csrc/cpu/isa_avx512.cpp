// Kernels for AVX-512 F, BW, VL and DQ.
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#define FASTGEN_ISA avx512
#define FASTGEN_VECTOR_BYTES 64
#define FASTGEN_BF16_DOT 0
#define FASTGEN_AMX 0
#define FASTGEN_TABLE kAvx512Kernels
#include "fastgen/isa_kernels.h"
#endif
