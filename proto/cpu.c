// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "proto/cpu.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

static unsigned detected;
static pthread_once_t detected_once = PTHREAD_ONCE_INIT;

#if defined(__x86_64__)
/* Compilers differ on whether __builtin_cpu_supports knows this name. */
static bool has_f16c(void) {
  unsigned a, b, c = 0, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

static unsigned detect(void) {
  unsigned flags = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("sse4.2"))
    flags |= CPU_SSE42;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
      __builtin_cpu_supports("popcnt") && has_f16c())
    flags |= CPU_AVX2;
  if ((flags & CPU_AVX2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    flags |= CPU_AVX512;
  if ((flags & CPU_AVX512) && __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512ifma") &&
      __builtin_cpu_supports("avx512vbmi"))
    flags |= CPU_AVX512_VPOPCNT;
#elif defined(__aarch64__)
  flags |= CPU_NEON;
  if (getauxval(AT_HWCAP) & HWCAP_CRC32)
    flags |= CPU_ARM_CRC;
#endif
  return flags;
}

static void detect_once(void) {
  detected = detect();
  const char *mask = getenv("COLDKV_CPU_MASK");
  if (mask)
    detected &= (unsigned)strtoul(mask, NULL, 0);
}

unsigned cpu_flags(void) {
  pthread_once(&detected_once, detect_once);
  return detected;
}
