// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The same with key codes in the GPU's memory, so that it rescores.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/retrieval/fake_gpu.h"
#include "tests/retrieval/resident_world.h"

static struct resident_options with_codes(uint64_t code_limit_bytes) {
  struct resident_options options = plenty;
  options.code_limit_bytes = code_limit_bytes;
  return options;
}

/* Whether the GPU rescored that lookup. */
static bool rescores(uint32_t conversation, uint32_t layer) {
  uint64_t before = figures().rescored;
  assert_true(look_up_all(conversation, layer) > 0);
  return figures().rescored > before;
}

static void test_every_mode_range_and_limit(void **state) {
  (void)state;
  static const uint64_t cuts[][2] = {{0, UINT64_MAX}, {0, 200}, {4, 4096}, {5000, 8401}, {4095, 12399},
                                     {12000, TOKENS}, {300, 100}};
  static const uint32_t limits[] = {1, 2, 57, 64, 1024, 16384};
  struct resident_options options = with_codes(plenty.limit_bytes);
  restart(&options);
  look_up_all(0, 0);
  for (size_t c = 0; c < sizeof cuts / sizeof *cuts; c++)
    for (size_t l = 0; l < sizeof limits / sizeof *limits; l++)
      for (uint32_t m = 0; m < 2 * ROWS_MAX; m++) {
        uint64_t before = figures().rescored;
        int64_t done = look_up((struct wanted){.conversation = &world.conversations[0], .rows = 1 + m / 2,
                                               .candidates = limits[l], .from = cuts[c][0], .before = cuts[c][1],
                                               .mode = m % 2 ? LOOKUP_HAMMING : LOOKUP_WEIGHTED});
        assert_int_equal(figures().rescored - before, done > 0);
      }
  assert_int_equal(fake_gpu_codes_appended, HEADS * TOKENS); /* once */
  assert_true(fake_gpu_rescored > 0);
  assert_int_equal(figures().code_bytes, LAYER_CODE_BYTES);
}

static void test_codes_follow_the_signatures(void **state) {
  (void)state;
  struct resident_options options = with_codes(plenty.limit_bytes);
  options.step_bytes = 32 * HEADS * 4999;
  restart(&options);
  assert_false(rescores(0, 0)); /* 8887 signatures, and codes only after them */
  assert_int_equal(fake_gpu_codes_appended, 0);
  assert_false(rescores(0, 0)); /* all signatures */
  assert_int_equal(fake_gpu_codes_appended, HEADS * 5000);
  assert_int_equal(world.conversations[0].expected, 5000);
  assert_false(rescores(0, 0));
  assert_true(rescores(0, 0));
  assert_int_equal(fake_gpu_codes_appended, HEADS * TOKENS);
  assert_int_equal(world.conversations[0].expected, TOKENS); /* each once */
  assert_true(rescores(0, 0));
  assert_int_equal(world.conversations[0].expected, TOKENS);
}

static void test_new_tokens_come_at_once(void **state) {
  (void)state;
  struct resident_options options = with_codes(plenty.limit_bytes);
  restart(&options);
  world.conversations[0].count = 1000;
  assert_false(rescores(0, 1));
  assert_true(rescores(0, 1));
  for (int i = 0; i < 10; i++) {
    world.conversations[0].count += 1;
    assert_true(rescores(0, 1));
  }
  assert_int_equal(fake_gpu_codes_appended, HEADS * 1010);
  world.conversations[0].count = 900; /* an older view */
  assert_true(rescores(0, 1));
  world.conversations[0].count = TOKENS; /* much is missing */
  assert_false(rescores(0, 1));
  assert_true(rescores(0, 1));
}

static void test_codes_have_a_limit_of_their_own(void **state) {
  (void)state;
  struct resident_options options = with_codes(LAYER_CODE_BYTES);
  restart(&options);
  look_up_all(2, 0); /* has none, and is used least */
  look_up_all(0, 0);
  assert_true(rescores(0, 0));
  look_up_all(1, 0);
  assert_false(rescores(1, 0)); /* the other one was in use a moment ago */
  assert_true(rescores(0, 0));
  world.now_ms += IDLE_MS;
  assert_true(rescores(1, 0));
  assert_int_equal(figures().code_bytes, LAYER_CODE_BYTES);
  assert_int_equal(figures().bytes, 3 * LAYER_BYTES); /* signatures stay */
  assert_int_equal(figures().dropped, 0);
  assert_false(rescores(0, 0));
  assert_false(rescores(1, 1)); /* no room for its other layer, which must not cost the first */
  assert_false(rescores(1, 1));
  assert_true(rescores(1, 0));
  resident_drop(world.resident, world.conversations[1].id);
  assert_int_equal(figures().code_bytes, 0);
  options.code_limit_bytes = LAYER_CODE_BYTES - 1;
  restart(&options);
  for (int i = 0; i < 3; i++)
    assert_false(rescores(0, 0));
  assert_int_equal(fake_gpu_codes_appended + world.conversations[0].expected, 0); /* nothing is read in vain */
}

static void test_damage_drops_codes(void **state) {
  (void)state;
  struct resident_options options = with_codes(plenty.limit_bytes);
  restart(&options);
  look_up_all(0, 0);
  world.conversations[0].turns_bad = true;
  assert_int_equal(look_up_all(0, 0), 0);
  assert_int_equal(figures().conversations, 0);
  world.conversations[0].turns_bad = false;
  look_up_all(0, 0);
  assert_true(rescores(0, 0));
  world.conversations[0].bad = PARTS - 1; /* a hole at the end: what is before it is the whole range */
  look_up_all(0, 0);
  assert_true(rescores(0, 0));
  world.conversations[0].bad = 2; /* one in the middle: what is after it is the processor's */
  look_up_all(0, 0);
  assert_false(rescores(0, 0));
}

static void test_too_little_memory_becomes_the_limit(void **state) {
  (void)state;
  struct resident_options options = with_codes(plenty.limit_bytes);
  restart(&options);
  fake_gpu_faults.bytes_max = 2 * LAYER_BYTES + LAYER_CODE_BYTES + CODE_CHUNK_BYTES;
  look_up_all(0, 0);
  assert_true(rescores(0, 0));
  look_up_all(1, 0);
  assert_int_equal(look_up_all(1, 0), -ERR_MEMORY);
  assert_int_equal(figures().errors, 1);
  for (int i = 0; i < 3; i++) {
    assert_false(rescores(1, 0));
    assert_true(rescores(0, 0));
  }
  assert_int_equal(figures().errors, 1);
  assert_int_equal(figures().bytes, 2 * LAYER_BYTES);
  fake_gpu_faults.bytes_max = 0;
  assert_false(rescores(2, 0)); /* signatures have no other limit for that */
  assert_int_equal(figures().bytes, 3 * LAYER_BYTES);
}

/* Spoils so many records of conversation 0, or mends them: flips a bit of the checksum. */
static void spoil(uint32_t first, uint32_t count) {
  for (uint32_t h = 0; h < HEADS; h++)
    for (uint32_t i = first; i < first + count; i++)
      *parts_crc(&world.conversations[0].parts[0][h], 0, i) ^= 1;
}

/* With few records, all of them win sooner or later: 64 candidates of 300, and k of 40. */
static void test_bad_winners(void **state) {
  (void)state;
  static const uint32_t bad[] = {1, 30, 100, 200, 299, 300};
  struct resident_options options = with_codes(plenty.limit_bytes);
  restart(&options);
  world.conversations[0].count = 300;
  look_up_all(0, 0);
  assert_true(rescores(0, 0));
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    spoil(300 - bad[i], bad[i]);
    for (int turn = 0; turn < 5; turn++)
      assert_true(rescores(0, 0)); /* compared with the processor's, bad records counted */
    spoil(300 - bad[i], bad[i]);
  }
}

static void test_keys_out_of_range_are_not_used(void **state) {
  (void)state;
  struct resident_options options = with_codes(plenty.limit_bytes);
  restart(&options);
  look_up_all(0, 0);
  fake_gpu_faults.lie = 1;
  assert_true(rescores(0, 0));
  assert_int_equal(fake_gpu_faults.lie, 0);
}

static void test_soak(void **state) {
  (void)state;
  struct resident_options options = with_codes(3 * LAYER_CODE_BYTES / 2);
  options.limit_bytes = 5 * LAYER_BYTES / 2;
  options.step_bytes = 18 * HEADS * 3000;
  uint64_t rescored = 0;
  for (int life = 0; life < 6; life++) {
    restart(&options);
    for (int i = 0; i < 80; i++) {
      step_of_life();
      assert_true(figures().bytes <= options.limit_bytes && figures().code_bytes <= options.code_limit_bytes);
    }
    rescored += figures().rescored;
  }
  assert_true(rescored > 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_mode_range_and_limit),
      cmocka_unit_test(test_codes_follow_the_signatures),
      cmocka_unit_test(test_new_tokens_come_at_once),
      cmocka_unit_test(test_codes_have_a_limit_of_their_own),
      cmocka_unit_test(test_damage_drops_codes),
      cmocka_unit_test(test_too_little_memory_becomes_the_limit),
      cmocka_unit_test(test_bad_winners),
      cmocka_unit_test(test_keys_out_of_range_are_not_used),
      cmocka_unit_test(test_soak),
  };
  return cmocka_run_group_tests(tests, make_world, end_world);
}
