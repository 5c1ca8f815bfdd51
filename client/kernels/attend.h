// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The inner loops of attention, four query rows at a time. Results may differ between kernels in the last bits: unlike
// encoding, attention need not be the same everywhere.
#ifndef COLDKV_CLIENT_KERNELS_ATTEND_H
#define COLDKV_CLIENT_KERNELS_ATTEND_H

#include <stdint.h>

enum { ATTEND_ROWS = 4, ATTEND_TILE = 64 };

/* d is a multiple of 8. No alignment is needed. */
struct attend_kernels {
  const char *name;

  /* scores[r][j] = q[r] . key j, for the ATTEND_TILE keys of a tile [d][ATTEND_TILE]. */
  void (*scores)(const float *const q[ATTEND_ROWS], const float *tile, uint32_t d, float *const scores[ATTEND_ROWS]);

  /* out[r] [d] += sum over j < count of p[r][j] values[j], values [count][d]. The four outs are different arrays. */
  void (*accumulate)(const float *const p[ATTEND_ROWS], const float *values, uint32_t count, uint32_t d,
                     float *const out[ATTEND_ROWS]);

  /* out[j] = q . keys[j], keys [count][d]. */
  void (*dots)(const float *q, const float *keys, uint32_t count, uint32_t d, float *out);

  /* out [d] += p v. */
  void (*add)(float p, const float *v, uint32_t d, float *out);

  /* Largest of s [count], or `least` if that is larger. */
  float (*largest)(const float *s, uint32_t count, float least);

  /* s[j] = exp(s[j] - top), for s[j] <= top; returns their sum. */
  float (*exponentials)(float *s, uint32_t count, float top);
};

/* The fastest that this machine runs (COLDKV_CPU_MASK is obeyed). */
const struct attend_kernels *attend_kernels(void);

/* Every one that this machine runs, for tests: the i-th, NULL behind the last. Plain C is the first. */
const struct attend_kernels *attend_kernels_each(uint32_t i);

#endif
