// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Blocks, aborting them, and going back. States are compared by what attention gives next, bit for bit.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/client/engine.h"

enum { OUT_FLOATS = 2 * 64 * 4 * 64 };

static void begin(struct engine *engine) {
  engine_describe(engine);
  engine_start(engine, NULL);
  assert_int_equal(engine_open(engine, NULL), 0);
  assert_int_equal(coldkv_set_slots(engine->conv, 0), 0); /* filler needs none, and the fake's lookups take long */
}

/* Feeds n tokens with retrieval; what attention gives. */
static float *forward(struct engine *engine, uint32_t n) {
  uint32_t ids[COLDKV_BLOCK_MAX];
  float *out = calloc(OUT_FLOATS, sizeof *out);
  assert_non_null(out);
  for (uint32_t i = 0; i < n; i++)
    ids[i] = engine_id(engine, engine->position + i);
  assert_int_equal(coldkv_set_slots(engine->conv, 12), 0);
  assert_int_equal(engine_forward(engine, ids, n, out), 0);
  assert_int_equal(coldkv_set_slots(engine->conv, 0), 0);
  return out;
}

static void go_back(struct engine *engine, uint64_t end) {
  assert_int_equal(coldkv_rewind(engine->conv, end), 0);
  assert_int_equal(engine_status(engine).tokens, end);
  engine->position = end;
}

/* What a conversation gives that was fed straight on to `end` and then by n. */
static float *straight(const struct engine *like, uint64_t end, uint32_t block, uint32_t n) {
  struct engine engine;
  begin(&engine);
  engine.salt = like->salt;
  engine.salt_from = like->salt_from;
  assert_int_equal(engine_feed_to(&engine, end, block), 0);
  float *out = forward(&engine, n);
  engine_finish(&engine);
  return out;
}

static void assert_same(float *a, float *b) {
  assert_memory_equal(a, b, OUT_FLOATS * sizeof(float));
  free(a);
  free(b);
}

static void calls_out_of_order(void **state) {
  (void)state;
  struct engine engine;
  uint32_t ids[65] = {0}, out_ids[64];
  float q[2 * 2 * 64] = {1}, out[2 * 2 * 64];
  struct coldkv_slots slots;
  begin(&engine);
  assert_int_equal(coldkv_attend(engine.conv, 0, q, q, q, out), COLDKV_ESTATE);
  assert_int_equal(coldkv_push(engine.conv, 0, q, q), COLDKV_ESTATE);
  assert_int_equal(coldkv_retrieve(engine.conv, 0, q, &slots), COLDKV_ESTATE);
  assert_int_equal(coldkv_end(engine.conv), COLDKV_ESTATE);
  assert_int_equal(coldkv_abort(engine.conv), COLDKV_ESTATE);
  assert_int_equal(coldkv_begin(engine.conv, ids, 0), COLDKV_EARGUMENT);
  assert_int_equal(coldkv_begin(engine.conv, ids, 65), COLDKV_EARGUMENT);
  assert_int_equal(coldkv_begin(engine.conv, NULL, 1), COLDKV_EARGUMENT);
  assert_int_equal(coldkv_begin_rotated(engine.conv, ids, 1, NULL), COLDKV_EARGUMENT);
  assert_int_equal(coldkv_begin(engine.conv, ids, 1), 0);
  assert_int_equal(coldkv_begin(engine.conv, ids, 1), COLDKV_ESTATE);
  assert_int_equal(coldkv_sync(engine.conv), COLDKV_ESTATE);
  assert_int_equal(coldkv_rewind(engine.conv, 0), COLDKV_ESTATE);
  assert_int_equal(coldkv_resume(engine.conv, out_ids), COLDKV_ESTATE);
  assert_int_equal(coldkv_end(engine.conv), COLDKV_ESTATE);
  assert_int_equal(coldkv_abort(engine.conv), 0);
  assert_int_equal(engine_status(&engine).tokens, 0);
  assert_int_equal(coldkv_resume(engine.conv, out_ids), 0);
  assert_int_equal(coldkv_rewind(engine.conv, 1), COLDKV_ERANGE);
  assert_int_equal(coldkv_rewind(engine.conv, 0), 0);
  assert_true(strlen(coldkv_error()) > 10);
  engine_finish(&engine);
}

static void aborted_blocks_leave_nothing(void **state) {
  (void)state;
  struct engine engine;
  begin(&engine);
  for (uint64_t t = 0; t < 700; t += 50) {
    uint32_t wrong[64];
    for (uint32_t i = 0; i < 64; i++)
      wrong[i] = 60000 + i;
    assert_int_equal(coldkv_begin(engine.conv, wrong, 64), 0);
    float *k = engine_block(&engine, ENGINE_V, 0, t, wrong, 64);
    assert_int_equal(coldkv_push(engine.conv, 0, k, k), 0);
    assert_int_equal(coldkv_push(engine.conv, 1, k, k), 0);
    free(k);
    assert_int_equal(coldkv_abort(engine.conv), 0);
    assert_int_equal(engine_feed_to(&engine, t + 50, 50), 0);
  }
  float *out = forward(&engine, 64);
  assert_same(out, straight(&engine, 700, 50, 64));
  assert_int_equal(coldkv_sync(engine.conv), 0);
  engine_check_stored(&engine, 384); /* the block at 700 */
  engine_finish(&engine);
}

/* Up to COLDKV_REWIND_EXACT tokens back, the very state is there again, wherever the 64s and blocks fall. */
static void rewind_is_exact(void **state) {
  (void)state;
  static const uint32_t ends[] = {700, 733, 768, 831, 832}, backs[] = {1, 63, 64, 65, 100, 128};
  for (size_t e = 0; e < 5; e++) {
    struct engine engine;
    begin(&engine);
    uint64_t end = ends[e];
    assert_int_equal(engine_feed_to(&engine, end - 130, 64), 0);
    for (size_t b = 0; b < 6; b++) {
      assert_int_equal(engine_feed_to(&engine, end - backs[b], 1), 0);
      uint64_t handed = engine_status(&engine).hot_first;
      float *first = forward(&engine, 1);
      assert_int_equal(engine_feed_to(&engine, end, 64), 0);
      assert_int_equal(coldkv_sync(engine.conv), 0);
      assert_true(engine_status(&engine).hot_first >= handed);
      go_back(&engine, end - backs[b]);
      assert_same(first, forward(&engine, 1));
      go_back(&engine, end - 130 > engine_status(&engine).stored ? end - 130 : engine_status(&engine).stored);
    }
    engine_finish(&engine);
  }
}

static void rewind_forgets_other_ids(void **state) {
  (void)state;
  struct engine engine;
  begin(&engine);
  engine.salt_from = 600;
  engine.salt = 5;
  assert_int_equal(engine_feed_to(&engine, 720, 64), 0);
  go_back(&engine, 600);
  engine.salt = 0; /* now the right ones */
  assert_int_equal(engine_feed_to(&engine, 640, 40), 0);
  float *out = forward(&engine, 64);
  struct engine other = engine;
  other.salt_from = 0;
  assert_same(out, straight(&other, 640, 64, 64));
  assert_int_equal(engine_feed_to(&engine, 1100, 64), 0);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  engine_check_stored(&engine, 832); /* the block at 1088 */
  engine_finish(&engine);
}

/* Before anything was handed over even the sinks can be taken back. */
static void rewind_to_the_sinks(void **state) {
  (void)state;
  static const uint64_t ends[] = {0, 2, 3, 4, 5};
  for (size_t e = 0; e < sizeof ends / sizeof ends[0]; e++) {
    struct engine engine;
    begin(&engine);
    engine.salt = 9;
    engine.salt_from = ends[e];
    assert_int_equal(engine_feed_to(&engine, 300, 64), 0);
    go_back(&engine, ends[e]);
    engine.salt = 10;
    assert_int_equal(engine_feed_to(&engine, 400, 50), 0);
    float *out = forward(&engine, 64);
    struct engine fresh; /* cut into the same blocks, so that the means come from the same tokens */
    begin(&fresh);
    fresh.salt = engine.salt;
    fresh.salt_from = engine.salt_from;
    assert_int_equal(engine_feed_to(&fresh, ends[e], 64), 0);
    assert_int_equal(engine_feed_to(&fresh, 400, 50), 0);
    assert_same(out, forward(&fresh, 64));
    engine_finish(&fresh);
    engine_finish(&engine);
  }
}

static void rewind_stops_at_what_was_handed_over(void **state) {
  (void)state;
  struct engine engine;
  begin(&engine);
  assert_int_equal(engine_feed_to(&engine, 832, 64), 0); /* the block at 768 handed over up to 512 */
  assert_int_equal(coldkv_rewind(engine.conv, 511), COLDKV_ERANGE);
  assert_non_null(strstr(coldkv_error(), "before 512"));
  assert_int_equal(coldkv_rewind(engine.conv, 833), COLDKV_ERANGE);
  assert_int_equal(engine_status(&engine).tokens, 832);
  go_back(&engine, 512);
  assert_int_equal(engine_status(&engine).hot_first, 832 - 512); /* all that the ring still has */
  assert_int_equal(engine_feed_to(&engine, 1000, 64), 0);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  engine_check_stored(&engine, 704); /* the block at 960 */
  fake_lock(engine.fake);
  assert_int_equal(fake_counters(engine.fake)->conflicts + fake_counters(engine.fake)->gaps, 0);
  assert_int_equal(fake_counters(engine.fake)->repeats, 0);
  fake_unlock(engine.fake);
  engine_finish(&engine);
}

/* After a long way back the ring may begin among the sinks: they count once all the same. */
static void sinks_count_once(void **state) {
  (void)state;
  for (uint64_t end = 513; end <= 516; end++) {
    struct engine engine;
    begin(&engine);
    assert_int_equal(engine_feed_to(&engine, end - 64, 64), 0);
    assert_int_equal(engine_feed_to(&engine, end, 64), 0); /* the ring holds 1, 2, 3 or 4 and on */
    go_back(&engine, 200);
    assert_int_equal(coldkv_set_slots(engine.conv, 0), 0);
    float *got = forward(&engine, 10), *right = straight(&engine, 200, 64, 10);
    for (uint32_t i = 0; i < OUT_FLOATS; i++)
      assert_float_equal(got[i], right[i], 1e-5);
    free(got);
    free(right);
    engine_finish(&engine);
  }
}

/* However the tokens are cut into blocks, they are handed over in 64s, 256 to 319 behind. */
static void hands_over_by_the_rule(void **state) {
  (void)state;
  static const uint32_t blocks[] = {64, 1, 37};
  for (size_t b = 0; b < 3; b++) {
    struct engine engine;
    begin(&engine);
    for (uint64_t end = 300; end < 600; end += 7) {
      while (engine.position + blocks[b] <= end) {
        uint64_t first = engine.position;
        assert_int_equal(engine_feed_to(&engine, first + blocks[b], blocks[b]), 0);
        struct coldkv_status status = engine_status(&engine);
        assert_int_equal(status.stored + status.backlog, first < 256 ? 0 : (first - 256) / 64 * 64);
        assert_int_equal(status.tokens, first + blocks[b]);
      }
    }
    engine_finish(&engine);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(calls_out_of_order),          cmocka_unit_test(aborted_blocks_leave_nothing),
      cmocka_unit_test(rewind_is_exact),             cmocka_unit_test(rewind_forgets_other_ids),
      cmocka_unit_test(rewind_to_the_sinks),         cmocka_unit_test(rewind_stops_at_what_was_handed_over),
      cmocka_unit_test(sinks_count_once),            cmocka_unit_test(hands_over_by_the_rule),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
