// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "client/rope.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/proto/random.h"

enum { D = 96 };

static void fill(struct random *random, float *x) {
  for (int i = 0; i < D; i++)
    x[i] = (float)((double)(random_u64(random) >> 11) * 0x1p-52 - 1);
}

static void make(struct rope *rope, enum rope_layout layout, uint32_t dims, uint32_t rows) {
  double freqs[ROPE_PAIRS_MAX];
  for (uint32_t i = 0; i < dims / 2; i++)
    freqs[i] = pow(10000, -2.0 * i / dims);
  assert_int_equal(rope_init(rope, layout, D, dims, freqs, rows, NULL), 0);
}

static void check_rotation(enum rope_layout layout, uint32_t dims, uint64_t position) {
  struct rope rope;
  struct random random = {7};
  float x[D], y[D], back[D], scratch[ROPE_ROW_MAX];
  make(&rope, layout, dims, 1000);
  fill(&random, x);
  const float *row = rope_row(&rope, position, scratch);
  rope_apply(&rope, row, 1, 1, x, y);
  for (uint32_t i = 0; i < dims / 2; i++) {
    uint32_t a = layout == ROPE_HALF ? i : 2 * i, b = layout == ROPE_HALF ? i + dims / 2 : 2 * i + 1;
    double angle = (double)position * rope.freqs[i];
    assert_float_equal(y[a], (double)x[a] * cos(angle) - (double)x[b] * sin(angle), 1e-6);
    assert_float_equal(y[b], (double)x[a] * sin(angle) + (double)x[b] * cos(angle), 1e-6);
  }
  for (uint32_t i = dims; i < D; i++)
    assert_true(y[i] == x[i]);
  rope_apply(&rope, row, -1, 2, y, back);
  for (uint32_t i = 0; i < D; i++)
    assert_float_equal(back[i], 2 * x[i], 2e-6);
  rope_finish(&rope);
}

static void rotates_every_layout(void **state) {
  (void)state;
  static const uint64_t positions[] = {0, 1, 63, 999, 1000, 100000, UINT64_C(1) << 40};
  for (size_t i = 0; i < sizeof positions / sizeof positions[0]; i++) {
    check_rotation(ROPE_HALF, D, positions[i]);
    check_rotation(ROPE_HALF, 32, positions[i]);
    check_rotation(ROPE_INTERLEAVED, D, positions[i]);
    check_rotation(ROPE_INTERLEAVED, 50, positions[i]);
  }
}

static void no_rope_copies(void **state) {
  (void)state;
  struct rope rope;
  struct random random = {8};
  float x[D], y[D], scratch[ROPE_ROW_MAX];
  assert_int_equal(rope_init(&rope, ROPE_NONE, D, 0, NULL, 1000, NULL), 0);
  fill(&random, x);
  rope_apply(&rope, rope_row(&rope, 12345, scratch), 1, 1, x, y);
  assert_memory_equal(x, y, sizeof x);
  rope_finish(&rope);
}

static void kept_rows_equal_fresh_ones(void **state) {
  (void)state;
  struct rope rope;
  float scratch[ROPE_ROW_MAX], fresh[ROPE_ROW_MAX];
  make(&rope, ROPE_HALF, D, 10);
  for (uint64_t position = 0; position < 12; position++)
    for (int again = 0; again < 2; again++) {
      const float *row = rope_row(&rope, position, scratch);
      assert_true((row == scratch) == (position >= 10));
      rope_angles(&rope, (int64_t)position, fresh);
      assert_memory_equal(row, fresh, D * sizeof(float));
    }
  rope_finish(&rope);
}

static void negative_positions_turn_back(void **state) {
  (void)state;
  struct rope rope;
  float there[ROPE_ROW_MAX], back[ROPE_ROW_MAX];
  make(&rope, ROPE_HALF, D, 10);
  rope_angles(&rope, 77, there);
  rope_angles(&rope, -77, back);
  for (uint32_t i = 0; i < D / 2; i++) {
    assert_true(there[i] == back[i]);
    assert_true(there[D / 2 + i] == -back[D / 2 + i]);
  }
  rope_finish(&rope);
}

/* The mean of exp(j f D), term by term, also where a frequency makes the closed form 0 / 0. */
static void mean_is_the_mean(void **state) {
  (void)state;
  static const double freqs[] = {1, 0.3, 0.01, 1e-5, 0, 6.283185307179586476925, 3.141592653589793, 1e-14, 12.5};
  static const uint64_t ends[] = {257, 512, 2048, 3000};
  struct rope rope;
  float row[ROPE_ROW_MAX];
  assert_int_equal(rope_init(&rope, ROPE_HALF, D, 18, freqs, 4, NULL), 0);
  for (size_t e = 0; e < sizeof ends / sizeof ends[0]; e++) {
    rope_mean(&rope, 256, ends[e], row);
    for (uint32_t i = 0; i < 9; i++) {
      double real = 0, imaginary = 0, n = (double)(ends[e] - 256);
      for (uint64_t d = 256; d < ends[e]; d++) {
        real += cos(freqs[i] * (double)d) / n;
        imaginary += sin(freqs[i] * (double)d) / n;
      }
      assert_float_equal(row[i], real, 1e-6);
      assert_float_equal(row[9 + i], imaginary, 1e-6);
    }
  }
  rope_finish(&rope);
}

/* The sign convention: a query times the mean rotation scores a key like the mean over all distances. */
static void mean_query_scores_the_mean(void **state) {
  (void)state;
  static const enum rope_layout layouts[] = {ROPE_HALF, ROPE_INTERLEAVED};
  for (int l = 0; l < 2; l++) {
    struct rope rope;
    struct random random = {9};
    float q[D], k[D], moved[D], turned[D], row[ROPE_ROW_MAX], scratch[ROPE_ROW_MAX];
    make(&rope, layouts[l], 64, 3000);
    fill(&random, q);
    fill(&random, k);
    rope_mean(&rope, 256, 2048, row);
    rope_apply(&rope, row, 1, 1, q, moved);
    double expected = 0, score = 0, wrong = 0;
    for (int i = 0; i < D; i++)
      score += (double)moved[i] * (double)k[i];
    for (uint64_t distance = 256; distance < 2048; distance++) {
      rope_apply(&rope, rope_row(&rope, distance, scratch), 1, 1, q, turned); /* q at `distance`, k at 0 */
      for (int i = 0; i < D; i++)
        expected += (double)turned[i] * (double)k[i] / (2048 - 256);
    }
    rope_apply(&rope, row, -1, 1, q, moved);
    for (int i = 0; i < D; i++)
      wrong += (double)moved[i] * (double)k[i];
    assert_float_equal(score, expected, 1e-5);
    assert_true(fabs(wrong - expected) > 1e-3);
    rope_finish(&rope);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(rotates_every_layout),       cmocka_unit_test(no_rope_copies),
      cmocka_unit_test(kept_rows_equal_fresh_ones), cmocka_unit_test(negative_positions_turn_back),
      cmocka_unit_test(mean_is_the_mean),           cmocka_unit_test(mean_query_scores_the_mean),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
