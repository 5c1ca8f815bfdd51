// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What kernels are given, as far as it needs no GPU: the table of CRCs, and how keys are shared out.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "client/cuda/plan.h"
#include "proto/record.h"
#include "tests/proto/random.h"

static void test_crc(void **state) {
  (void)state;
  static uint32_t table[PLAN_CRC_TABLE];
  struct random randomness = {.state = 7};
  plan_crc_table(table);
  for (int round = 0; round < 1000; round++) {
    uint8_t message[RECORD_BYTES - 4 + 12], record[RECORD_BYTES]; /* 12: of its place */
    random_fill(&randomness, message, sizeof message);
    memcpy(record, message, sizeof record);
    uint32_t crc = ~0u;
    for (size_t i = 0; i < sizeof message; i += 4) {
      uint32_t bytes = crc ^ load_u32(message + i);
      crc = 0;
      for (int j = 0; j < 4; j++)
        crc ^= table[256 * (3 - j) + (bytes >> 8 * j & 255)];
    }
    assert_int_equal(~crc, record_crc(record, load_u16(message + 100), load_u16(message + 102),
                                      load_u64(message + 104)));
  }
}

/* The product that encode128.cuh has the tensor cores make. */
static void test_seal(void **state) {
  (void)state;
  static uint32_t table[PLAN_SEAL_TABLE];
  struct random randomness = {.state = 8};
  plan_seal_table(table);
  for (int round = 0; round < 1000; round++) {
    uint8_t message[PLAN_SEAL_TABLE / 8] = {0}, record[RECORD_BYTES];
    random_fill(&randomness, message, RECORD_BYTES - 4 + 12);
    message[RECORD_BYTES - 4 + 12] = 1;
    memcpy(record, message, sizeof record);
    uint32_t crc = 0;
    for (uint32_t i = 0; i < PLAN_SEAL_TABLE; i++) {
      uint32_t lane = i / 4 % 32, word = i / 256 * 8 + i % 2 * 4 + lane % 4;
      uint32_t bit = 8 * (lane / 8) + 2 * (i / 128 % 2 * 2 + i / 2 % 2) + lane / 4 % 2;
      crc ^= (uint32_t)(__builtin_popcount(table[i] & load_u32(message + 4 * word)) & 1) << bit;
    }
    assert_int_equal(crc, record_crc(record, load_u16(message + 100), load_u16(message + 102),
                                     load_u64(message + 104)));
  }
}

static void test_shares(void **state) {
  (void)state;
  static const uint32_t groups[] = {1, 2, 4, 5, 8, 71}, all[] = {0, 1, 4, 31, 32, 33, 68, 319, 383, 1028};
  for (uint32_t rows = 1; rows <= 64; rows++)
    for (uint32_t heads = 1; heads <= 32; heads *= 2)
      for (size_t i = 0; i < sizeof groups / sizeof *groups * 100; i++) {
        uint32_t group = groups[i / 100], far = all[i / 10 % 10], hot = all[i % 10];
        struct plan_attend plan = plan_attend(rows, heads, group, far, hot, 132);
        assert_true(plan.keys && plan.keys % PLAN_KEYS == 0);
        assert_true(plan.far_splits * plan.keys >= far && plan.hot_splits * plan.keys >= hot);
        assert_true(!plan.far_splits || (plan.far_splits - 1) * plan.keys < far);
        assert_true(!plan.hot_splits || (plan.hot_splits - 1) * plan.keys < hot);
        assert_true(plan.tile * plan.tiles >= group && plan.tile * (plan.tiles - 1) < group);
        /* no more blocks than keep the processors busy, but for a rest in each range */
        uint64_t blocks = (uint64_t)rows * heads * plan.tiles * (plan.far_splits + plan.hot_splits);
        assert_true(blocks <= 264 + (uint64_t)rows * heads * plan.tiles * 2);
      }
}

static void test_room(void **state) {
  (void)state;
  size_t most = plan_partial_max(64, 8, 4, 68, 383, 128, 132);
  for (uint32_t rows = 1; rows <= 64; rows++) {
    struct plan_attend plan = plan_attend(rows, 8, 4, 68, 383, 132);
    assert_true(plan_partial(&plan, rows, 8, 128) <= most);
    assert_int_equal(plan_partial(&plan, rows, 8, 128),
                     (size_t)rows * 8 * (plan.far_splits + plan.hot_splits) * 4 * (128 + 2));
  }
  assert_true(most * sizeof(float) < 16u << 20);
}

int main(void) {
  static const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_crc),
      cmocka_unit_test(test_seal),
      cmocka_unit_test(test_shares),
      cmocka_unit_test(test_room),
  };
  return cmocka_run_group_tests_name("plan", tests, NULL, NULL);
}
