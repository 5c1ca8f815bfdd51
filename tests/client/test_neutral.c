// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "client/llama/neutral.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/proto/random.h"

enum { D = 128, GROUP_MAX = 8 };

/* Scaled by 1/sqrt(D): no softmax in f32 gives anything to 100 less than its largest score. */
static const double low_enough = -100 * 11.3;
static const float half_max = 65504;

static void fill(struct random *random, float *x, float length) {
  for (int i = 0; i < D; i++)
    x[i] = length * (float)((double)(random_u64(random) >> 11) * 0x1p-52 - 1);
}

static double dot(const float *a, const float *b) {
  double sum = 0;
  for (int i = 0; i < D; i++)
    sum += (double)a[i] * (double)b[i];
  return sum;
}

static void check(const float *queries, uint32_t group) {
  double work[GROUP_MAX * (GROUP_MAX + 1)];
  float key[D];
  neutral_key(queries, group, D, work, key);
  for (uint32_t i = 0; i < group; i++)
    assert_true(dot(queries + (size_t)i * D, key) < low_enough);
  for (int i = 0; i < D; i++)
    assert_true(key[i] < half_max && key[i] > -half_max);
}

static void is_low_for_every_query(void **state) {
  (void)state;
  struct random random = {3};
  float queries[GROUP_MAX * D];
  for (uint32_t group = 1; group <= GROUP_MAX; group++)
    for (uint32_t step = 0; step < 4; step++) {
      float length = 0.5f * (float)(1u << 2 * step);
      for (uint32_t i = 0; i < group; i++)
        fill(&random, queries + (size_t)i * D, length);
      check(queries, group);
    }
}

/* Heads that ask the same, and heads of very different length. */
static void bears_equal_queries(void **state) {
  (void)state;
  struct random random = {4};
  float queries[4 * D];
  fill(&random, queries, 3);
  for (int i = 0; i < D; i++) {
    queries[D + i] = queries[i];
    queries[2 * D + i] = queries[i] * 4;
    queries[3 * D + i] = queries[D - 1 - i];
  }
  check(queries, 4);
}

/* What cannot be: zeros, which a softmax weighs like any score, and nothing that is not finite. */
static void is_zero_when_there_is_none(void **state) {
  (void)state;
  struct random random = {5};
  float queries[2 * D], key[D];
  double work[2 * 3];
  fill(&random, queries, 3);
  for (int i = 0; i < D; i++)
    queries[D + i] = -queries[i];
  neutral_key(queries, 2, D, work, key);
  for (int i = 0; i < D; i++) {
    assert_true(key[i] == 0);
    queries[i] = 0;
  }
  neutral_key(queries, 1, D, work, key);
  for (int i = 0; i < D; i++)
    assert_true(key[i] == 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(is_low_for_every_query),
      cmocka_unit_test(bears_equal_queries),
      cmocka_unit_test(is_zero_when_there_is_none),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
