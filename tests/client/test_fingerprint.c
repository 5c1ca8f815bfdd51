// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client/coldkv.h"
#include "tests/proto/random.h"

static void fingerprint(const void *data, size_t size, uint8_t state[32]) {
  memset(state, 0, 32);
  coldkv_fingerprint(state, data, size);
}

static unsigned differing_bits(const uint8_t *a, const uint8_t *b) {
  unsigned bits = 0;
  for (int i = 0; i < 32; i++)
    bits += (unsigned)__builtin_popcount(a[i] ^ b[i]);
  return bits;
}

static void every_bit_matters(void **state) {
  (void)state;
  struct random random = {3};
  uint8_t data[100], right[32], other[32];
  random_fill(&random, data, sizeof data);
  fingerprint(data, sizeof data, right);
  for (size_t bit = 0; bit < 8 * sizeof data; bit++) {
    data[bit / 8] ^= (uint8_t)(1u << bit % 8);
    fingerprint(data, sizeof data, other);
    assert_in_range(differing_bits(right, other), 80, 176); /* 128 of 256 on average */
    data[bit / 8] ^= (uint8_t)(1u << bit % 8);
  }
}

static void length_and_order_matter(void **state) {
  (void)state;
  static const uint8_t zeros[80];
  uint8_t all[81][32], a[32] = {0}, b[32] = {0};
  for (size_t size = 0; size <= 80; size++)
    fingerprint(zeros, size, all[size]);
  for (size_t i = 0; i <= 80; i++)
    for (size_t j = 0; j < i; j++)
      assert_true(differing_bits(all[i], all[j]) > 60);
  coldkv_fingerprint(a, "weights", 7);
  coldkv_fingerprint(a, "settings", 8);
  coldkv_fingerprint(b, "settings", 8);
  coldkv_fingerprint(b, "weights", 7);
  assert_true(differing_bits(a, b) > 60);
}

/* Fixed for ever: conversations on disk are found by it. */
static void known_value(void **state) {
  (void)state;
  static const uint8_t known[32] = {
      0xee, 0x36, 0xf7, 0x5f, 0x18, 0x2b, 0x13, 0x29, 0xb4, 0x67, 0x70, 0x1f, 0xa7, 0x0d, 0x65, 0x2f,
      0xe4, 0xad, 0x06, 0xa9, 0xa7, 0x66, 0x74, 0xa6, 0xa9, 0x93, 0x73, 0x3a, 0x84, 0x44, 0x22, 0xe4};
  uint8_t got[32];
  fingerprint("coldkv", 6, got);
  assert_memory_equal(got, known, 32);
  fingerprint("", 0, got);
  assert_true(differing_bits(got, known) > 60);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_bit_matters),
      cmocka_unit_test(length_and_order_matter),
      cmocka_unit_test(known_value),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
