// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/kernels/codec_kernels.h"
#include "tests/retrieval/check.h"

static struct codec_kernels c, other;

/* kind 0: close to a Gaussian; 1: exactly on thresholds once divided; 2: zeros of both signs among others; 3:
 * subnormal; 4: squares underflow; 5: one outlier; 6: all zero; 7: largest scales; 8: not finite; 9: whole range of
 * exponents. */
enum { KINDS = 10 };

static float make_number(struct random *random, int kind, uint32_t i) {
  double sum = -6;
  for (int n = 0; n < 12; n++)
    sum += (double)(random_u64(random) >> 11) * 0x1p-53;
  switch (kind) {
  case 1:
    return (i % 2 ? -1.0f : 1.0f) * (i % 3 ? codebooks[2].thresholds[i % 3] : 1.0f);
  case 2:
    return i % 3 ? (float)sum : i % 2 ? 0.0f : -0.0f;
  case 3:
    return (float)sum * 0x1p-128f;
  case 4:
    return (float)sum * 0x1p-75f;
  case 5:
    return i == 70 ? 1000.0f : (float)sum * 1e-3f;
  case 6:
    return i % 2 ? 0.0f : -0.0f;
  case 7:
    return (float)sum * 60000.0f;
  case 8:
    return i % 17 ? (float)sum : i % 2 ? INFINITY : NAN;
  case 9:
    return ldexpf((float)sum, (int)random_below(random, 40) - 20);
  default:
    return (float)sum;
  }
}

static float *make(struct random *random, uint32_t n, int kind) {
  float *x = malloc(n * sizeof *x); /* as long as that, so that a sanitizer sees a read past the end */
  if (!x)
    abort();
  for (uint32_t i = 0; i < n; i++)
    x[i] = make_number(random, kind, i);
  return x;
}

static void make_signs(struct random *random, float signs[3][LIMIT_HEAD_DIM_MAX]) {
  for (int p = 0; p < 3; p++)
    for (uint32_t i = 0; i < LIMIT_HEAD_DIM_MAX; i++)
      signs[p][i] = random_u64(random) & 1 ? -1.0f : 1.0f;
}

/* The bits of numbers, but all NaN are equal. */
static bool same(const float *a, const float *b, uint32_t n) {
  for (uint32_t i = 0; i < n; i++)
    if (memcmp(&a[i], &b[i], sizeof *a) != 0 && !(isnan(a[i]) && isnan(b[i])))
      return false;
  return true;
}

static void check_rotations(struct random *random, const char *level, uint32_t d, int kind) {
  float signs[3][LIMIT_HEAD_DIM_MAX];
  make_signs(random, signs);
  float *wanted = make(random, d, kind), *got = make(random, d, kind);
  memcpy(got, wanted, d * sizeof *got);
  c.rotate((const float(*)[LIMIT_HEAD_DIM_MAX])signs, d, wanted);
  other.rotate((const float(*)[LIMIT_HEAD_DIM_MAX])signs, d, got);
  check_report("rotate", level, same(wanted, got, d));
  c.rotate_back((const float(*)[LIMIT_HEAD_DIM_MAX])signs, d, wanted);
  other.rotate_back((const float(*)[LIMIT_HEAD_DIM_MAX])signs, d, got);
  check_report("rotate_back", level, same(wanted, got, d));
  free(wanted);
  free(got);
}

static void check_quantize(struct random *random, const char *level, uint32_t d, struct codec_split split, int kind) {
  uint32_t bytes = codec_plane_bytes(d, split);
  uint8_t *wanted = malloc(bytes), *got = malloc(bytes), *signs = malloc(d / 8);
  uint8_t wanted_signs[16], got_signs[16];
  float *y = make(random, d, kind), *decoded = make(random, d, 0), *decoded_other = make(random, d, 0);
  uint16_t scale = 0, other_scale = 1;
  if (!wanted || !got || !signs)
    abort();
  int result = c.quantize(y, d, split, wanted, &scale);
  bool right = other.quantize(y, d, split, got, &other_scale) == result;
  if (result == 0)
    right &= scale == other_scale && memcmp(wanted, got, bytes) == 0;
  check_report("quantize", level, right);
  c.negative(y, d, wanted_signs);
  other.negative(y, d, got_signs);
  check_report("negative", level, kind == 8 || memcmp(wanted_signs, got_signs, d / 8) == 0);
  random_fill(random, got, bytes); /* any bits are a code */
  random_fill(random, signs, d / 8);
  c.values(signs, got, d, split, 0.37f, decoded);
  other.values(signs, got, d, split, 0.37f, decoded_other);
  check_report("values", level, same(decoded, decoded_other, d));
  free(wanted);
  free(got);
  free(signs);
  free(y);
  free(decoded);
  free(decoded_other);
}

/* --- times ------------------------------------------------------------------------------------------------------ */

enum { BENCH = 64 };

struct bench {
  uint32_t d;
  struct codec_split split;
  float signs[3][LIMIT_HEAD_DIM_MAX];
  float x[BENCH][LIMIT_HEAD_DIM_MAX], y[LIMIT_HEAD_DIM_MAX];
  uint8_t planes[BENCH][48], plane[16];
};

static void bench_rotate(void *context) {
  struct bench *bench = context;
  for (int i = 0; i < BENCH; i++) {
    memcpy(bench->y, bench->x[i], sizeof bench->y);
    other.rotate((const float(*)[LIMIT_HEAD_DIM_MAX])bench->signs, bench->d, bench->y);
  }
}

static void bench_quantize(void *context) {
  struct bench *bench = context;
  uint16_t scale;
  for (int i = 0; i < BENCH; i++)
    other.quantize(bench->x[i], bench->d, bench->split, bench->planes[i], &scale);
}

static void bench_values(void *context) {
  struct bench *bench = context;
  for (int i = 0; i < BENCH; i++)
    other.values(bench->plane, bench->planes[i], bench->d, bench->split, 0.5f, bench->y);
}

static void bench_all(const char *level) {
  static struct bench bench;
  struct random random = {6};
  make_signs(&random, bench.signs);
  for (int i = 0; i < BENCH; i++)
    for (uint32_t j = 0; j < LIMIT_HEAD_DIM_MAX; j++)
      bench.x[i][j] = make_number(&random, 0, j);
  for (bench.d = 64; bench.d <= 128; bench.d += 32) {
    char name[32];
    bench.split = (struct codec_split){256 / bench.d, 256 % bench.d};
    snprintf(name, sizeof name, "rotate, head_dim %u", bench.d);
    check_time(name, level, bench_rotate, &bench, BENCH, 0);
    snprintf(name, sizeof name, "quantize, head_dim %u", bench.d);
    check_time(name, level, bench_quantize, &bench, BENCH, 0);
    snprintf(name, sizeof name, "values, head_dim %u", bench.d);
    check_time(name, level, bench_values, &bench, BENCH, 0);
  }
}

void check_codec(const struct check_level *level) {
  codec_kernels_init(&c, 0);
  codec_kernels_init(&other, level->flags);
  struct random random = {7};
  for (uint32_t d = 64; d <= 128; d += 8)
    for (int round = 0; round < 20 * KINDS; round++) {
      check_rotations(&random, level->name, d, round % KINDS);
      check_quantize(&random, level->name, d, (struct codec_split){256 / d, 256 % d}, round % KINDS);
      check_quantize(&random, level->name, d, (struct codec_split){384 / d - 1, 384 % d}, round % KINDS);
    }
  if (check_bench())
    bench_all(level->name);
}
