// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Compiled with -ffp-contract=fast: here a multiply and an add may be fused.
#include "client/kernels/attend.h"

#include <stddef.h>
#include <string.h>

#include "proto/cpu.h"

typedef float vec4 __attribute__((vector_size(16)));
typedef int32_t ivec4 __attribute__((vector_size(16)));
typedef float vec4_anywhere __attribute__((vector_size(16), aligned(4), may_alias));

#define LOAD(p) (*(const vec_anywhere *)(const void *)(p))
#define STORE(p, v) (*(vec_anywhere *)(void *)(p) = (v))

#define NAME(x) x##_c
#define TARGET
#define KERNEL_NAME "c"
#define LANES 4
#define vec vec4
#define ivec ivec4
#define vec_anywhere vec4_anywhere
#include "client/kernels/attend_body.h"
#undef NAME
#undef TARGET
#undef KERNEL_NAME
#undef LANES
#undef vec
#undef ivec
#undef vec_anywhere

#if defined(__x86_64__)
typedef float vec8 __attribute__((vector_size(32)));
typedef int32_t ivec8 __attribute__((vector_size(32)));
typedef float vec8_anywhere __attribute__((vector_size(32), aligned(4), may_alias));

#define NAME(x) x##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define KERNEL_NAME "avx2"
#define LANES 8
#define vec vec8
#define ivec ivec8
#define vec_anywhere vec8_anywhere
#include "client/kernels/attend_body.h"
#endif

const struct attend_kernels *attend_kernels_each(uint32_t i) {
  if (i == 0)
    return &kernels_c;
#if defined(__x86_64__)
  if (i == 1 && cpu_flags() & CPU_AVX2)
    return &kernels_avx2;
#endif
  return NULL;
}

const struct attend_kernels *attend_kernels(void) {
  const struct attend_kernels *best = &kernels_c;
  for (uint32_t i = 1; attend_kernels_each(i); i++)
    best = attend_kernels_each(i);
  return best;
}
