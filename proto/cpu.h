// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What the processor can do, found out once.
#ifndef COLDKV_PROTO_CPU_H
#define COLDKV_PROTO_CPU_H

enum cpu_flag {
  CPU_SSE42 = 1 << 0,  /* the CRC-32C instruction */
  CPU_AVX2 = 1 << 1,   /* with FMA3, F16C, BMI1, POPCNT */
  CPU_AVX512 = 1 << 2, /* F, BW, DQ, VL; only beside CPU_AVX2 */
  CPU_AVX512_VPOPCNT = 1 << 3, /* with IFMA and VBMI; only beside CPU_AVX512 */
  CPU_NEON = 1 << 4,
  CPU_ARM_CRC = 1 << 5,
};

/* Flags of this machine, less what the environment variable COLDKV_CPU_MASK (a number) masks out:
 * COLDKV_CPU_MASK=0 leaves only portable C. Safe from any thread. */
unsigned cpu_flags(void);

#endif
