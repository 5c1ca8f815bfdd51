// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "proto/codebook.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

static double density(double x) { return exp(-x * x / 2) / sqrt(2 * acos(-1)); }

/* Mean of the unit Gaussian between two magnitudes; above < 0 stands for infinity. */
static double centroid(double below, double above) {
  double mass = (above < 0 ? 0 : -erfc(above / sqrt(2)) / 2) + erfc(below / sqrt(2)) / 2;
  return (density(below) - (above < 0 ? 0 : density(above))) / mass;
}

static void test_levels_and_thresholds_ascend(void **state) {
  (void)state;
  for (int bits = CODEBOOK_BITS_MIN; bits <= CODEBOOK_BITS_MAX; bits++) {
    const struct codebook *book = &codebooks[bits];
    assert_true(book->levels[0] > 0);
    for (int i = 0; i + 1 < 1 << bits; i++)
      assert_true(book->levels[i] < book->thresholds[i] && book->thresholds[i] < book->levels[i + 1]);
  }
}

/* Lloyd's two conditions: a threshold is midway between its levels, a level the centroid of its interval. */
static void test_they_are_optimal(void **state) {
  (void)state;
  for (int bits = CODEBOOK_BITS_MIN; bits <= CODEBOOK_BITS_MAX; bits++) {
    const struct codebook *book = &codebooks[bits];
    int last = (1 << bits) - 1;
    for (int i = 0; i < last; i++)
      assert_true(fabs(book->thresholds[i] - ((double)book->levels[i] + book->levels[i + 1]) / 2) < 3e-7);
    for (int i = 0; i <= last; i++) {
      double wanted = centroid(i ? book->thresholds[i - 1] : 0, i < last ? book->thresholds[i] : -1);
      assert_true(fabs(book->levels[i] - wanted) < 2e-6);
    }
  }
}

/* Published distortion of the optimal quantizers of 8 to 64 levels. Source: J. Max, "Quantizing for minimum
 * distortion", IRE Trans. Inf. Theory 6 (1960), table I, and its continuation to 64. */
static void test_distortion_is_the_published_one(void **state) {
  (void)state;
  static const double published[] = {[2] = 0.03454, [3] = 0.009497, [4] = 0.002499, [5] = 0.000643};
  for (int bits = CODEBOOK_BITS_MIN; bits <= CODEBOOK_BITS_MAX; bits++) {
    const struct codebook *book = &codebooks[bits];
    double distortion = 0, step = 1e-4;
    int index = 0;
    for (int n = 0; n < 90000; n++) {
      double x = (n + 0.5) * step;
      while (index < (1 << bits) - 1 && x > book->thresholds[index])
        index++;
      double error = x - book->levels[index];
      distortion += 2 * error * error * density(x) * step;
    }
    assert_true(fabs(distortion / published[bits] - 1) < 0.003);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_levels_and_thresholds_ascend),
      cmocka_unit_test(test_they_are_optimal),
      cmocka_unit_test(test_distortion_is_the_published_one),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
