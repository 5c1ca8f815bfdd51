// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Handover to a daemon that goes away, refuses, loses what it had not synced: nothing is stored twice, nothing is left
// out, and the client says what is going on.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/client/engine.h"

static void begin(struct engine *engine, const struct coldkv_client_options *options) {
  engine_describe(engine);
  engine_start(engine, options);
  assert_int_equal(engine_open(engine, NULL), 0);
  assert_int_equal(coldkv_set_slots(engine->conv, 0), 0);
}

static struct fake_counters counters(struct engine *engine) {
  fake_lock(engine->fake);
  struct fake_counters copy = *fake_counters(engine->fake);
  fake_unlock(engine->fake);
  return copy;
}

static bool refusing; /* the daemon was told to refuse appends */

/* The daemon has everything up to the hot window of the last block, once, and the ids ahead. */
static void check_complete(struct engine *engine, uint64_t stored) {
  engine_check_stored(engine, stored);
  struct coldkv_status status = engine_status(engine);
  assert_int_equal(status.stored, stored);
  assert_int_equal(status.durable, stored);
  assert_int_equal(status.backlog, 0);
  assert_int_equal(status.record_bytes, stored * 2 * 2 * 104);
  assert_int_equal(status.signature_bytes, stored * 2 * 2 * 18);
  fake_lock(engine->fake);
  const struct fake_conversation *c = fake_conversation(engine->fake, "toy");
  assert_int_equal(c->durable, stored);
  assert_int_equal(c->ahead_count, engine->position - stored);
  for (uint32_t i = 0; i < c->ahead_count; i++)
    assert_int_equal(c->ahead[i], engine_id(engine, stored + i));
  assert_int_equal(fake_counters(engine->fake)->conflicts, 0);
  if (!refusing) /* what follows a refusal is a gap */
    assert_int_equal(fake_counters(engine->fake)->gaps, 0);
  assert_int_equal(fake_counters(engine->fake)->bad_messages, 0);
  fake_unlock(engine->fake);
}

static void appends_are_not_waited_for(void **state) {
  (void)state;
  struct engine engine;
  begin(&engine, NULL);
  assert_int_equal(engine_feed_to(&engine, 384, 64), 0);
  fake_lock(engine.fake)->mute = true; /* takes appends, says nothing */
  fake_unlock(engine.fake);
  assert_int_equal(engine_feed_to(&engine, 1000, 64), 0);
  struct coldkv_status status = engine_status(&engine);
  assert_true(status.connected);
  assert_true(status.stored <= 64 && status.stored + status.backlog == 704);
  engine_finish(&engine);
}

static void every_append_carries_the_ids_ahead(void **state) {
  (void)state;
  struct engine engine;
  begin(&engine, NULL);
  assert_int_equal(engine_feed_to(&engine, 1024, 64), 0); /* no sync: the last append stands */
  for (int wait = 0; wait < 500; wait++) {
    fake_lock(engine.fake);
    uint64_t count = fake_conversation(engine.fake, "toy")->count;
    fake_unlock(engine.fake);
    if (count == 704)
      break;
    usleep(10000);
  }
  fake_lock(engine.fake);
  const struct fake_conversation *c = fake_conversation(engine.fake, "toy");
  assert_int_equal(c->count, 704);
  /* as it was when the last block began; a device has the records ready a little later */
  assert_int_equal(c->ahead_count, (getenv("COLDKV_TEST_DEVICE") ? 1024 : 960) - 704);
  for (uint32_t i = 0; i < c->ahead_count; i++)
    assert_int_equal(c->ahead[i], engine_id(&engine, 704 + i));
  fake_unlock(engine.fake);
  engine_finish(&engine);
}

/* Connections that are cut anywhere, in the middle of an append too. */
static void cut_connections(void **state) {
  (void)state;
  static const uint64_t cuts[] = {30001, 54321, 90000, 200003};
  for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
    struct engine engine;
    begin(&engine, NULL);
    struct fake_orders *orders = fake_lock(engine.fake);
    orders->cut_after_bytes = cuts[i];
    orders->durable_every = i % 2 ? 3 : 0;
    fake_unlock(engine.fake);
    assert_int_equal(engine_feed_to(&engine, 2000, 50), 0);
    fake_lock(engine.fake)->cut_after_bytes = 0;
    fake_unlock(engine.fake);
    assert_int_equal(coldkv_sync(engine.conv), 0);
    check_complete(&engine, 1664); /* the block at 1950 */
    struct fake_counters c = counters(&engine);
    assert_true(c.cuts >= 1 && c.accepted > c.cuts);
    assert_true(engine_status(&engine).reconnects >= 1);
    assert_true(engine_status(&engine).connected);
    engine_finish(&engine);
  }
}

/* A daemon that syncs now and then loses what it only stored; the backlog has kept it. */
static void crashes_that_lose_what_was_not_durable(void **state) {
  (void)state;
  struct engine engine;
  begin(&engine, NULL);
  fake_lock(engine.fake)->durable_every = 5;
  fake_unlock(engine.fake);
  for (uint64_t end = 500; end <= 2500; end += 250) {
    assert_int_equal(engine_feed_to(&engine, end, 64), 0);
    if (end % 500 == 0)
      assert_int_equal(coldkv_sync(engine.conv), 0);
    fake_stop(engine.fake, true);
    assert_int_equal(engine_feed_to(&engine, end + 100, 64), 0); /* goes on alone */
    fake_start(engine.fake);
  }
  assert_int_equal(coldkv_sync(engine.conv), 0);
  uint64_t stored = engine_status(&engine).stored;
  assert_true(stored >= 2500 + 100 - 64 - 319);
  check_complete(&engine, stored);
  engine_finish(&engine);
}

static void goes_on_alone_up_to_the_limit(void **state) {
  (void)state;
  struct engine engine;
  struct coldkv_client_options options = {.backlog_bytes = 300000, .timeout_ms = 300}; /* 416 bytes a token */
  begin(&engine, &options);
  assert_int_equal(engine_feed_to(&engine, 512, 64), 0);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  fake_stop(engine.fake, false);
  int result = 0;
  while (!result && engine.position < 4000) {
    struct coldkv_status before = engine_status(&engine);
    result = engine_feed_to(&engine, engine.position + 64, 64);
    struct coldkv_status after = engine_status(&engine);
    if (result) { /* nothing has changed */
      assert_int_equal(after.tokens, before.tokens);
      assert_int_equal(after.backlog, before.backlog);
      assert_int_equal(after.hot_first, before.hot_first);
    }
  }
  assert_int_equal(result, COLDKV_EBACKLOG);
  assert_non_null(strstr(coldkv_error(), "backlog_bytes"));
  struct coldkv_status status = engine_status(&engine);
  assert_in_range(status.backlog * 420, 300000 - 64 * 420 - 5000, 300000);
  assert_false(status.connected);
  assert_int_equal(status.stored, 192);
  assert_int_equal(engine_feed_to(&engine, engine.position + 1, 1), COLDKV_EBACKLOG); /* still */
  fake_start(engine.fake);
  for (int tries = 0; tries < 100 && (result = engine_feed_to(&engine, 4000, 64)) == COLDKV_EBACKLOG; tries++)
    usleep(20000);
  assert_int_equal(result, 0);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  check_complete(&engine, engine_status(&engine).stored);
  engine_finish(&engine);
}

/* A daemon that keeps taking tokens but makes none durable does not fill the backlog for ever: the client asks. */
static void asks_for_durability_at_the_limit(void **state) {
  (void)state;
  struct engine engine;
  struct coldkv_client_options options = {.backlog_bytes = 150000};
  begin(&engine, &options);
  fake_lock(engine.fake)->durable_every = 1000000;
  fake_unlock(engine.fake);
  assert_int_equal(engine_feed_to(&engine, 3000, 64), 0);
  assert_true(engine_status(&engine).durable > 1500);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  check_complete(&engine, engine_status(&engine).stored);
  engine_finish(&engine);
}

static void refused_appends_are_kept(void **state) {
  (void)state;
  static const int errors[] = {ERR_NO_SPACE, ERR_READ_ONLY, ERR_IO};
  static const int codes[] = {COLDKV_ENOSPACE, COLDKV_EREADONLY, COLDKV_EIO};
  for (size_t i = 0; i < 3; i++) {
    struct engine engine;
    begin(&engine, NULL);
    assert_int_equal(engine_feed_to(&engine, 512, 64), 0);
    assert_int_equal(coldkv_sync(engine.conv), 0);
    struct fake_orders *orders = fake_lock(engine.fake);
    orders->failing_appends = 1000;
    orders->append_error = errors[i];
    fake_unlock(engine.fake);
    assert_int_equal(engine_feed_to(&engine, 1000, 64), 0);
    assert_int_equal(coldkv_sync(engine.conv), codes[i]);
    assert_int_equal(engine_status(&engine).stored, 192);
    assert_int_equal(engine_status(&engine).backlog, 704 - 192);
    fake_lock(engine.fake)->failing_appends = 0;
    fake_unlock(engine.fake);
    assert_int_equal(coldkv_sync(engine.conv), 0);
    refusing = true;
    check_complete(&engine, 704);
    refusing = false;
    engine_finish(&engine);
  }
}

/* One refusal in a row of appends under way: those behind it are gaps at the daemon, and all are sent again. */
static void a_refusal_among_many(void **state) {
  (void)state;
  struct engine engine;
  begin(&engine, NULL);
  assert_int_equal(engine_feed_to(&engine, 320, 64), 0);
  for (int i = 0; i < 4; i++) {
    struct fake_orders *orders = fake_lock(engine.fake);
    orders->failing_appends = 1;
    orders->append_error = ERR_NO_SPACE;
    fake_unlock(engine.fake);
    assert_int_equal(engine_feed_to(&engine, engine.position + 400, 64), 0);
  }
  int result = COLDKV_ENOSPACE;
  for (int tries = 0; tries < 3 && result == COLDKV_ENOSPACE; tries++) /* the last refusal may meet the sync */
    result = coldkv_sync(engine.conv);
  assert_int_equal(result, 0);
  engine_check_stored(&engine, engine_status(&engine).stored);
  assert_int_equal(counters(&engine).conflicts, 0);
  engine_finish(&engine);
}

static void conflicts_are_fatal(void **state) {
  (void)state;
  struct engine engine;
  begin(&engine, NULL);
  assert_int_equal(engine_feed_to(&engine, 512, 64), 0);
  struct fake_orders *orders = fake_lock(engine.fake);
  orders->failing_appends = 1;
  orders->append_error = ERR_CONFLICT;
  fake_unlock(engine.fake);
  int result = 0;
  for (int tries = 0; tries < 50 && !result; tries++)
    result = engine_feed_to(&engine, engine.position + 64, 64);
  assert_int_equal(result, COLDKV_ECONFLICT);
  assert_non_null(strstr(coldkv_error(), "'toy'"));
  assert_int_equal(coldkv_sync(engine.conv), COLDKV_ECONFLICT);
  assert_int_equal(engine_feed_to(&engine, engine.position + 64, 64), COLDKV_ECONFLICT);
  assert_false(engine_status(&engine).connected);
  engine_finish(&engine);
}

static void an_archive_that_lost_tokens_is_a_conflict(void **state) {
  (void)state;
  struct engine engine;
  begin(&engine, NULL);
  assert_int_equal(engine_feed_to(&engine, 1000, 64), 0);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  fake_stop(engine.fake, false);
  fake_lock(engine.fake);
  struct fake_conversation *c = fake_conversation(engine.fake, "toy");
  c->count = c->durable = 640; /* 704 were acknowledged as durable */
  fake_unlock(engine.fake);
  fake_start(engine.fake);
  assert_int_equal(coldkv_sync(engine.conv), COLDKV_ECONFLICT);
  assert_non_null(strstr(coldkv_error(), "acknowledged 704"));
  engine_finish(&engine);
}

static void another_writer_meanwhile_is_a_conflict(void **state) {
  (void)state;
  struct engine engine;
  begin(&engine, NULL);
  assert_int_equal(engine_feed_to(&engine, 1000, 64), 0);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  fake_stop(engine.fake, false);
  fake_lock(engine.fake);
  struct fake_conversation *c = fake_conversation(engine.fake, "toy");
  c->count = c->durable = 705;
  fake_unlock(engine.fake);
  fake_start(engine.fake);
  assert_int_equal(coldkv_sync(engine.conv), COLDKV_ECONFLICT);
  assert_non_null(strstr(coldkv_error(), "another process"));
  engine_finish(&engine);
}

static void the_lease_is_asked_for_again(void **state) {
  (void)state;
  struct engine engine;
  begin(&engine, NULL);
  assert_int_equal(engine_feed_to(&engine, 600, 64), 0);
  fake_stop(engine.fake, false);
  fake_lock(engine.fake)->busy_opens = 4;
  fake_unlock(engine.fake);
  fake_start(engine.fake);
  assert_int_equal(engine_feed_to(&engine, 1000, 64), 0);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  check_complete(&engine, 704);
  assert_int_equal(counters(&engine).opens, 1 + 1 + 4 + 1); /* first, bound to the model, busy, again */
  engine_finish(&engine);
}

/* No daemon when the first token should leave the hot window: the ring holds 512, then begin says so. */
static void calibration_waits_for_the_daemon(void **state) {
  (void)state;
  struct engine engine;
  begin(&engine, NULL);
  assert_int_equal(engine_feed_to(&engine, 300, 64), 0);
  fake_stop(engine.fake, false);
  assert_int_equal(engine_feed_to(&engine, 512, 53), 0);
  assert_int_equal(engine_status(&engine).backlog, 0);
  uint32_t id = engine_id(&engine, 512);
  assert_int_equal(coldkv_begin(engine.conv, &id, 1), COLDKV_EBACKLOG);
  assert_int_equal(engine_status(&engine).tokens, 512);
  fake_start(engine.fake);
  assert_int_equal(engine_feed_to(&engine, 1000, 61), 0);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  check_complete(&engine, engine_status(&engine).stored);
  assert_true(engine_status(&engine).stored >= 640);
  engine_finish(&engine);
}

static void check_ahead(struct engine *engine, uint32_t count) {
  fake_lock(engine->fake);
  const struct fake_conversation *c = fake_conversation(engine->fake, "toy");
  assert_int_equal(c->count, 0);
  assert_int_equal(c->ahead_count, count);
  for (uint32_t i = 0; i < count; i++)
    assert_int_equal(c->ahead[i], engine_id(engine, i));
  fake_unlock(engine->fake);
}

static void sync_says_why_not(void **state) {
  (void)state;
  struct engine engine;
  struct coldkv_client_options options = {.sync_timeout_ms = 300, .timeout_ms = 100};
  begin(&engine, &options);
  assert_int_equal(engine_feed_to(&engine, 100, 64), 0);
  assert_int_equal(coldkv_sync(engine.conv), 0); /* no model yet: ids ahead alone */
  check_ahead(&engine, 100);
  fake_lock(engine.fake)->mute = true;
  fake_unlock(engine.fake);
  assert_int_equal(coldkv_sync(engine.conv), COLDKV_ETIMEOUT);
  fake_lock(engine.fake)->mute = false;
  fake_unlock(engine.fake);
  fake_stop(engine.fake, false);
  assert_int_equal(coldkv_sync(engine.conv), COLDKV_EUNREACHABLE);
  assert_non_null(strstr(coldkv_error(), engine.socket));
  assert_int_equal(engine_feed_to(&engine, 150, 64), 0);
  fake_start(engine.fake);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  check_ahead(&engine, 150);
  engine_finish(&engine);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(appends_are_not_waited_for),
      cmocka_unit_test(every_append_carries_the_ids_ahead),
      cmocka_unit_test(cut_connections),
      cmocka_unit_test(crashes_that_lose_what_was_not_durable),
      cmocka_unit_test(goes_on_alone_up_to_the_limit),
      cmocka_unit_test(asks_for_durability_at_the_limit),
      cmocka_unit_test(refused_appends_are_kept),
      cmocka_unit_test(a_refusal_among_many),
      cmocka_unit_test(conflicts_are_fatal),
      cmocka_unit_test(an_archive_that_lost_tokens_is_a_conflict),
      cmocka_unit_test(another_writer_meanwhile_is_a_conflict),
      cmocka_unit_test(the_lease_is_asked_for_again),
      cmocka_unit_test(calibration_waits_for_the_daemon),
      cmocka_unit_test(sync_says_why_not),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
