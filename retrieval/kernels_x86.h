// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// x86: raises function pointers to what the processor has. Functions carry their instruction set as an attribute, so
// that no file needs compiler flags of its own.
#ifndef COLDKV_RETRIEVAL_KERNELS_X86_H
#define COLDKV_RETRIEVAL_KERNELS_X86_H

#include "proto/cpu.h"
#include "retrieval/kernels.h"

#define TARGET_AVX2 __attribute__((target("avx2,f16c,popcnt,bmi")))
#define TARGET_AVX512 __attribute__((target("avx2,f16c,popcnt,bmi,avx512f,avx512bw,avx512dq,avx512vl")))
#define TARGET_AVX512_VPOPCNT                                                                                          \
  __attribute__((target("avx2,f16c,popcnt,bmi,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")))

void scan_init_avx2(struct lookup_kernels *kernels, unsigned flags);
void scan_init_avx512(struct lookup_kernels *kernels, unsigned flags);
void rescore_init_x86(struct lookup_kernels *kernels, unsigned flags);
void query_init_x86(struct lookup_kernels *kernels, unsigned flags);

#endif
