// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What comes of a lookup must not depend on what of it a GPU has done; a stand-in for one says what was asked of it.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/retrieval/fake_gpu.h"
#include "tests/retrieval/resident_world.h"

static void test_every_mode_range_and_limit(void **state) {
  (void)state;
  static const uint64_t cuts[][2] = {{0, UINT64_MAX}, {0, 200}, {0, 199}, {4, 4096}, {5000, 8401}, {8192, 8401},
                                     {4095, 12399}, {12300, UINT64_MAX}, {12000, TOKENS}, {300, 100}};
  static const uint32_t limits[] = {1, 64, 1024, 16384};
  restart(&plenty);
  for (size_t c = 0; c < sizeof cuts / sizeof *cuts; c++)
    for (size_t l = 0; l < sizeof limits / sizeof *limits; l++)
      for (uint32_t m = 0; m < 2 * ROWS_MAX; m++) {
        uint64_t end = cuts[c][1] < TOKENS ? cuts[c][1] : TOKENS;
        int64_t done = look_up((struct wanted){.conversation = &world.conversations[0], .rows = 1 + m / 2,
                                               .candidates = limits[l], .from = cuts[c][0], .before = cuts[c][1],
                                               .mode = m % 2 ? LOOKUP_HAMMING : LOOKUP_WEIGHTED});
        bool enough = cuts[c][0] + TOKENS_MIN <= end;
        assert_int_equal(done, enough ? (int64_t)(end - cuts[c][0]) : 0);
      }
  assert_int_equal(fake_gpu_appended, HEADS * TOKENS); /* once */
  assert_int_equal(figures().bytes, LAYER_BYTES);
}

static void test_grows_with_the_conversation(void **state) {
  (void)state;
  restart(&plenty);
  world.conversations[0].count = 1000;
  assert_int_equal(look_up_all(0, 1), 1000);
  world.conversations[0].count += GROW - 1; /* not worth it yet */
  assert_int_equal(look_up_all(0, 1), 1000);
  world.conversations[0].count += 1;
  assert_int_equal(look_up_all(0, 1), 1000 + GROW);
  world.conversations[0].count = 900; /* an older view */
  assert_int_equal(look_up_all(0, 1), 900);
  assert_int_equal(fake_gpu_appended, HEADS * (1000 + GROW));
}

static void test_comes_step_by_step(void **state) {
  (void)state;
  struct resident_options options = plenty;
  options.step_bytes = 18 * HEADS * 4999;
  restart(&options);
  assert_int_equal(look_up_all(0, 0), 5000);
  assert_int_equal(look_up_all(0, 0), 10000);
  assert_int_equal(look_up_all(0, 0), TOKENS);
}

static void test_least_recently_used_goes(void **state) {
  (void)state;
  struct resident_options options = plenty;
  options.limit_bytes = 2 * LAYER_BYTES + CHUNK_BYTES;
  restart(&options);
  assert_int_equal(look_up_all(0, 0), TOKENS);
  world.now_ms += IDLE_MS;
  assert_int_equal(look_up_all(1, 0), TOKENS);
  assert_int_equal(look_up_all(0, 0), TOKENS); /* now 1 is the oldest */
  assert_int_equal(look_up_all(2, 0), 0);      /* which was in use a moment ago */
  assert_int_equal(figures().conversations, 2);
  world.now_ms += IDLE_MS;
  assert_int_equal(look_up_all(0, 0), TOKENS);
  assert_int_equal(look_up_all(2, 0), TOKENS);
  assert_int_equal(figures().dropped, 1);
  uint64_t appended = fake_gpu_appended;
  assert_int_equal(look_up_all(0, 0), TOKENS);
  assert_int_equal(fake_gpu_appended, appended);
  assert_int_equal(look_up_all(0, 1), 0); /* no room for its other layer, which must not cost the first */
  assert_int_equal(look_up_all(0, 0), TOKENS);
  assert_int_equal(figures().bytes, 2 * LAYER_BYTES);
}

static void test_nothing_fits(void **state) {
  (void)state;
  struct resident_options options = plenty;
  options.limit_bytes = LAYER_BYTES - 1;
  options.idle_ms = 0;
  restart(&options);
  assert_int_equal(look_up_all(0, 0), 0);
  assert_int_equal(figures().conversations, 0);
  assert_int_equal(fake_gpu_appended, 0);
}

static void test_damage_drops_what_is_there(void **state) {
  (void)state;
  restart(&plenty);
  assert_int_equal(look_up_all(0, 0), TOKENS);
  world.conversations[0].bad = 1;
  assert_int_equal(look_up_all(0, 0), 4096);
  assert_int_equal(figures().dropped, 1);
  assert_int_equal(look_up_all(0, 0), 4096);
  assert_int_equal(figures().dropped, 1);
  world.conversations[0].bad = 0;
  assert_int_equal(look_up_all(0, 0), 0);
  assert_int_equal(figures().conversations, 0);
  world.conversations[1].turns_bad = true;
  assert_int_equal(look_up_all(1, 0), 0);
  assert_int_equal(figures().conversations, 0);
  world.conversations[1].turns_bad = false;
  assert_int_equal(look_up_all(1, 0), TOKENS);
}

static void test_deleting_drops(void **state) {
  (void)state;
  restart(&plenty);
  look_up_all(0, 0);
  look_up_all(1, 0); /* in the same bucket */
  resident_drop(world.resident, world.conversations[0].id);
  resident_drop(world.resident, world.conversations[2].id); /* is not there */
  assert_int_equal(figures().conversations, 1);
  assert_int_equal(figures().bytes, LAYER_BYTES);
  uint64_t appended = fake_gpu_appended;
  assert_int_equal(look_up_all(1, 0), TOKENS);
  assert_int_equal(fake_gpu_appended, appended);
}

static void test_too_little_memory_becomes_the_limit(void **state) {
  (void)state;
  restart(&plenty);
  fake_gpu_faults.bytes_max = LAYER_BYTES + CHUNK_BYTES;
  assert_int_equal(look_up_all(0, 0), TOKENS);
  assert_int_equal(look_up_all(1, 0), -ERR_MEMORY);
  assert_int_equal(figures().errors, 1);
  assert_int_equal(look_up_all(0, 0), TOKENS);
  world.now_ms += IDLE_MS;
  assert_int_equal(look_up_all(1, 0), TOKENS); /* 0 had to go */
  assert_int_equal(figures().errors, 1);
  assert_false(figures().off);
}

static void test_errors_are_counted_and_then_enough(void **state) {
  (void)state;
  restart(&plenty);
  assert_int_equal(look_up_all(0, 0), TOKENS);
  fake_gpu_faults.fail_scans = 1;
  assert_int_equal(look_up_all(0, 0), -1);
  assert_int_equal(figures().conversations, 0); /* who knows what is left of them */
  fake_gpu_faults.fail_starts = 1;
  assert_int_equal(look_up_all(0, 0), -ERR_IO);
  assert_int_equal(look_up_all(0, 0), TOKENS);
  assert_int_equal(figures().errors, 2);
  fake_gpu_faults.fail_starts = RESIDENT_FAILURES_MAX;
  for (int i = 0; i < RESIDENT_FAILURES_MAX; i++)
    assert_int_equal(look_up_all(0, 0), -ERR_IO);
  assert_true(figures().off);
  assert_int_equal(look_up_all(0, 0), 0);
  assert_int_equal(figures().bytes, 0);
}

static void test_candidates_out_of_range_are_not_used(void **state) {
  (void)state;
  restart(&plenty);
  fake_gpu_faults.lie = 1;
  assert_int_equal(look_up_all(0, 0), TOKENS); /* the comparison is what counts */
  assert_int_equal(fake_gpu_faults.lie, 0);
}

static void test_too_large_is_the_processors(void **state) {
  (void)state;
  restart(&plenty);
  static struct query queries[1];
  struct resident_found found;
  struct error error;
  struct resident_lookup lookup = {.conversation = world.conversations[0].id, .layers = LAYERS, .kv_heads = HEADS,
                                   .rows = RESIDENT_JOBS_MAX / HEADS + 1, .queries = queries, .candidates = 1,
                                   .before = UINT64_MAX, .readable = TOKENS, .now_ms = world.now_ms};
  assert_int_equal(resident_start(world.resident, &lookup, &found, &error), 0);
  lookup.rows = RESIDENT_JOBS_MAX / HEADS;
  lookup.candidates = RESIDENT_KEYS_MAX / RESIDENT_JOBS_MAX + 1;
  assert_int_equal(resident_start(world.resident, &lookup, &found, &error), 0);
}

static void test_soak(void **state) {
  (void)state;
  struct resident_options options = plenty;
  options.limit_bytes = 5 * LAYER_BYTES / 2;
  options.step_bytes = 18 * HEADS * 3000;
  for (int life = 0; life < 6; life++) {
    restart(&options);
    for (int i = 0; i < 80; i++) {
      step_of_life();
      assert_true(figures().bytes <= options.limit_bytes);
    }
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_mode_range_and_limit),
      cmocka_unit_test(test_grows_with_the_conversation),
      cmocka_unit_test(test_comes_step_by_step),
      cmocka_unit_test(test_least_recently_used_goes),
      cmocka_unit_test(test_nothing_fits),
      cmocka_unit_test(test_damage_drops_what_is_there),
      cmocka_unit_test(test_deleting_drops),
      cmocka_unit_test(test_too_little_memory_becomes_the_limit),
      cmocka_unit_test(test_errors_are_counted_and_then_enough),
      cmocka_unit_test(test_candidates_out_of_range_are_not_used),
      cmocka_unit_test(test_too_large_is_the_processors),
      cmocka_unit_test(test_soak),
  };
  return cmocka_run_group_tests(tests, make_world, end_world);
}
