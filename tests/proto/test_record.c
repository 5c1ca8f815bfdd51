// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "proto/record.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/proto/random.h"

static void test_head_dims(void **state) {
  (void)state;
  for (uint64_t d = 0; d < 1024; d++)
    assert_int_equal(record_head_dim_valid(d), d >= 64 && d <= 128 && d % 8 == 0);
  assert_false(record_head_dim_valid((UINT64_C(1) << 32) + 64));
}

static void test_bits_are_dealt_out_exactly(void **state) {
  (void)state;
  for (unsigned d = 64; d <= 128; d += 8) {
    unsigned key = 0, value = 0;
    for (unsigned i = 0; i < d; i++) {
      key += record_k_bits(d, i);
      value += record_v_bits(d, i);
      if (i) {
        assert_true(record_k_bits(d, i) <= record_k_bits(d, i - 1));
        assert_true(record_v_bits(d, i) <= record_v_bits(d, i - 1));
      }
    }
    assert_int_equal(key, 256);
    assert_int_equal(value, 384);
  }
  assert_int_equal(record_k_bits(128, 0), 2);
  assert_int_equal(record_v_bits(128, 127), 3);
  assert_int_equal(record_k_bits(72, 39), 4);
  assert_int_equal(record_k_bits(72, 40), 3);
}

static void test_valid_scales(void **state) {
  (void)state;
  assert_true(record_scale_valid(0));
  assert_true(record_scale_valid(1));
  assert_true(record_scale_valid(0x7bff));
  assert_false(record_scale_valid(0x7c00)); /* infinity */
  assert_false(record_scale_valid(0x7e00)); /* NaN */
  assert_false(record_scale_valid(0x8000)); /* minus zero */
  assert_false(record_scale_valid(0xbc00)); /* -1 */
  assert_false(record_scale_valid(0xffff));
}

static void make(struct random *random, uint8_t record[RECORD_BYTES]) {
  random_fill(random, record, RECORD_BYTES);
  store_u16(record + RECORD_K_SCALE, 0x3c00);
  store_u16(record + RECORD_V_SCALE, 0x3c00);
}

static void test_a_record_is_bound_to_its_bytes_and_its_place(void **state) {
  (void)state;
  struct random random = {1};
  uint8_t record[RECORD_BYTES];
  make(&random, record);
  uint64_t token = UINT64_C(0x123456789abc);
  record_seal(record, 513, 770, token);
  assert_true(record_check(record, 513, 770, token));
  assert_false(record_check(record, 512, 770, token));
  assert_false(record_check(record, 513, 771, token));
  assert_false(record_check(record, 770, 513, token));
  for (int bit = 0; bit < 64; bit++)
    assert_false(record_check(record, 513, 770, token ^ UINT64_C(1) << bit));
  for (int bit = 0; bit < 8 * RECORD_BYTES; bit++) {
    record[bit / 8] ^= (uint8_t)(1 << bit % 8);
    assert_false(record_check(record, 513, 770, token));
    record[bit / 8] ^= (uint8_t)(1 << bit % 8);
  }
  assert_true(record_check(record, 513, 770, token));
}

/* CRC-32C bit by bit, as RECORD.md states it. */
static void test_crc_is_the_documented_one(void **state) {
  (void)state;
  struct random random = {2};
  uint8_t record[RECORD_BYTES], bytes[112];
  make(&random, record);
  record_seal(record, 0x0102, 0x0304, UINT64_C(0x05060708090a0b0c));
  memcpy(bytes, record, 100);
  static const uint8_t place[12] = {0x02, 0x01, 0x04, 0x03, 0x0c, 0x0b, 0x0a, 0x09, 0x08, 0x07, 0x06, 0x05};
  memcpy(bytes + 100, place, sizeof place);
  uint32_t crc = 0xffffffffu;
  for (size_t i = 0; i < sizeof bytes; i++) {
    crc ^= bytes[i];
    for (int bit = 0; bit < 8; bit++)
      crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
  }
  assert_int_equal(load_u32(record + RECORD_CRC), ~crc);
}

static void test_a_sealed_record_with_a_bad_scale_is_no_good(void **state) {
  (void)state;
  struct random random = {3};
  static const uint16_t scales[] = {0x7c00, 0x7e00, 0x8000, 0xbc00, 0xffff};
  for (int side = 0; side < 2; side++)
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++) {
      uint8_t record[RECORD_BYTES];
      make(&random, record);
      store_u16(record + (side ? RECORD_V_SCALE : RECORD_K_SCALE), scales[i]);
      record_seal(record, 1, 2, 3);
      assert_false(record_check(record, 1, 2, 3));
    }
}

static void test_gather_puts_columns_together(void **state) {
  (void)state;
  enum { COUNT = 5 };
  struct random random = {4};
  uint8_t records[COUNT][RECORD_BYTES];
  uint8_t signature[COUNT][16], k_scale[COUNT][2], k_mag[COUNT][32];
  uint8_t v_code[COUNT][48], v_scale[COUNT][2], crc[COUNT][4];
  random_fill(&random, records, sizeof records);
  for (int i = 0; i < COUNT; i++) {
    memcpy(signature[i], records[i], 16);
    memcpy(k_scale[i], records[i] + 16, 2);
    memcpy(k_mag[i], records[i] + 18, 32);
    memcpy(v_code[i], records[i] + 50, 48);
    memcpy(v_scale[i], records[i] + 98, 2);
    memcpy(crc[i], records[i] + 100, 4);
  }
  struct record_columns columns = {.signature = signature[0], .k_scale = k_scale[0], .k_mag = k_mag[0],
                                   .v_code = v_code[0], .v_scale = v_scale[0], .crc = crc[0], .count = COUNT};
  for (uint32_t i = 0; i < COUNT; i++) {
    uint8_t record[RECORD_BYTES];
    record_gather(&columns, i, record);
    assert_memory_equal(record, records[i], RECORD_BYTES);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_head_dims),
      cmocka_unit_test(test_bits_are_dealt_out_exactly),
      cmocka_unit_test(test_valid_scales),
      cmocka_unit_test(test_a_record_is_bound_to_its_bytes_and_its_place),
      cmocka_unit_test(test_crc_is_the_documented_one),
      cmocka_unit_test(test_a_sealed_record_with_a_bad_scale_is_no_good),
      cmocka_unit_test(test_gather_puts_columns_together),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
