// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "retrieval/kernels.h"
#include "tests/retrieval/check.h"

static struct lookup_kernels c, other;

/* kind 0: random; 1, 2: everything at its largest, adding up; 3: all zero. */
static void make(struct random *random, uint32_t d, int kind, int16_t *q12, uint8_t *signature, uint8_t *k_mag) {
  random_fill(random, signature, 16);
  random_fill(random, k_mag, 32);
  memset(q12, 0, LIMIT_HEAD_DIM_MAX * sizeof *q12);
  for (uint32_t i = 0; i < d; i++) {
    q12[i] = (int16_t)((int)random_below(random, 4095) - 2047);
    if (kind == 1 || kind == 2)
      q12[i] = (signature[i / 8] >> i % 8 & 1) == (kind == 2) ? 2047 : -2047;
    if (kind == 3)
      q12[i] = 0;
  }
  if (kind == 1 || kind == 2)
    memset(k_mag, 0xff, 32);
}

struct bench {
  struct rescore_code code;
  int16_t q12[LIMIT_HEAD_DIM_MAX];
  uint8_t signatures[256][16], k_mags[256][32];
};

static void bench_rescore(void *context) {
  const struct bench *bench = context;
  volatile int32_t sum = 0; /* so that nothing is left out */
  for (int i = 0; i < 256; i++)
    sum = other.rescore(&bench->code, bench->q12, bench->signatures[i], bench->k_mags[i]);
  (void)sum;
}

void check_rescore(const struct check_level *level) {
  lookup_kernels_init(&c, 0);
  lookup_kernels_init(&other, level->flags);
  struct random random = {3};
  uint8_t *signature = malloc(16), *k_mag = malloc(32);
  int16_t *q12 = malloc(LIMIT_HEAD_DIM_MAX * sizeof *q12);
  if (!signature || !k_mag || !q12)
    abort();
  static struct bench bench;
  for (uint32_t d = 64; d <= 128; d += 8) {
    struct rescore_code code;
    rescore_code_init(&code, d);
    for (int round = 0; round < 400; round++) {
      make(&random, d, round % 8, q12, signature, k_mag);
      int32_t wanted = c.rescore(&code, q12, signature, k_mag);
      check_report("rescore", level->name, other.rescore(&code, q12, signature, k_mag) == wanted);
    }
    if (!check_bench() || (d != 64 && d != 120 && d != 128))
      continue;
    char name[32];
    snprintf(name, sizeof name, "rescore, head_dim %u", d);
    bench.code = code;
    make(&random, d, 0, bench.q12, signature, k_mag);
    random_fill(&random, bench.signatures, sizeof bench.signatures);
    random_fill(&random, bench.k_mags, sizeof bench.k_mags);
    check_time(name, level->name, bench_rescore, &bench, 256, 0);
  }
  free(signature);
  free(k_mag);
  free(q12);
}
