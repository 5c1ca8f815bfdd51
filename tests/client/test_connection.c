// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Daemons that are away, silent, of another version, or hostile.
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "client/clock.h"
#include "client/connection.h"
#include "tests/client/engine.h"
#include "tests/proto/random.h"

static const struct coldkv_client_options quick = {.timeout_ms = 150, .sync_timeout_ms = 300};

static struct fake_counters counters(struct engine *engine) {
  fake_lock(engine->fake);
  struct fake_counters copy = *fake_counters(engine->fake);
  fake_unlock(engine->fake);
  return copy;
}

static void away(void **state) {
  (void)state;
  coldkv_client *client;
  coldkv_model *model;
  coldkv_conv *conv;
  struct engine engine;
  engine_describe(&engine);
  assert_int_equal(coldkv_client_create(&client, "/nonexistent/coldkv.sock", NULL), 0);
  assert_int_equal(coldkv_model_create(&model, client, &engine.description), 0);
  uint64_t began = clock_ms();
  assert_int_equal(coldkv_open(&conv, model, "x", NULL), COLDKV_EUNREACHABLE);
  assert_true(clock_ms() - began < 1000); /* at once: nobody listens */
  assert_non_null(strstr(coldkv_error(), "/nonexistent/coldkv.sock"));
  assert_non_null(strstr(coldkv_error(), "start coldkvd"));
  coldkv_model_destroy(model);
  coldkv_client_destroy(client);
  char path[200];
  memset(path, 'p', sizeof path);
  path[199] = 0;
  assert_int_equal(coldkv_client_create(&client, path, NULL), COLDKV_EARGUMENT);
  assert_null(client);
  coldkv_client_destroy(NULL);
  coldkv_model_destroy(NULL);
}

static void default_path_is_the_environments(void **state) {
  (void)state;
  struct engine engine;
  coldkv_client *client;
  coldkv_model *model;
  coldkv_conv *conv;
  engine_describe(&engine);
  engine_start(&engine, NULL);
  setenv("COLDKV_SOCKET", engine.socket, 1);
  assert_int_equal(coldkv_client_create(&client, NULL, NULL), 0);
  assert_int_equal(coldkv_model_create(&model, client, &engine.description), 0);
  assert_int_equal(coldkv_open(&conv, model, "x", NULL), 0);
  coldkv_close(conv);
  coldkv_model_destroy(model);
  coldkv_client_destroy(client);
  unsetenv("COLDKV_SOCKET");
  engine_finish(&engine);
}

/* Opens the toy conversation and feeds it until lookups happen. */
static void begin(struct engine *engine, const struct coldkv_client_options *options) {
  engine_describe(engine);
  engine_start(engine, options);
  assert_int_equal(engine_open(engine, NULL), 0);
  assert_int_equal(engine_feed_to(engine, 448, 64), 0);
}

static void goes_on_when_the_daemon_dies(void **state) {
  (void)state;
  struct engine engine;
  signal(SIGPIPE, SIG_DFL);
  begin(&engine, NULL);
  uint64_t lookups = engine_status(&engine).lookups;
  assert_true(lookups && engine_status(&engine).connected);
  fake_stop(engine.fake, false);
  uint64_t began = clock_ms();
  assert_int_equal(engine_feed_to(&engine, 1000, 16), 0);
  assert_true(clock_ms() - began < 5000); /* nothing to wait for */
  struct coldkv_status status = engine_status(&engine);
  assert_false(status.connected);
  assert_int_equal(status.lookups_missed, status.lookups - lookups);
  assert_true(status.lookups_missed > 20);
  fake_start(engine.fake);
  usleep(1100 * 1000); /* longer than the longest pause between attempts */
  assert_int_equal(engine_feed_to(&engine, 1064, 64), 0);
  assert_true(engine_status(&engine).connected);
  assert_int_equal(engine_status(&engine).reconnects, 1);
  assert_int_equal(engine_status(&engine).lookups_missed, status.lookups_missed);
  engine_finish(&engine);
}

/* A daemon that takes requests and never answers costs one wait, then shorter and shorter shares of the time. */
static void silent_daemons_are_not_waited_for_again(void **state) {
  (void)state;
  struct engine engine;
  begin(&engine, &quick);
  fake_lock(engine.fake)->mute_lookups = true;
  fake_unlock(engine.fake);
  uint64_t began = clock_ms(), missed = engine_status(&engine).lookups_missed, sent = counters(&engine).lookups;
  assert_int_equal(engine_feed_to(&engine, engine.position + 20, 1), 0);
  assert_true(clock_ms() - began < 20 * 2 * 150); /* 40 lookups of 150 ms would be 6 s */
  assert_int_equal(engine_status(&engine).lookups_missed, missed + 40);
  assert_true(counters(&engine).lookups - sent < 20);
  fake_lock(engine.fake)->mute_lookups = false;
  fake_unlock(engine.fake);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  usleep(1000 * 1000); /* the pause after the last wait */
  missed = engine_status(&engine).lookups_missed;
  assert_int_equal(engine_feed_to(&engine, engine.position + 64, 64), 0);
  assert_int_equal(engine_status(&engine).lookups_missed, missed);
  engine_finish(&engine);
}

/* Who looks for answers before it sleeps gets them, and waits for silent daemons no longer than others do. */
static void waits_without_sleeping(void **state) {
  (void)state;
  static const struct coldkv_client_options awake = {.timeout_ms = 150, .sync_timeout_ms = 300, .spin_us = 50000};
  struct engine engine;
  begin(&engine, &awake);
  assert_true(engine_status(&engine).lookups > 0);
  assert_int_equal(engine_status(&engine).lookups_missed, 0);
  fake_lock(engine.fake)->mute_lookups = true;
  fake_unlock(engine.fake);
  uint64_t began = clock_ms();
  assert_int_equal(engine_feed_to(&engine, engine.position + 1, 1), 0);
  assert_true(clock_ms() - began >= 150 && clock_ms() - began < 1000); /* not just while it is awake */
  engine_finish(&engine);
}

/* The time awake is a part of the wait, also where it is all of it. */
static void waits_once(void **state) {
  (void)state;
  struct engine engine;
  struct connection c;
  engine_describe(&engine);
  engine_start(&engine, NULL);
  assert_int_equal(connection_init(&c, engine.socket, 1000, NULL), 0);
  for (int i = 0; i < 100 && c.state != LINK_UP; i++)
    connection_pump(&c, 100);
  assert_int_equal(c.state, LINK_UP);
  for (c.spin_us = 250000; c.spin_us <= 1000000; c.spin_us *= 4) {
    uint64_t began = clock_ms();
    connection_pump(&c, 500);
    assert_in_range(clock_ms() - began, 499, c.spin_us == 250000 ? 720 : 950);
  }
  connection_finish(&c);
  engine_finish(&engine);
}

static void a_daemon_that_never_says_hello(void **state) {
  (void)state;
  struct engine engine;
  engine_describe(&engine);
  engine_start(&engine, &quick);
  fake_lock(engine.fake)->mute = true;
  fake_unlock(engine.fake);
  fake_stop(engine.fake, false);
  fake_start(engine.fake);
  uint64_t began = clock_ms();
  int result = engine_open(&engine, NULL);
  assert_true(result == COLDKV_ETIMEOUT || result == COLDKV_EUNREACHABLE);
  assert_in_range(clock_ms() - began, 100, 2000);
  engine_finish(&engine);
}

static void count_reply(void *context, uint64_t tag, const msgpack_object *result, const struct error *error) {
  assert_true((result == NULL) == (error != NULL));
  *(uint64_t *)context += tag;
}

/* Requests that nobody waits for any more hold their places until they are answered, but not for ever. */
static void abandoned_requests(void **state) {
  (void)state;
  struct engine engine;
  struct connection c;
  struct msg_name name = {.name = span_str("x")};
  uint64_t replies = 0;
  engine_describe(&engine);
  engine_start(&engine, NULL);
  assert_int_equal(connection_init(&c, engine.socket, 1000, NULL), 0);
  assert_int_equal(connection_send(&c, METHOD_INFO, &name, count_reply, &replies, 1, NULL), -ERR_UNREACHABLE);
  for (int i = 0; i < 100 && c.state != LINK_UP; i++)
    connection_pump(&c, 100);
  assert_int_equal(c.state, LINK_UP);
  fake_lock(engine.fake)->mute = true;
  fake_unlock(engine.fake);
  for (uint32_t i = 0; i < LIMIT_REQUESTS_PER_CONNECTION_MAX; i++)
    assert_int_equal(connection_send(&c, METHOD_INFO, &name, count_reply, &replies, 1, NULL), 0);
  assert_int_equal(connection_send(&c, METHOD_INFO, &name, count_reply, &replies, 1, NULL), -ERR_LIMIT);
  connection_pump(&c, 10);
  assert_int_equal(c.state, LINK_UP);
  connection_forget(&c, count_reply, &c); /* another context */
  connection_pump(&c, 10);
  assert_int_equal(c.state, LINK_UP);
  connection_forget(&c, count_reply, &replies);
  connection_pump(&c, 10);
  assert_int_equal(c.state, LINK_DOWN);
  assert_int_equal(c.pending_count, 0);
  assert_int_equal(replies, 0);
  connection_finish(&c);
  engine_finish(&engine);
}

/* Everybody who waits hears that the connection was lost. */
static void lost_connections_are_told(void **state) {
  (void)state;
  struct engine engine;
  struct connection c;
  struct msg_name name = {.name = span_str("x")};
  uint64_t replies = 0;
  engine_describe(&engine);
  engine_start(&engine, NULL);
  assert_int_equal(connection_init(&c, engine.socket, 1000, NULL), 0);
  for (int i = 0; i < 100 && c.state != LINK_UP; i++)
    connection_pump(&c, 100);
  fake_lock(engine.fake)->mute = true;
  fake_unlock(engine.fake);
  for (uint32_t i = 0; i < 5; i++)
    assert_int_equal(connection_send(&c, METHOD_INFO, &name, count_reply, &replies, 1, NULL), 0);
  connection_pump(&c, 0);
  fake_stop(engine.fake, false);
  for (int i = 0; i < 100 && c.state == LINK_UP; i++)
    connection_pump(&c, 100);
  assert_int_equal(c.state, LINK_DOWN);
  assert_int_equal(replies, 5);
  fake_start(engine.fake);
  connection_finish(&c);
  engine_finish(&engine);
}

static void another_protocol_version(void **state) {
  (void)state;
  struct engine engine;
  engine_describe(&engine);
  engine_start(&engine, NULL);
  fake_lock(engine.fake)->protocol = PROTOCOL_VERSION + 1;
  fake_unlock(engine.fake);
  fake_stop(engine.fake, false);
  fake_start(engine.fake);
  assert_int_equal(engine_open(&engine, NULL), COLDKV_EVERSION);
  assert_non_null(strstr(coldkv_error(), "protocol 2"));
  engine_finish(&engine);
}

/* --- hostile answers ---------------------------------------------------------------------------------------------- */

enum trick { FLIP, CUT, GROW, NOISE, SWAP, TRICKS };

struct hostility {
  struct random random;
  enum trick trick;
  enum method_id method; /* only its answers; METHOD_COUNT: all */
  uint32_t one_in;       /* answers */
  uint64_t tricks;
};

static void mangle(void *context, enum method_id method, uint8_t *data, size_t *size, size_t capacity) {
  struct hostility *h = context;
  if ((h->method != METHOD_COUNT && method != h->method) || random_below(&h->random, h->one_in))
    return;
  h->tricks++;
  uint64_t at = random_below(&h->random, *size), other = random_below(&h->random, *size);
  switch (h->trick) {
  case FLIP: /* often in the headers, where it hurts */
    if (random_below(&h->random, 2))
      at = random_below(&h->random, *size < 64 ? *size : 64);
    data[at] ^= (uint8_t)(1u << random_below(&h->random, 8));
    break;
  case CUT:
    *size = at;
    break;
  case GROW:
    random_fill(&h->random, data + *size, capacity - *size);
    *size = capacity;
    break;
  case NOISE:
    random_fill(&h->random, data, *size < 100 ? *size : 100);
    break;
  case SWAP: { /* a run of bytes from elsewhere in the answer */
    uint64_t run = random_below(&h->random, *size - (at > other ? at : other) + 1);
    memmove(data + at, data + other, run);
    break;
  }
  case TRICKS:
    break;
  }
}

/* Feeds what coldkv_resume says, right or wrong. */
static void resume_blindly(struct engine *engine) {
  uint32_t ids[COLDKV_BLOCK_MAX];
  int n;
  while ((n = coldkv_resume(engine->conv, ids)) > 0)
    if (engine_forward(engine, ids, (uint32_t)n, NULL))
      return;
}

/* One life with a hostile daemon: whatever is answered, every call returns, and with a known code. */
static void live(struct engine *engine, struct hostility *h) {
  struct fake_orders *orders = fake_lock(engine->fake);
  orders->mangle = mangle;
  orders->mangle_context = h;
  fake_unlock(engine->fake);
  for (int again = 0; again < 3; again++) {
    int result = engine_open(engine, NULL);
    assert_in_range(-result, 0, 29);
    for (int i = 0; i < 3 && !result; i++) {
      resume_blindly(engine);
      struct coldkv_status status = engine_status(engine);
      if (status.resume_left || status.tokens > 1200)
        break;
      engine->position = status.tokens;
      coldkv_set_slots(engine->conv, 0);
      result = engine_feed_to(engine, engine->position + 120, 60);
      coldkv_set_slots(engine->conv, 8);
      if (!result)
        result = engine_feed_to(engine, engine->position + 10, 5);
      assert_in_range(-result, 0, 29);
    }
    if (engine->conv) {
      result = coldkv_sync(engine->conv);
      assert_in_range(-result, 0, 29);
    }
    coldkv_close(engine->conv);
    engine->conv = NULL;
    coldkv_model_destroy(engine->model); /* forgets what was frozen */
    assert_int_equal(coldkv_model_create(&engine->model, engine->client, &engine->description), 0);
  }
  orders = fake_lock(engine->fake);
  orders->mangle = NULL;
  fake_unlock(engine->fake);
}

static void hostile(enum method_id method, uint32_t one_in, uint32_t lives) {
  static const struct coldkv_client_options impatient = {.timeout_ms = 20, .sync_timeout_ms = 40};
  uint64_t tricks = 0;
  for (int trick = 0; trick < TRICKS; trick++)
    for (uint32_t i = 0; i < lives; i++) {
      struct hostility h = {.random = {1000u * (uint32_t)trick + i}, .trick = (enum trick)trick, .method = method,
                            .one_in = one_in};
      struct engine engine;
      engine_describe(&engine);
      engine.description.layers = 1;
      engine_start(&engine, &impatient);
      live(&engine, &h);
      engine_finish(&engine);
      tricks += h.tricks;
    }
  assert_true(tricks >= lives);
}

static void hostile_lookups(void **state) {
  (void)state;
  hostile(METHOD_LOOKUP, 2, 3);
}

static void hostile_opens(void **state) {
  (void)state;
  hostile(METHOD_OPEN, 2, 2);
  hostile(METHOD_TOKENS, 2, 1);
}

static void hostile_models(void **state) {
  (void)state;
  hostile(METHOD_MODEL_CALIBRATE, 1, 2);
  hostile(METHOD_MODEL_GET, 1, 1);
}

static void hostile_appends(void **state) {
  (void)state;
  hostile(METHOD_APPEND, 3, 2);
}

static void hostile_altogether(void **state) {
  (void)state;
  hostile(METHOD_COUNT, 6, 3);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(away),
      cmocka_unit_test(default_path_is_the_environments),
      cmocka_unit_test(goes_on_when_the_daemon_dies),
      cmocka_unit_test(silent_daemons_are_not_waited_for_again),
      cmocka_unit_test(waits_without_sleeping),
      cmocka_unit_test(waits_once),
      cmocka_unit_test(a_daemon_that_never_says_hello),
      cmocka_unit_test(abandoned_requests),
      cmocka_unit_test(lost_connections_are_told),
      cmocka_unit_test(another_protocol_version),
      cmocka_unit_test(hostile_lookups),
      cmocka_unit_test(hostile_opens),
      cmocka_unit_test(hostile_models),
      cmocka_unit_test(hostile_appends),
      cmocka_unit_test(hostile_altogether),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
