// Kernels for AVX-512 F, BW, VL, DQ and BF16.
#if defined(__x86_64__)
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#define FASTGEN_ISA avx512bf16
#define FASTGEN_VECTOR_BYTES 64
#define FASTGEN_BF16_DOT 1
#define FASTGEN_AMX 0
#define FASTGEN_TABLE kAvx512Bf16Kernels
#include "fastgen/isa_kernels.h"
#endif
