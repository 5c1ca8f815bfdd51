// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "proto/crc32c.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/proto/random.h"

/* RFC 3720, appendix B.4, and the check value of the CRC catalogue. */
static void test_known_vectors(void **state) {
  (void)state;
  uint8_t data[32];
  assert_int_equal(crc32c(0, "", 0), 0);
  assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283);
  memset(data, 0, sizeof data);
  assert_int_equal(crc32c(0, data, sizeof data), 0x8a9136aa);
  memset(data, 0xff, sizeof data);
  assert_int_equal(crc32c(0, data, sizeof data), 0x62a8ab43);
  for (int i = 0; i < 32; i++)
    data[i] = (uint8_t)i;
  assert_int_equal(crc32c(0, data, sizeof data), 0x46dd794e);
  for (int i = 0; i < 32; i++)
    data[i] = (uint8_t)(31 - i);
  assert_int_equal(crc32c(0, data, sizeof data), 0x113fdb5c);
  static const uint8_t read_command[48] = {
      0x01, 0xc0, 0, 0, 0, 0, 0,    0, 0, 0, 0, 0, 0,    0, 0, 0, 0x14, 0, 0, 0, 0, 0, 4, 0,
      0,    0,    0, 0x14, 0, 0, 0, 0x18, 0x28, 0, 0, 0, 0, 0, 0, 0, 0x02, 0, 0, 0, 0, 0, 0, 0};
  assert_int_equal(crc32c(0, read_command, sizeof read_command), 0xd9963a56);
}

/* Bit by bit from the definition, sharing nothing with the code under test. */
static uint32_t crc_by_definition(uint32_t crc, const uint8_t *p, size_t size) {
  crc = ~crc;
  for (size_t i = 0; i < size; i++) {
    crc ^= p[i];
    for (int bit = 0; bit < 8; bit++)
      crc = (crc >> 1) ^ ((crc & 1) ? 0x82f63b78u : 0);
  }
  return ~crc;
}

static void test_all_alignments_and_lengths(void **state) {
  (void)state;
  struct random random = {1};
  uint8_t data[8 + 160];
  random_fill(&random, data, sizeof data);
  for (size_t shift = 0; shift < 8; shift++)
    for (size_t size = 0; size <= 160; size++) {
      /* an exact copy, so that a sanitizer sees a read past the end */
      uint8_t *copy = malloc(shift + size ? shift + size : 1);
      assert_non_null(copy);
      memcpy(copy, data, shift + size);
      uint32_t seed = (uint32_t)random_u64(&random);
      uint32_t wanted = crc_by_definition(seed, copy + shift, size);
      assert_int_equal(crc32c(seed, copy + shift, size), wanted);
      assert_int_equal(crc32c_portable(seed, copy + shift, size), wanted);
      free(copy);
    }
}

static void test_pieces_make_the_whole(void **state) {
  (void)state;
  struct random random = {2};
  uint8_t data[1000];
  random_fill(&random, data, sizeof data);
  uint32_t whole = crc32c(0, data, sizeof data);
  for (int i = 0; i < 500; i++) {
    size_t a = random_below(&random, sizeof data + 1), b = a + random_below(&random, sizeof data - a + 1);
    uint32_t crc = crc32c(0, data, a);
    crc = crc32c_portable(crc, data + a, b - a);
    assert_int_equal(crc32c(crc, data + b, sizeof data - b), whole);
  }
}

static void test_every_single_bit_counts(void **state) {
  (void)state;
  struct random random = {3};
  uint8_t data[112];
  random_fill(&random, data, sizeof data);
  uint32_t good = crc32c(0, data, sizeof data);
  for (size_t bit = 0; bit < 8 * sizeof data; bit++) {
    data[bit / 8] ^= (uint8_t)(1u << bit % 8);
    assert_int_not_equal(crc32c(0, data, sizeof data), good);
    data[bit / 8] ^= (uint8_t)(1u << bit % 8);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_known_vectors),
      cmocka_unit_test(test_all_alignments_and_lengths),
      cmocka_unit_test(test_pieces_make_the_whole),
      cmocka_unit_test(test_every_single_bit_counts),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
