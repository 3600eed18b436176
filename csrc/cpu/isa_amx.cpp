// Kernels for AMX with BF16, and AVX-512 F, BW, VL, DQ and BF16.
#if defined(__x86_64__)
#pragma GCC target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#define FASTGEN_ISA amx
#define FASTGEN_VECTOR_BYTES 64
#define FASTGEN_BF16_DOT 1
#define FASTGEN_AMX 1
#define FASTGEN_TABLE kAmxKernels
#include "fastgen/isa_kernels.h"
#endif
