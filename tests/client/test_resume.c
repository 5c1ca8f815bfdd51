// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Conversations with a past: what coldkv_resume asks for, that nothing is stored twice, that nothing is forgotten.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/client/engine.h"

static void begin(struct engine *engine) {
  engine_describe(engine);
  engine_start(engine, NULL);
  assert_int_equal(engine_open(engine, NULL), 0);
  assert_int_equal(coldkv_set_slots(engine->conv, 0), 0); /* the fake's lookups take long */
}

static void reopen(struct engine *engine) {
  coldkv_close(engine->conv);
  engine->conv = NULL;
  assert_int_equal(engine_open(engine, NULL), 0);
  assert_int_equal(coldkv_set_slots(engine->conv, 0), 0);
}

/* Feeds `tokens`, syncs, opens again and checks the whole plan. */
static void check_resume(uint64_t tokens, uint64_t stored) {
  struct engine engine;
  begin(&engine);
  assert_int_equal(engine_feed_to(&engine, tokens, 64), 0);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  assert_int_equal(engine_status(&engine).durable, stored);
  reopen(&engine);
  struct coldkv_status status = engine_status(&engine);
  uint64_t rebuilt = stored < 260 ? stored : 4 + 256;
  assert_int_equal(status.tokens, tokens);
  assert_int_equal(status.stored, stored);
  assert_int_equal(status.resume_left, rebuilt + tokens - stored);
  assert_int_equal(engine_resume(&engine), rebuilt + tokens - stored); /* checks every id */
  status = engine_status(&engine);
  assert_int_equal(engine.position, tokens);
  assert_int_equal(status.tokens, tokens);
  assert_int_equal(status.resume_left, 0);
  uint32_t ids[COLDKV_BLOCK_MAX];
  assert_int_equal(coldkv_resume(engine.conv, ids), 0);
  assert_int_equal(engine_feed_to(&engine, 1500, 64), 0);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  uint64_t last = tokens + (1500 - 1 - tokens) / 64 * 64; /* where the last block began */
  engine_check_stored(&engine, (last - 256) / 64 * 64);
  fake_lock(engine.fake);
  assert_int_equal(fake_counters(engine.fake)->repeats, 0);
  assert_int_equal(fake_counters(engine.fake)->conflicts, 0);
  fake_unlock(engine.fake);
  engine_finish(&engine);
}

static void resumes_at_every_length(void **state) {
  (void)state;
  check_resume(1, 0);
  check_resume(3, 0);
  check_resume(200, 0);
  check_resume(320, 0);
  check_resume(384, 64);
  check_resume(576, 256);
  check_resume(640, 320);
  check_resume(1000, 704);
}

static void a_new_conversation_has_no_past(void **state) {
  (void)state;
  struct engine engine;
  begin(&engine);
  assert_int_equal(coldkv_sync(engine.conv), 0); /* of nothing */
  reopen(&engine);
  assert_int_equal(engine_status(&engine).resume_left, 0);
  assert_int_equal(engine_resume(&engine), 0);
  engine_finish(&engine);
}

/* The hot window starts at the first rebuilt token and slots come from before it, until the rule of 64 takes over. */
static void rebuilt_window_and_slots_meet(void **state) {
  (void)state;
  struct engine engine;
  begin(&engine);
  assert_int_equal(engine_feed_to(&engine, 1000, 64), 0);
  assert_int_equal(coldkv_sync(engine.conv), 0); /* 704 stored */
  reopen(&engine);
  assert_int_equal(coldkv_set_slots(engine.conv, 64), 0);
  uint32_t ids[COLDKV_BLOCK_MAX];
  int n;
  for (int fed = 0; (n = coldkv_resume(engine.conv, ids)) > 0; fed += n) {
    struct coldkv_status status = engine_status(&engine);
    engine.position = fed ? status.tokens - status.resume_left : 0;
    assert_int_equal(coldkv_begin(engine.conv, ids, (uint32_t)n), 0);
    uint64_t rule = engine.position < 256 ? 0 : (engine.position - 256) / 64 * 64;
    uint64_t expected = fed ? (rule > 448 ? rule : 448) : 0;
    for (uint32_t layer = 0; layer < 2; layer++) {
      struct coldkv_slots slots;
      float *q = engine_block(&engine, ENGINE_Q, layer, engine.position, ids, (uint32_t)n);
      assert_int_equal(coldkv_retrieve(engine.conv, layer, q, &slots), 0);
      assert_int_equal(slots.hot_first, expected);
      assert_true(fed ? slots.count[0] > 64 : slots.count[0] == 0);
      for (uint32_t i = 0; i < slots.count[0]; i++)
        assert_in_range(slots.tokens[0][i], 4, expected - 1);
      assert_int_equal(coldkv_push(engine.conv, layer, q, q), 0); /* wrong keys: what is stored must not change */
      free(q);
    }
    assert_int_equal(coldkv_end(engine.conv), 0);
  }
  assert_int_equal(n, 0);
  engine_check_stored(&engine, 704);
  engine_finish(&engine);
}

static void wrong_tokens_are_refused(void **state) {
  (void)state;
  struct engine engine;
  begin(&engine);
  assert_int_equal(engine_feed_to(&engine, 1000, 64), 0);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  reopen(&engine);
  uint32_t ids[COLDKV_BLOCK_MAX] = {0};
  assert_int_equal(coldkv_begin(engine.conv, ids, 4), COLDKV_ESTATE);
  assert_non_null(strstr(coldkv_error(), "coldkv_resume"));
  assert_int_equal(coldkv_resume(engine.conv, ids), 4);
  assert_int_equal(coldkv_begin(engine.conv, ids, 5), COLDKV_ESTATE); /* over the gap behind the sinks */
  assert_int_equal(coldkv_begin(engine.conv, ids, 3), 0);             /* fewer at a time is fine */
  assert_int_equal(coldkv_abort(engine.conv), 0);
  assert_int_equal(coldkv_resume(engine.conv, ids), 4);
  assert_int_equal(engine_resume(&engine), 4 + 256 + 296);
  engine_finish(&engine);
}

/* A sync in the middle of rebuilding keeps the ids that are still to be fed. */
static void sync_while_rebuilding(void **state) {
  (void)state;
  struct engine engine;
  begin(&engine);
  assert_int_equal(engine_feed_to(&engine, 1000, 64), 0);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  for (int blocks = 0; blocks < 9; blocks++) {
    reopen(&engine);
    for (int i = 0; i < blocks; i++) {
      uint32_t ids[COLDKV_BLOCK_MAX];
      int n = coldkv_resume(engine.conv, ids);
      assert_true(n > 0);
      struct coldkv_status status = engine_status(&engine);
      engine.position = i ? status.tokens - status.resume_left : 0;
      assert_int_equal(engine_forward(&engine, ids, (uint32_t)n, NULL), 0);
    }
    assert_int_equal(coldkv_sync(engine.conv), 0);
    fake_lock(engine.fake);
    const struct fake_conversation *c = fake_conversation(engine.fake, "toy");
    assert_int_equal(c->count, 704);
    assert_int_equal(c->ahead_count, 296);
    for (uint32_t i = 0; i < 296; i++)
      assert_int_equal(c->ahead[i], engine_id(&engine, 704 + i));
    fake_unlock(engine.fake);
  }
  engine_finish(&engine);
}

/* Going back while rebuilding gives up ids ahead, but nothing that is stored. */
static void rewind_while_rebuilding(void **state) {
  (void)state;
  struct engine engine;
  begin(&engine);
  assert_int_equal(engine_feed_to(&engine, 1000, 64), 0);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  reopen(&engine);
  assert_int_equal(coldkv_rewind(engine.conv, 703), COLDKV_ERANGE);
  assert_int_equal(coldkv_rewind(engine.conv, 1001), COLDKV_ERANGE);
  assert_int_equal(coldkv_rewind(engine.conv, 900), 0);
  assert_int_equal(engine_status(&engine).tokens, 900);
  assert_int_equal(engine_resume(&engine), 4 + 256 + 196);
  assert_int_equal(coldkv_rewind(engine.conv, 704), 0);
  engine.position = 704;
  engine.salt_from = 704;
  engine.salt = 77; /* another way on */
  assert_int_equal(engine_feed_to(&engine, 1300, 64), 0);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  engine_check_stored(&engine, 1024); /* the block at 1280 */
  engine_finish(&engine);
}

/* Another process has the means; the conversation is bound to them and not calibrated again. */
static void known_models_are_not_calibrated(void **state) {
  (void)state;
  struct engine engine;
  begin(&engine);
  assert_int_equal(engine_feed_to(&engine, 384, 64), 0);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  coldkv_close(engine.conv);
  engine.conv = NULL;
  assert_int_equal(coldkv_open(&engine.conv, engine.model, "second", NULL), 0);
  fake_lock(engine.fake);
  assert_int_equal(fake_counters(engine.fake)->calibrations, 1);
  assert_ptr_equal(fake_conversation(engine.fake, "second")->model, fake_model(engine.fake));
  fake_unlock(engine.fake);
  engine.position = 0;
  assert_int_equal(engine_feed_to(&engine, 450, 64), 0);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  fake_lock(engine.fake);
  assert_int_equal(fake_counters(engine.fake)->calibrations, 1);
  assert_int_equal(fake_conversation(engine.fake, "second")->count, 192);
  fake_unlock(engine.fake);
  engine_finish(&engine);
}

static void opening_checks(void **state) {
  (void)state;
  struct engine engine;
  coldkv_conv *second;
  struct coldkv_conv_options options = {.must_exist = 1};
  engine_describe(&engine);
  engine_start(&engine, NULL);
  assert_int_equal(engine_open(&engine, &options), COLDKV_ENOCONVERSATION);
  assert_null(engine.conv);
  assert_int_equal(engine_open(&engine, NULL), 0);
  assert_int_equal(coldkv_open(&second, engine.model, "toy", NULL), COLDKV_EBUSY);
  assert_int_equal(coldkv_open(&second, engine.model, "", NULL), COLDKV_EARGUMENT);
  char name[300];
  memset(name, 'x', sizeof name);
  name[256] = 0;
  assert_int_equal(coldkv_open(&second, engine.model, name, NULL), COLDKV_EARGUMENT);
  name[255] = 0;
  assert_int_equal(coldkv_open(&second, engine.model, name, NULL), 0);
  coldkv_close(second);
  options = (struct coldkv_conv_options){.k = LIMIT_K_MAX + 1};
  assert_int_equal(coldkv_open(&second, engine.model, "k", &options), COLDKV_EARGUMENT);
  coldkv_close(NULL);
  engine_finish(&engine);
}

/* A second process is told so, after a wait in case the first is just being cleaned up. */
static void another_writer_is_busy(void **state) {
  (void)state;
  struct engine engine;
  struct coldkv_client_options quick = {.timeout_ms = 200};
  coldkv_client *client;
  coldkv_model *model;
  coldkv_conv *conv;
  begin(&engine);
  assert_int_equal(coldkv_client_create(&client, engine.socket, &quick), 0);
  assert_int_equal(coldkv_model_create(&model, client, &engine.description), 0);
  assert_int_equal(coldkv_open(&conv, model, "toy", NULL), COLDKV_EBUSY);
  coldkv_close(engine.conv);
  engine.conv = NULL;
  assert_int_equal(coldkv_open(&conv, model, "toy", NULL), 0);
  coldkv_close(conv);
  fake_lock(engine.fake)->busy_opens = 2; /* gone before the wait is over */
  fake_unlock(engine.fake);
  assert_int_equal(coldkv_open(&conv, model, "toy", NULL), 0);
  coldkv_close(conv);
  coldkv_model_destroy(model);
  coldkv_client_destroy(client);
  engine_finish(&engine);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(resumes_at_every_length),       cmocka_unit_test(a_new_conversation_has_no_past),
      cmocka_unit_test(rebuilt_window_and_slots_meet), cmocka_unit_test(wrong_tokens_are_refused),
      cmocka_unit_test(sync_while_rebuilding),         cmocka_unit_test(rewind_while_rebuilding),
      cmocka_unit_test(known_models_are_not_calibrated), cmocka_unit_test(opening_checks),
      cmocka_unit_test(another_writer_is_busy),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
