// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A daemon behind a bad line: it stalls, answers late, hangs up in mid-frame, floods. No call waits longer than
// timeout_ms, all calls of a block no longer than block_timeout_ms, and every token arrives once.
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "client/clock.h"
#include "tests/client/engine.h"
#include "tests/client/proxy.h"

/* What a busy machine may add to a wait. */
enum { SLACK_MS = 400 };

struct setup {
  struct engine engine;
  struct proxy *proxy;
  char path[112];
};

/* Opens the toy conversation through a proxy and feeds it until lookups happen. */
static void begin(struct setup *s, const struct coldkv_client_options *options, uint32_t layers) {
  engine_describe(&s->engine);
  s->engine.description.layers = layers;
  engine_start(&s->engine, options);
  snprintf(s->path, sizeof s->path, "%s/line", s->engine.directory);
  s->proxy = proxy_create(s->path, s->engine.socket);
  engine_connect(&s->engine, s->path, options);
  assert_int_equal(engine_open(&s->engine, NULL), 0);
  assert_int_equal(engine_feed_to(&s->engine, 448, 64), 0);
  assert_int_equal(coldkv_sync(s->engine.conv), 0);
  s->engine.call_ms_max = s->engine.block_ms_max = 0;
}

static void finish(struct setup *s) {
  coldkv_close(s->engine.conv);
  s->engine.conv = NULL;
  proxy_destroy(s->proxy);
  engine_finish(&s->engine);
}

static void order(struct setup *s, struct proxy_orders orders) {
  *proxy_lock(s->proxy) = orders;
  proxy_unlock(s->proxy);
}

static void check_all_stored(struct setup *s) {
  assert_int_equal(coldkv_sync(s->engine.conv), 0);
  engine_check_stored(&s->engine, engine_status(&s->engine).stored);
  assert_in_range(s->engine.position - engine_status(&s->engine).stored, 256, 256 + 64 + 64);
  fake_lock(s->engine.fake);
  assert_int_equal(fake_counters(s->engine.fake)->conflicts, 0);
  assert_int_equal(fake_counters(s->engine.fake)->gaps, 0);
  fake_unlock(s->engine.fake);
}

static uint64_t lookups_sent(struct setup *s) {
  fake_lock(s->engine.fake);
  uint64_t lookups = fake_counters(s->engine.fake)->lookups;
  fake_unlock(s->engine.fake);
  return lookups;
}

/* The bound that coldkv.h states for options of 0. */
static void a_stalled_daemon_costs_the_stated_wait_once(void **state) {
  (void)state;
  struct setup s;
  begin(&s, NULL, 2);
  order(&s, (struct proxy_orders){.stall = true});
  uint64_t began = clock_ms(), missed = engine_status(&s.engine).lookups_missed;
  assert_int_equal(engine_feed_to(&s.engine, 448 + 40, 1), 0);
  assert_in_range(s.engine.call_ms_max, 1900, 2000 + SLACK_MS);
  assert_in_range(s.engine.block_ms_max, 1900, 2000 + SLACK_MS);
  assert_true(clock_ms() - began < 2000 + 4 * SLACK_MS);
  assert_int_equal(engine_status(&s.engine).lookups_missed - missed, 80);
  order(&s, (struct proxy_orders){0});
  usleep(200 * 1000); /* the late answer arrives: nothing more has to be waited out */
  missed = engine_status(&s.engine).lookups_missed;
  assert_int_equal(engine_feed_to(&s.engine, s.engine.position + 10, 1), 0);
  assert_int_equal(engine_status(&s.engine).lookups_missed, missed);
  check_all_stored(&s);
  finish(&s);
}

/* Every answer comes, and always too late: the share of the time that is spent waiting shrinks. */
static void late_answers_are_waited_for_less_and_less(void **state) {
  (void)state;
  struct setup s;
  static const struct coldkv_client_options quick = {.timeout_ms = 100};
  begin(&s, &quick, 4);
  order(&s, (struct proxy_orders){.delay_ms = 180});
  uint64_t began = clock_ms(), sent = lookups_sent(&s);
  for (int i = 0; i < 120; i++) {
    assert_int_equal(engine_feed_to(&s.engine, s.engine.position + 1, 1), 0);
    usleep(20 * 1000); /* the engine computes */
  }
  /* 480 lookups of 100 ms would be 48 s; 120 blocks of one wait 12 s; one wait whenever the answer has come 24 waits */
  assert_true(clock_ms() - began < 120 * 20 + 12 * 100 + 2 * SLACK_MS);
  assert_in_range(lookups_sent(&s) - sent, 3, 12);
  assert_true(s.engine.block_ms_max < 100 + SLACK_MS);
  assert_int_equal(engine_status(&s.engine).bad_records, 0);
  order(&s, (struct proxy_orders){0});
  check_all_stored(&s);
  finish(&s);
}

/* An engine that computes for longer than the pauses last: a block waits in vain once all the same. */
static void a_block_waits_in_vain_once(void **state) {
  (void)state;
  struct setup s;
  static const struct coldkv_client_options quick = {.timeout_ms = 30};
  begin(&s, &quick, 8);
  order(&s, (struct proxy_orders){.delay_ms = 60});
  for (uint32_t block = 0; block < 3; block++) {
    uint32_t id = 1;
    uint64_t sent = lookups_sent(&s);
    assert_int_equal(coldkv_begin(s.engine.conv, &id, 1), 0);
    for (uint32_t layer = 0; layer < 8; layer++) {
      struct coldkv_slots slots;
      float *q = engine_block(&s.engine, ENGINE_Q, layer, 448, &id, 1);
      assert_int_equal(coldkv_retrieve(s.engine.conv, layer, q, &slots), 0);
      free(q);
      usleep(70 * 1000);
    }
    assert_int_equal(lookups_sent(&s) - sent, 1);
    assert_int_equal(coldkv_abort(s.engine.conv), 0);
  }
  order(&s, (struct proxy_orders){0});
  finish(&s);
}

/* Just in time every time: each call keeps to timeout_ms, and the block to block_timeout_ms. */
static void slow_answers_keep_to_the_limit_of_the_block(void **state) {
  (void)state;
  struct setup s;
  static const struct coldkv_client_options options = {.timeout_ms = 400, .block_timeout_ms = 500};
  begin(&s, &options, 16);
  order(&s, (struct proxy_orders){.delay_ms = 100});
  uint64_t missed = engine_status(&s.engine).lookups_missed;
  assert_int_equal(engine_feed_to(&s.engine, 449, 1), 0);
  assert_true(s.engine.block_ms_max < 500 + SLACK_MS); /* 16 answers would be 1600 ms */
  assert_in_range(engine_status(&s.engine).lookups_missed - missed, 8, 15); /* some were in time */
  order(&s, (struct proxy_orders){0});
  check_all_stored(&s);
  finish(&s);
}

/* A daemon that falls silent, and whoever connects again finds it silent: no wait for every new connection. */
static void connecting_to_a_silent_daemon_is_no_sign_of_life(void **state) {
  (void)state;
  struct setup s;
  static const struct coldkv_client_options quick = {.timeout_ms = 200};
  begin(&s, &quick, 2);
  order(&s, (struct proxy_orders){.cut_down = 1});
  assert_int_equal(engine_feed_to(&s.engine, 450, 1), 0);
  order(&s, (struct proxy_orders){.stall = true});
  uint64_t began = clock_ms(), waited = 0;
  while (clock_ms() - began < 3000) {
    uint64_t then = clock_ms();
    assert_int_equal(engine_feed_to(&s.engine, s.engine.position + 1, 1), 0);
    waited += clock_ms() - then > 100 ? clock_ms() - then : 0;
    usleep(10 * 1000);
  }
  assert_true(waited < 3 * 200 + SLACK_MS); /* at 0, 400 and 1000 ms */
  order(&s, (struct proxy_orders){0});
  check_all_stored(&s);
  finish(&s);
}

/* Tokens of the answers to some queries, to see whether an answer is taken for another's. */
enum { QUERIES = 8, SLOTS = 16 };

struct found {
  uint32_t count;
  uint64_t tokens[SLOTS];
};

static struct found retrieve(struct setup *s, uint32_t query) {
  struct coldkv_slots slots;
  struct found found = {0};
  uint32_t id = query;
  float *q = engine_block(&s->engine, ENGINE_Q, query % 2, 10000 + query, &id, 1);
  assert_int_equal(coldkv_retrieve(s->engine.conv, query % 2, q, &slots), 0);
  free(q);
  assert_in_range(slots.count[0], 0, SLOTS);
  found.count = slots.count[0];
  for (uint32_t i = 0; i < found.count; i++)
    found.tokens[i] = slots.tokens[0][i];
  return found;
}

static void late_answers_are_not_taken_for_others(void **state) {
  (void)state;
  struct setup s;
  static const struct coldkv_client_options quick = {.timeout_ms = 30, .block_timeout_ms = 100000};
  begin(&s, &quick, 2);
  coldkv_set_slots(s.engine.conv, SLOTS);
  struct found calm[QUERIES];
  uint32_t id = 1, answered = 0, missed = 0;
  assert_int_equal(coldkv_begin(s.engine.conv, &id, 1), 0);
  for (uint32_t query = 0; query < QUERIES; query++) {
    calm[query] = retrieve(&s, query);
    assert_int_equal(calm[query].count, SLOTS);
    assert_true(query < 2 || memcmp(&calm[query], &calm[query - 2], sizeof calm[query]) != 0);
  }
  for (uint32_t i = 0; i < 150; i++) {
    order(&s, (struct proxy_orders){.delay_ms = i % 3 ? 0 : 45});
    if (i % 2) { /* another block: one wait in vain does not keep the next lookups from being sent */
      coldkv_abort(s.engine.conv);
      assert_int_equal(coldkv_begin(s.engine.conv, &id, 1), 0);
      usleep(i % 5 * 10000);
    }
    struct found found = retrieve(&s, i % QUERIES);
    if (found.count)
      assert_memory_equal(&found, &calm[i % QUERIES], sizeof found);
    answered += found.count > 0;
    missed += found.count == 0;
  }
  assert_true(answered > 10 && missed > 10);
  assert_int_equal(engine_status(&s.engine).bad_records, 0);
  coldkv_abort(s.engine.conv);
  finish(&s);
}

struct held {
  uint8_t *answer;
  size_t size;
};

/* Holds an answer back until after the next one. */
static void swap_answers(void *context, enum method_id method, uint8_t *data, size_t *size, size_t capacity) {
  struct held *held = context;
  if (method != METHOD_LOOKUP)
    return;
  if (!held->answer) {
    held->answer = malloc(*size);
    assert_non_null(held->answer);
    memcpy(held->answer, data, *size);
    held->size = *size;
    *size = 0;
    return;
  }
  assert_true(*size + held->size <= capacity);
  memcpy(data + *size, held->answer, held->size);
  *size += held->size;
  free(held->answer);
  held->answer = NULL;
}

/* The answer to a lookup that was given up comes behind, or in front of, the one to the lookup that waits. */
static void answers_in_another_order(void **state) {
  (void)state;
  struct setup s;
  struct held held = {0};
  static const struct coldkv_client_options quick = {.timeout_ms = 50};
  begin(&s, &quick, 2);
  coldkv_set_slots(s.engine.conv, SLOTS);
  uint32_t id = 1;
  assert_int_equal(coldkv_begin(s.engine.conv, &id, 1), 0);
  struct found calm = retrieve(&s, 2);
  struct fake_orders *orders = fake_lock(s.engine.fake);
  orders->mangle = swap_answers;
  orders->mangle_context = &held;
  fake_unlock(s.engine.fake);
  for (int i = 0; i < 5; i++) {
    assert_int_equal(retrieve(&s, 0).count, 0); /* held back */
    coldkv_abort(s.engine.conv);
    assert_int_equal(coldkv_begin(s.engine.conv, &id, 1), 0);
    usleep(60 * 1000); /* longer than the pause */
    struct found found = retrieve(&s, 2);
    assert_memory_equal(&found, &calm, sizeof found);
    coldkv_abort(s.engine.conv);
    assert_int_equal(coldkv_begin(s.engine.conv, &id, 1), 0);
  }
  assert_int_equal(engine_status(&s.engine).reconnects, 0);
  coldkv_abort(s.engine.conv);
  finish(&s);
}

/* A daemon that hangs up on every append is not called again and again without a pause. */
static void hanging_up_on_every_append(void **state) {
  (void)state;
  struct setup s;
  static const struct coldkv_client_options options = {.sync_timeout_ms = 2000};
  begin(&s, &options, 2);
  order(&s, (struct proxy_orders){.cut_up = 4000}); /* hello and open get through, 64 records do not */
  uint64_t accepted = proxy_counters(s.proxy).accepted;
  coldkv_set_slots(s.engine.conv, 0);
  assert_int_equal(engine_feed_to(&s.engine, 600, 64), 0);
  assert_int_equal(coldkv_sync(s.engine.conv), COLDKV_EUNREACHABLE);
  accepted = proxy_counters(s.proxy).accepted - accepted;
  assert_in_range(accepted, 4, 14); /* after 0, 20, 40, ... 1000 ms */
  order(&s, (struct proxy_orders){0});
  check_all_stored(&s);
  finish(&s);
}

/* Cut anywhere, both ways, in the middle of appends and of answers. */
static void cut_in_mid_frame(void **state) {
  (void)state;
  struct setup s;
  begin(&s, NULL, 2);
  coldkv_set_slots(s.engine.conv, 4);
  for (uint64_t i = 0; i < 12; i++) {
    uint64_t up = i % 2 ? 0 : 2000 + 9000 * i, down = i % 2 ? 350 + 450 * i : 0;
    order(&s, (struct proxy_orders){.cut_up = up, .cut_down = down});
    assert_int_equal(engine_feed_to(&s.engine, s.engine.position + 130, 33), 0);
    order(&s, (struct proxy_orders){0});
    if (i % 3 == 0)
      check_all_stored(&s);
  }
  assert_true(proxy_counters(s.proxy).cuts >= 8);
  assert_true(engine_status(&s.engine).reconnects >= 8);
  check_all_stored(&s);
  finish(&s);
}

static void a_flood_of_notifications(void **state) {
  (void)state;
  struct setup s;
  static const struct coldkv_client_options quick = {.timeout_ms = 100, .sync_timeout_ms = 1500};
  begin(&s, &quick, 2);
  order(&s, (struct proxy_orders){.flood = true});
  for (int i = 0; i < 10; i++)
    assert_int_equal(engine_feed_to(&s.engine, s.engine.position + 10, 10), 0);
  assert_true(s.engine.call_ms_max < 100 + SLACK_MS);
  assert_true(s.engine.block_ms_max < 100 + SLACK_MS);
  assert_true(coldkv_sync(s.engine.conv) < 0);
  order(&s, (struct proxy_orders){0});
  check_all_stored(&s);
  finish(&s);
}

static void twice(void *context, enum method_id method, uint8_t *data, size_t *size, size_t capacity) {
  uint64_t *left = context;
  if (!*left || method == METHOD_HELLO || method == METHOD_OPEN || 2 * *size > capacity)
    return;
  --*left;
  memcpy(data + *size, data, *size);
  *size *= 2;
}

/* The second answer of a request may meet another request's wait. It costs the connection, and nothing else. */
static void answers_that_come_twice(void **state) {
  (void)state;
  struct setup s;
  uint64_t left = 10;
  begin(&s, NULL, 2);
  coldkv_set_slots(s.engine.conv, 2);
  struct fake_orders *orders = fake_lock(s.engine.fake);
  orders->mangle = twice;
  orders->mangle_context = &left;
  fake_unlock(s.engine.fake);
  for (int i = 0; i < 200 && left; i++) {
    assert_int_equal(engine_feed_to(&s.engine, s.engine.position + 20, 20), 0);
    usleep(30 * 1000);
  }
  assert_int_equal(left, 0);
  assert_true(engine_status(&s.engine).reconnects >= 2);
  assert_int_equal(engine_status(&s.engine).bad_records, 0);
  check_all_stored(&s);
  finish(&s);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_stalled_daemon_costs_the_stated_wait_once),
      cmocka_unit_test(late_answers_are_waited_for_less_and_less),
      cmocka_unit_test(a_block_waits_in_vain_once),
      cmocka_unit_test(slow_answers_keep_to_the_limit_of_the_block),
      cmocka_unit_test(connecting_to_a_silent_daemon_is_no_sign_of_life),
      cmocka_unit_test(late_answers_are_not_taken_for_others),
      cmocka_unit_test(answers_in_another_order),
      cmocka_unit_test(hanging_up_on_every_append),
      cmocka_unit_test(cut_in_mid_frame),
      cmocka_unit_test(a_flood_of_notifications),
      cmocka_unit_test(answers_that_come_twice),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
