// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The default floating-point environment for the time of one encode: an inference process may run with subnormals
// flushed to zero or another rounding mode, and the bytes must not depend on that.
#ifndef COLDKV_CLIENT_CODEC_FP_H
#define COLDKV_CLIENT_CODEC_FP_H

#if defined(__SSE2__)
#include <immintrin.h>

struct fp_environment {
  unsigned saved;
};

/* Only what SSE and AVX code obeys: loading the x87 state as well would take longer than half an encode. */
static inline struct fp_environment fp_enter(void) {
  struct fp_environment environment = {_mm_getcsr()};
  _mm_setcsr(0x1f80); /* all exceptions masked, round to nearest even, no flush to zero, no subnormals as zero */
  __asm__ volatile("" ::: "memory"); /* so that nothing is computed before */
  return environment;
}

static inline void fp_leave(struct fp_environment environment) {
  __asm__ volatile("" ::: "memory");
  _mm_setcsr(environment.saved);
}
#else
#include <fenv.h>

struct fp_environment {
  fenv_t saved;
};

static inline struct fp_environment fp_enter(void) {
  struct fp_environment environment;
  fegetenv(&environment.saved);
  fesetenv(FE_DFL_ENV);
  __asm__ volatile("" ::: "memory");
  return environment;
}

static inline void fp_leave(struct fp_environment environment) {
  __asm__ volatile("" ::: "memory");
  fesetenv(&environment.saved);
}
#endif

#endif
