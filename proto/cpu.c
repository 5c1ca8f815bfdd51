// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "proto/cpu.h"

#include <pthread.h>
#include <stdlib.h>
#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

static unsigned detected;
static pthread_once_t detected_once = PTHREAD_ONCE_INIT;

static unsigned detect(void) {
  unsigned flags = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("sse4.2"))
    flags |= CPU_SSE42;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt"))
    flags |= CPU_AVX2;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    flags |= CPU_AVX512;
  if ((flags & CPU_AVX512) && __builtin_cpu_supports("avx512vpopcntdq"))
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
