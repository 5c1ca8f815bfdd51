// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "proto/bytes.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static void test_loads_and_stores_at_any_alignment(void **state) {
  (void)state;
  uint8_t bytes[16];
  for (int shift = 0; shift < 8; shift++) {
    memset(bytes, 0xee, sizeof bytes);
    store_u16(bytes + shift, 0x0102);
    assert_int_equal(bytes[shift], 2);
    assert_int_equal(bytes[shift + 1], 1);
    assert_int_equal(bytes[shift + 2], 0xee);
    assert_int_equal(load_u16(bytes + shift), 0x0102);
    store_u32(bytes + shift, 0x01020304u);
    assert_int_equal(bytes[shift], 4);
    assert_int_equal(bytes[shift + 3], 1);
    assert_int_equal(bytes[shift + 4], 0xee);
    assert_int_equal(load_u32(bytes + shift), 0x01020304u);
    store_u64(bytes + shift, UINT64_C(0x0102030405060708));
    assert_int_equal(bytes[shift], 8);
    assert_int_equal(bytes[shift + 7], 1);
    assert_true(load_u64(bytes + shift) == UINT64_C(0x0102030405060708));
    store_u32(bytes + shift, 0xc0490fdbu);
    assert_float_equal(load_f32(bytes + shift), -3.14159274f, 0);
  }
}

/* The value of a fp16 by its definition: sign, 5 bits of exponent, 10 of fraction. */
static double value_of(uint16_t h) {
  int exponent = h >> 10 & 31, fraction = h & 1023;
  double magnitude = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
  return h & 0x8000 ? -magnitude : magnitude;
}

static uint32_t bits_of(float v) {
  uint32_t bits;
  memcpy(&bits, &v, sizeof bits);
  return bits;
}

static void test_every_fp16_becomes_its_f32_and_back(void **state) {
  (void)state;
  for (uint32_t h = 0; h <= 0xffff; h++) {
    float v = f32_from_f16((uint16_t)h);
    if ((h & 0x7fff) > 0x7c00) {
      assert_true(isnan(v));
      assert_true((f16_from_f32(v) & 0x7fff) > 0x7c00);
      continue;
    }
    if ((h & 0x7fff) == 0x7c00)
      assert_true(isinf(v));
    else
      assert_true((double)v == value_of((uint16_t)h));
    assert_int_equal(bits_of(v) >> 31, h >> 15);
    assert_int_equal(f16_from_f32(v), h);
  }
}

static float from_bits(uint32_t bits) {
  float v;
  memcpy(&v, &bits, sizeof v);
  return v;
}

/* Around every border between two neighbours: just below goes down, just above up, the middle to the even one. */
static void test_f32_rounds_to_nearest_even(void **state) {
  (void)state;
  for (uint16_t h = 0; h < 0x7c00; h++) {
    double low = value_of(h), high = h == 0x7bff ? 65536 : value_of(h + 1);
    float middle = (float)((low + high) / 2);
    assert_true((double)middle == (low + high) / 2);
    for (int sign = 0; sign < 2; sign++) {
      uint32_t bit = (uint32_t)sign << 31;
      uint16_t flag = (uint16_t)(sign << 15);
      assert_int_equal(f16_from_f32(from_bits(bits_of(middle) | bit)), flag | (h + (h & 1)));
      assert_int_equal(f16_from_f32(from_bits((bits_of(middle) - 1) | bit)), flag | h);
      assert_int_equal(f16_from_f32(from_bits((bits_of(middle) + 1) | bit)), flag | (h + 1));
    }
  }
}

static void test_f32_outside_the_range_of_fp16(void **state) {
  (void)state;
  assert_int_equal(f16_from_f32(0.0f), 0);
  assert_int_equal(f16_from_f32(-0.0f), 0x8000);
  assert_int_equal(f16_from_f32(0x1p-149f), 0);
  assert_int_equal(f16_from_f32(-0x1p-26f), 0x8000);
  assert_int_equal(f16_from_f32(65519.996f), 0x7bff);
  assert_int_equal(f16_from_f32(65520.0f), 0x7c00);
  assert_int_equal(f16_from_f32(3.4e38f), 0x7c00);
  assert_int_equal(f16_from_f32(-3.4e38f), 0xfc00);
  assert_int_equal(f16_from_f32(INFINITY), 0x7c00);
  assert_int_equal(f16_from_f32(-INFINITY), 0xfc00);
  assert_true((f16_from_f32(NAN) & 0x7fff) > 0x7c00);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_loads_and_stores_at_any_alignment),
      cmocka_unit_test(test_every_fp16_becomes_its_f32_and_back),
      cmocka_unit_test(test_f32_rounds_to_nearest_even),
      cmocka_unit_test(test_f32_outside_the_range_of_fp16),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
