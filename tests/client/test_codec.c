// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "client/codec.h"

#include <fenv.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <cmocka.h>

#include "proto/codebook.h"
#include "tests/proto/random.h"

enum { D_MAX = LIMIT_HEAD_DIM_MAX };

/* One token's input for one head. */
struct sample {
  float k[D_MAX], v[D_MAX], mean_k[D_MAX], mean_v[D_MAX];
};

/* Close to a unit Gaussian: twelve uniform numbers added up. */
static float gaussian(struct random *random) {
  double sum = -6;
  for (int i = 0; i < 12; i++)
    sum += (double)(random_u64(random) >> 11) * 0x1p-53;
  return (float)sum;
}

/* Deviations of length ~ spread around means of length ~ mean. */
static void fill(struct random *random, float mean, float spread, struct sample *s) {
  for (int i = 0; i < D_MAX; i++) {
    s->mean_k[i] = mean * gaussian(random);
    s->mean_v[i] = mean * gaussian(random);
    s->k[i] = s->mean_k[i] + spread * gaussian(random);
    s->v[i] = s->mean_v[i] + spread * gaussian(random);
  }
}

static int encode(const struct codec *codec, const struct sample *s, uint8_t record[RECORD_BYTES]) {
  return codec_encode(codec, s->k, s->v, s->mean_k, s->mean_v, 3, 1, 77, record);
}

static double cosine(const float *a, const float *b, uint32_t n) {
  double ab = 0, aa = 0, bb = 0;
  for (uint32_t i = 0; i < n; i++) {
    ab += (double)a[i] * b[i];
    aa += (double)a[i] * a[i];
    bb += (double)b[i] * b[i];
  }
  return ab / sqrt(aa * bb);
}

static void test_init_takes_only_valid_head_dims(void **state) {
  (void)state;
  struct codec codec;
  for (uint32_t d = 0; d <= 512; d++) {
    struct error error = {0};
    bool valid = d >= 64 && d <= 128 && d % 8 == 0;
    assert_int_equal(codec_init(&codec, d, 1, &error), valid ? 0 : -ERR_BAD_PARAMS);
    assert_int_equal(error.code, valid ? 0 : ERR_BAD_PARAMS);
  }
}

/* d = 128: R[i][j] = (-1)^popcount(i & j) sign[j] / sqrt(128). */
static void test_rotation_is_signed_walsh_hadamard(void **state) {
  (void)state;
  struct codec codec;
  assert_int_equal(codec_init(&codec, 128, 42, NULL), 0);
  struct random words = {42};
  uint64_t word[2] = {random_u64(&words), random_u64(&words)};
  for (uint32_t j = 0; j < 128; j++) {
    float unit[128] = {0}, y[128];
    unit[j] = 1;
    codec_rotate(&codec, unit, y);
    bool flipped = word[j / 64] >> j % 64 & 1;
    for (uint32_t i = 0; i < 128; i++) {
      bool negative = (__builtin_popcount(i & j) & 1) != flipped;
      assert_float_equal(y[i], (negative ? -1 : 1) / sqrtf(128), 1e-8);
    }
  }
}

static void test_rotation_is_orthogonal(void **state) {
  (void)state;
  struct random random = {5};
  for (uint32_t d = 64; d <= 128; d += 8) {
    struct codec codec;
    assert_int_equal(codec_init(&codec, d, random_u64(&random), NULL), 0);
    float a[D_MAX], b[D_MAX], ra[D_MAX], rb[D_MAX], back[D_MAX];
    double ab = 0, rab = 0;
    for (uint32_t i = 0; i < d; i++) {
      a[i] = gaussian(&random);
      b[i] = gaussian(&random);
      ab += (double)a[i] * b[i];
    }
    codec_rotate(&codec, a, ra);
    memcpy(rb, b, sizeof rb);
    codec_rotate(&codec, rb, rb); /* in place */
    for (uint32_t i = 0; i < d; i++)
      rab += (double)ra[i] * rb[i];
    assert_float_equal(rab, ab, 1e-4);
    codec_rotate_back(&codec, ra, back);
    codec_rotate_back(&codec, rb, rb);
    for (uint32_t i = 0; i < d; i++) {
      assert_float_equal(back[i], a[i], 1e-5);
      assert_float_equal(rb[i], b[i], 1e-5);
    }
    assert_true(fabs(cosine(a, ra, d)) < 0.5); /* and it does move things */
  }
}

static void test_signature_holds_signs_of_what_a_query_is(void **state) {
  (void)state;
  struct random random = {6};
  for (uint32_t d = 64; d <= 128; d += 8) {
    struct codec codec;
    struct sample s;
    uint8_t record[RECORD_BYTES];
    assert_int_equal(codec_init(&codec, d, random_u64(&random), NULL), 0);
    fill(&random, 0, 1, &s);
    assert_int_equal(encode(&codec, &s, record), 0);
    float y[RECORD_SIGNATURE_BITS];
    codec_query(&codec, s.k, y);
    double extra = 0;
    for (uint32_t i = 0; i < RECORD_SIGNATURE_BITS; i++) {
      assert_int_equal(record[i / 8] >> i % 8 & 1, y[i] < 0);
      extra += i < d ? 0 : (double)y[i] * y[i];
    }
    if (d < 128) /* the extra projections are as long as their share of a Gaussian */
      assert_in_range((int)(100 * extra / (128 - d)), 30, 250);
  }
}

static void test_decode_is_level_times_scale_rotated_back(void **state) {
  (void)state;
  struct random random = {7};
  for (uint32_t d = 64; d <= 128; d += 8) {
    struct codec codec;
    struct sample s;
    uint8_t record[RECORD_BYTES];
    assert_int_equal(codec_init(&codec, d, random_u64(&random), NULL), 0);
    fill(&random, 2, 1, &s);
    random_fill(&random, record, sizeof record); /* any bits are a code */
    store_u16(record + RECORD_K_SCALE, 0x3801);  /* 0.50048828125 */
    store_u16(record + RECORD_V_SCALE, 0x0003);  /* subnormal: 3 * 2^-24 */
    float y[D_MAX], k[D_MAX], v[D_MAX], again[D_MAX];
    uint32_t at = 0; /* first bit of the plane */
    uint32_t index[D_MAX] = {0};
    for (uint32_t b = 0; b < 5; b++) {
      uint32_t n = 0;
      for (uint32_t i = 0; i < d; i++)
        if (record_k_bits(d, i) > b)
          index[i] |= (uint32_t)(record[RECORD_K_MAG + (at + i) / 8] >> (at + i) % 8 & 1) << b, n++;
      at += n;
    }
    assert_int_equal(at, 256);
    for (uint32_t i = 0; i < d; i++) {
      y[i] = codebooks[record_k_bits(d, i)].levels[index[i]] * 0.50048828125f;
      if (record[i / 8] >> i % 8 & 1)
        y[i] = -y[i];
    }
    codec_rotate_back(&codec, y, y);
    codec_decode(&codec, record, s.mean_k, s.mean_v, k, v);
    for (uint32_t i = 0; i < d; i++)
      assert_float_equal(k[i], y[i] + s.mean_k[i], 0);
    codec_decode(&codec, record, s.mean_k, NULL, again, NULL);
    assert_memory_equal(again, k, d * sizeof *k);
    codec_decode(&codec, record, NULL, s.mean_v, NULL, again);
    assert_memory_equal(again, v, d * sizeof *v);
  }
}

/* What three bits a coordinate are good for on Gaussian deviations: the mean comes back for nothing. */
static void test_round_trip_cosine(void **state) {
  (void)state;
  struct random random = {8};
  for (uint32_t d = 64; d <= 128; d += 8) {
    struct codec codec;
    assert_int_equal(codec_init(&codec, d, random_u64(&random), NULL), 0);
    double worst_k = 1, worst_v = 1, sum_k = 0, sum_v = 0, sum_bare = 0;
    enum { SAMPLES = 200 };
    float zero[D_MAX] = {0};
    for (int n = 0; n < SAMPLES; n++) {
      struct sample s;
      uint8_t record[RECORD_BYTES];
      float k[D_MAX], v[D_MAX], bare[D_MAX], deviation[D_MAX];
      fill(&random, 1.5f, 1, &s); /* a mean of 80 % of the key's length */
      memset(s.mean_v, 0, sizeof s.mean_v);
      assert_int_equal(encode(&codec, &s, record), 0);
      assert_true(record_check(record, 3, 1, 77));
      codec_decode(&codec, record, s.mean_k, s.mean_v, k, v);
      codec_decode(&codec, record, zero, NULL, bare, NULL);
      for (uint32_t i = 0; i < d; i++)
        deviation[i] = s.k[i] - s.mean_k[i];
      worst_k = fmin(worst_k, cosine(k, s.k, d));
      worst_v = fmin(worst_v, cosine(v, s.v, d));
      sum_k += cosine(k, s.k, d);
      sum_v += cosine(v, s.v, d);
      sum_bare += cosine(bare, deviation, d);
    }
    assert_true(worst_k >= 0.98 && sum_k / SAMPLES >= 0.99);
    assert_true(worst_v >= 0.96 && sum_v / SAMPLES >= 0.98);
    assert_true(sum_bare / SAMPLES >= 0.98);
  }
}

static void test_zero_vectors(void **state) {
  (void)state;
  struct random random = {9};
  for (uint32_t d = 64; d <= 128; d += 8) {
    struct codec codec;
    struct sample s;
    uint8_t record[RECORD_BYTES];
    static const uint8_t zero[RECORD_CRC];
    assert_int_equal(codec_init(&codec, d, random_u64(&random), NULL), 0);
    fill(&random, 1, 0, &s);
    assert_int_equal(encode(&codec, &s, record), 0);
    assert_memory_equal(record, zero, RECORD_CRC);
    for (uint32_t i = 0; i < d; i++) { /* minus zero is no negative number */
      s.k[i] = s.v[i] = -0.0f;
      s.mean_k[i] = s.mean_v[i] = 0;
    }
    assert_int_equal(encode(&codec, &s, record), 0);
    assert_memory_equal(record, zero, RECORD_CRC);
    float k[D_MAX], v[D_MAX];
    codec_decode(&codec, record, s.mean_k, s.mean_v, k, v);
    for (uint32_t i = 0; i < d; i++)
      assert_true(k[i] == 0 && v[i] == 0);
  }
}

static void test_what_is_not_finite_is_refused(void **state) {
  (void)state;
  struct random random = {10};
  static const float bad[] = {NAN, INFINITY, -INFINITY, 3e38f, -1e20f, 1e7f};
  for (uint32_t d = 64; d <= 128; d += 8) {
    struct codec codec;
    assert_int_equal(codec_init(&codec, d, random_u64(&random), NULL), 0);
    for (uint32_t i = 0; i < d; i++)
      for (size_t b = 0; b < sizeof bad / sizeof *bad; b++)
        for (int where = 0; where < 4; where++) {
          struct sample s;
          uint8_t record[RECORD_BYTES];
          fill(&random, 1, 1, &s);
          float *array[] = {s.k, s.v, s.mean_k, s.mean_v};
          array[where][i] = bad[b];
          assert_int_equal(encode(&codec, &s, record), -ERR_NOT_FINITE);
        }
  }
}

static void test_scales_reach_to_the_largest_fp16(void **state) {
  (void)state;
  struct codec codec;
  struct sample s = {.mean_k = {0}};
  uint8_t record[RECORD_BYTES];
  assert_int_equal(codec_init(&codec, 128, 3, NULL), 0);
  float y[D_MAX], zero[D_MAX] = {0}, k[D_MAX];
  for (int step = 0; step < 2; step++) {
    /* all magnitudes equal: every a is 1, stands for level 0.756, and the scale is magnitude / 0.756 */
    for (int i = 0; i < D_MAX; i++)
      y[i] = (i % 3 ? 1.0f : -1.0f) * 0.756005287f * (step ? 65530.0f : 65500.0f);
    codec_rotate_back(&codec, y, s.k);
    assert_int_equal(encode(&codec, &s, record), step ? -ERR_NOT_FINITE : 0);
    if (!step) {
      assert_int_equal(load_u16(record + RECORD_K_SCALE), 0x7bff);
      codec_decode(&codec, record, zero, NULL, k, NULL);
      assert_true(cosine(k, s.k, 128) > 0.99999);
    }
  }
}

static void test_bytes_do_not_depend_on_the_environment(void **state) {
  (void)state;
  struct random random = {11};
  static const float spreads[] = {1, 1e-8f, 1e-18f, 1e-20f, 1e-30f, 1e-40f};
  static const int modes[] = {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO, FE_TONEAREST};
  for (uint32_t d = 64; d <= 128; d += 8)
    for (size_t n = 0; n < sizeof spreads / sizeof *spreads; n++) {
      struct codec codec;
      struct sample s;
      uint8_t wanted[RECORD_BYTES], got[RECORD_BYTES];
      float decoded[2][D_MAX] = {{0}};
      assert_int_equal(codec_init(&codec, d, random_u64(&random), NULL), 0);
      fill(&random, 0, spreads[n], &s);
      assert_int_equal(encode(&codec, &s, wanted), 0);
      codec_decode(&codec, wanted, s.mean_k, NULL, decoded[0], NULL);
      for (size_t m = 0; m < sizeof modes / sizeof *modes; m++) {
        fesetround(modes[m]);
#if defined(__SSE2__)
        _mm_setcsr(_mm_getcsr() | 0x8040); /* flush to zero, subnormals are zero */
        unsigned before = _mm_getcsr();
#endif
        int result = encode(&codec, &s, got);
        codec_decode(&codec, wanted, s.mean_k, NULL, decoded[1], NULL);
        int mode_after = fegetround();
#if defined(__SSE2__)
        unsigned after = _mm_getcsr();
        _mm_setcsr(0x1f80);
        assert_int_equal(before, after);
#endif
        fesetround(FE_TONEAREST);
        assert_int_equal(mode_after, modes[m]);
        assert_int_equal(result, 0);
        assert_memory_equal(got, wanted, RECORD_BYTES);
        assert_memory_equal(decoded[0], decoded[1], sizeof decoded[0]);
      }
    }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_init_takes_only_valid_head_dims),
      cmocka_unit_test(test_rotation_is_signed_walsh_hadamard),
      cmocka_unit_test(test_rotation_is_orthogonal),
      cmocka_unit_test(test_signature_holds_signs_of_what_a_query_is),
      cmocka_unit_test(test_decode_is_level_times_scale_rotated_back),
      cmocka_unit_test(test_round_trip_cosine),
      cmocka_unit_test(test_zero_vectors),
      cmocka_unit_test(test_what_is_not_finite_is_refused),
      cmocka_unit_test(test_scales_reach_to_the_largest_fp16),
      cmocka_unit_test(test_bytes_do_not_depend_on_the_environment),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
