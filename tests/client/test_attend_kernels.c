// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Every kernel that this machine runs against sums in double.
#include "client/kernels/attend.h"

#include <math.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/proto/random.h"

enum { D_MAX = 128 };

static float uniform(struct random *random) { return (float)((double)(random_u64(random) >> 11) * 0x1p-52 - 1); }

static void fill(struct random *random, float *x, size_t count) {
  for (size_t i = 0; i < count; i++)
    x[i] = uniform(random);
}

static float q[ATTEND_ROWS][D_MAX], tile[D_MAX * ATTEND_TILE], scores[ATTEND_ROWS][ATTEND_TILE];
static float out[ATTEND_ROWS][D_MAX];

static void check_scores(const struct attend_kernels *kernels, uint32_t d, struct random *random) {
  const float *rows[ATTEND_ROWS] = {q[0], q[1], q[2], q[3]};
  float *results[ATTEND_ROWS] = {scores[0], scores[1], scores[2], scores[3]};
  fill(random, q[0], sizeof q / sizeof(float));
  fill(random, tile, sizeof tile / sizeof(float));
  kernels->scores(rows, tile, d, results);
  for (int r = 0; r < ATTEND_ROWS; r++)
    for (int j = 0; j < ATTEND_TILE; j++) {
      double sum = 0;
      for (uint32_t c = 0; c < d; c++)
        sum += (double)q[r][c] * (double)tile[c * ATTEND_TILE + (uint32_t)j];
      assert_float_equal(scores[r][j], sum, 2e-5);
    }
}

static void check_accumulate(const struct attend_kernels *kernels, uint32_t d, uint32_t count, struct random *random) {
  const float *weights[ATTEND_ROWS] = {scores[0], scores[1], scores[2], scores[3]};
  float *outs[ATTEND_ROWS] = {out[0], out[1], out[2], out[3]}, before[ATTEND_ROWS][D_MAX];
  fill(random, scores[0], sizeof scores / sizeof(float));
  fill(random, tile, sizeof tile / sizeof(float));
  fill(random, out[0], sizeof out / sizeof(float));
  memcpy(before, out, sizeof before);
  kernels->accumulate(weights, tile, count, d, outs);
  for (int r = 0; r < ATTEND_ROWS; r++)
    for (uint32_t c = 0; c < D_MAX; c++) {
      double sum = (double)before[r][c];
      for (uint32_t j = 0; j < count && c < d; j++)
        sum += (double)scores[r][j] * (double)tile[j * d + c];
      assert_float_equal(out[r][c], sum, 2e-5);
    }
}

static void check_vectors(const struct attend_kernels *kernels, uint32_t d, struct random *random) {
  float dots[7], added[D_MAX], guard = 42;
  fill(random, q[0], sizeof q / sizeof(float));
  fill(random, tile, sizeof tile / sizeof(float));
  dots[6] = guard;
  kernels->dots(q[0], tile, 6, d, dots);
  for (uint32_t j = 0; j < 6; j++) {
    double sum = 0;
    for (uint32_t c = 0; c < d; c++)
      sum += (double)q[0][c] * (double)tile[j * d + c];
    assert_float_equal(dots[j], sum, 2e-5);
  }
  assert_true(dots[6] == guard);
  memcpy(added, q[1], sizeof added);
  kernels->add(0.75f, tile, d, added);
  for (uint32_t c = 0; c < D_MAX; c++)
    assert_float_equal(added[c], (double)q[1][c] + (c < d ? 0.75 * (double)tile[c] : 0), 1e-6);
}

static void products(void **state) {
  (void)state;
  for (uint32_t i = 0; attend_kernels_each(i); i++) {
    struct random random = {i + 1};
    for (uint32_t d = 64; d <= D_MAX; d += 8) {
      check_scores(attend_kernels_each(i), d, &random);
      check_vectors(attend_kernels_each(i), d, &random);
      for (uint32_t count = 0; count <= ATTEND_TILE; count += 9)
        check_accumulate(attend_kernels_each(i), d, count, &random);
    }
  }
}

static void softmax_parts(void **state) {
  (void)state;
  for (uint32_t i = 0; attend_kernels_each(i); i++) {
    const struct attend_kernels *kernels = attend_kernels_each(i);
    struct random random = {i + 10};
    for (uint32_t count = 0; count < 70; count++) {
      float s[71], e[71];
      double sum = 0, top = -1e30;
      for (uint32_t j = 0; j < 71; j++)
        e[j] = s[j] = (j % 5 ? 20 : 150) * uniform(&random);
      for (uint32_t j = 0; j < count; j++)
        top = fmax(top, (double)s[j]);
      assert_true(kernels->largest(s, count, -1e30f) == (float)top);
      assert_true(kernels->largest(s, count, 1e9f) == 1e9f);
      float total = kernels->exponentials(e, count, (float)top);
      for (uint32_t j = 0; j < count; j++) {
        double right = exp((double)(s[j] - (float)top));
        assert_true(fabs((double)e[j] - right) <= 1e-6 * right + 2e-38);
        sum += right;
      }
      assert_true(fabs((double)total - sum) <= 1e-5 * sum);
      for (uint32_t j = count; j < 71; j++)
        assert_true(e[j] == s[j]);
    }
  }
}

static void the_best_is_one_of_them(void **state) {
  (void)state;
  bool found = false;
  for (uint32_t i = 0; attend_kernels_each(i); i++)
    found = found || attend_kernels_each(i) == attend_kernels();
  assert_true(found);
  assert_string_equal(attend_kernels_each(0)->name, "c");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(products),
      cmocka_unit_test(softmax_parts),
      cmocka_unit_test(the_best_is_one_of_them),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
