// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What an engine may do to its process: fork, close the standard descriptors, have signals. And a daemon that comes
// back with another archive than it went with.
#include <setjmp.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "client/clock.h"
#include "client/connection.h"
#include "tests/client/engine.h"

static void begin(struct engine *engine, const struct coldkv_client_options *options) {
  engine_describe(engine);
  engine_start(engine, options);
  assert_int_equal(engine_open(engine, NULL), 0);
  assert_int_equal(engine_feed_to(engine, 448, 64), 0);
  assert_int_equal(coldkv_sync(engine->conv), 0);
}

/* --- fork --------------------------------------------------------------------------------------------------------- */

/* What a child must see; its exit status says where it did not. No assertion in here: the tests go on in the parent. */
static int try_in_child(struct engine *engine) {
  coldkv_conv *other;
  uint32_t id = 1;
  if (coldkv_begin(engine->conv, &id, 1) != COLDKV_ESTATE || !strstr(coldkv_error(), "forked"))
    return 1;
  if (coldkv_sync(engine->conv) != COLDKV_ESTATE)
    return 2;
  if (coldkv_open(&other, engine->model, "other", NULL) != COLDKV_ESTATE)
    return 3;
  struct coldkv_status status = engine_status(engine);
  if (status.connected || status.trouble != COLDKV_ESTATE)
    return 4;
  coldkv_close(engine->conv);
  coldkv_model_destroy(engine->model);
  coldkv_client_destroy(engine->client);
  return 0;
}

static int wait_for(pid_t child) {
  int status;
  assert_int_equal(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + status;
}

static void a_fork_leaves_the_parents_connection_alone(void **state) {
  (void)state;
  struct engine engine;
  begin(&engine, NULL);
  pid_t child = fork();
  if (child == 0)
    _exit(try_in_child(&engine));
  assert_int_equal(wait_for(child), 0);
  assert_int_equal(engine_feed_to(&engine, 1000, 64), 0);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  assert_int_equal(engine_status(&engine).reconnects, 0);
  assert_int_equal(engine_status(&engine).lookups_missed, 0);
  engine_check_stored(&engine, engine_status(&engine).stored);
  fake_lock(engine.fake);
  assert_int_equal(fake_counters(engine.fake)->closes, 0);
  assert_int_equal(fake_counters(engine.fake)->bad_messages, 0);
  fake_unlock(engine.fake);
  engine_finish(&engine);
}

static void spoil(void *context, enum method_id method, uint8_t *data, size_t *size, size_t capacity) {
  bool *once = context;
  (void)capacity;
  if (method == METHOD_LOOKUP && *once)
    memset(data, 0xc1, *size); /* no MessagePack */
  *once = *once && method != METHOD_LOOKUP;
}

/* A child that keeps its copy of the socket keeps no lease from the parent: neither when the connection is dropped and
 * made again, nor when the client is destroyed and another one made. */
static void a_child_that_lives_on_holds_no_lease(void **state) {
  (void)state;
  struct engine engine;
  struct coldkv_client_options quick = {.timeout_ms = 300, .sync_timeout_ms = 2000};
  bool once = true;
  begin(&engine, &quick);
  pid_t child = fork();
  if (child == 0) {
    alarm(20); /* no longer than the test, should that fail */
    for (;;)
      pause();
  }
  struct fake_orders *orders = fake_lock(engine.fake);
  orders->mangle = spoil;
  orders->mangle_context = &once;
  fake_unlock(engine.fake);
  assert_int_equal(engine_feed_to(&engine, 520, 20), 0);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  assert_int_equal(engine_status(&engine).reconnects, 1);
  coldkv_close(engine.conv);
  coldkv_model_destroy(engine.model);
  coldkv_client_destroy(engine.client);
  engine.client = NULL;
  engine.model = NULL;
  engine_connect(&engine, engine.socket, &quick);
  assert_int_equal(engine_open(&engine, NULL), 0);
  kill(child, SIGKILL);
  wait_for(child);
  engine_finish(&engine);
}

/* --- descriptors -------------------------------------------------------------------------------------------------- */

static int connect_without_standard_descriptors(const char *socket) {
  struct connection c;
  for (int fd = 0; fd <= 2; fd++)
    close(fd);
  if (connection_init(&c, socket, 1000, NULL))
    return 1;
  for (int i = 0; i < 100 && c.state != LINK_UP; i++)
    connection_pump(&c, 100);
  if (c.state != LINK_UP)
    return 2;
  for (int fd = 0; fd <= 2; fd++)
    if (fcntl(fd, F_GETFD) >= 0 || errno != EBADF)
      return 10 + fd;
  int flags = fcntl(c.fd, F_GETFD);
  connection_finish(&c);
  return flags & FD_CLOEXEC ? 0 : 3;
}

static void closed_standard_descriptors_stay_closed(void **state) {
  (void)state;
  struct engine engine;
  engine_describe(&engine);
  engine_start(&engine, NULL);
  pid_t child = fork();
  if (child == 0)
    _exit(connect_without_standard_descriptors(engine.socket));
  assert_int_equal(wait_for(child), 0);
  engine_finish(&engine);
}

/* --- signals ------------------------------------------------------------------------------------------------------ */

static volatile sig_atomic_t alarms, pipes;

static void count_alarm(int number) {
  (void)number;
  alarms++;
}

static void count_pipe(int number) {
  (void)number;
  pipes++;
}

/* A signal every millisecond, with a handler that interrupts every call that sleeps. */
static void alarm_every_ms(long microseconds) {
  struct sigaction action = {.sa_handler = count_alarm};
  struct itimerval timer = {.it_interval.tv_usec = microseconds, .it_value.tv_usec = microseconds};
  sigaction(SIGALRM, &action, NULL);
  setitimer(ITIMER_REAL, &timer, NULL);
}

static void signals_cut_nothing_short(void **state) {
  (void)state;
  struct engine engine;
  struct coldkv_client_options options = {.timeout_ms = 300, .sync_timeout_ms = 500};
  begin(&engine, &options);
  alarm_every_ms(1000);
  assert_int_equal(engine_feed_to(&engine, 700, 30), 0);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  assert_int_equal(engine_status(&engine).lookups_missed, 0);
  assert_int_equal(engine_status(&engine).reconnects, 0);
  fake_lock(engine.fake)->mute = true;
  fake_unlock(engine.fake);
  engine.call_ms_max = 0;
  assert_int_equal(engine_feed_to(&engine, 701, 1), 0);
  assert_in_range(engine.call_ms_max, 295, 800); /* it did wait, and not for ever */
  uint64_t began = clock_ms();
  assert_int_equal(coldkv_sync(engine.conv), COLDKV_ETIMEOUT);
  assert_in_range(clock_ms() - began, 495, 1000);
  alarm_every_ms(0);
  assert_true(alarms > 50);
  fake_lock(engine.fake)->mute = false;
  fake_unlock(engine.fake);
  engine_finish(&engine);
}

/* A daemon that goes while bytes for it are queued: no SIGPIPE, though the engine does not ignore it. */
static void no_sigpipe(void **state) {
  (void)state;
  struct engine engine;
  struct sigaction action = {.sa_handler = count_pipe}, old;
  engine_describe(&engine);
  engine.description.layers = 16;
  engine_start(&engine, NULL);
  assert_int_equal(engine_open(&engine, NULL), 0);
  coldkv_set_slots(engine.conv, 0);
  sigaction(SIGPIPE, &action, &old);
  for (int i = 0; i < 8; i++) {
    assert_int_equal(engine_feed_to(&engine, engine.position + 320, 64), 0); /* more than a socket takes */
    fake_stop(engine.fake, false);
    assert_int_equal(engine_feed_to(&engine, engine.position + 64, 64), 0);
    fake_start(engine.fake);
    usleep(50 * 1000);
  }
  sigaction(SIGPIPE, &old, NULL);
  assert_int_equal(pipes, 0);
  assert_true(engine_status(&engine).reconnects >= 3);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  engine_check_stored(&engine, engine_status(&engine).stored);
  engine_finish(&engine);
}

/* --- another archive ---------------------------------------------------------------------------------------------- */

enum replacement { NO_CONVERSATION, SAME_NAME, OTHER_MODEL, OLDER };

static void come_back_with(struct engine *engine, enum replacement what) {
  fake_stop(engine->fake, false);
  fake_lock(engine->fake);
  struct fake_conversation *c = fake_conversation(engine->fake, "toy");
  switch (what) {
  case NO_CONVERSATION: memcpy(c->name, "else", 5); break;
  case SAME_NAME: memset(c->id, 7, sizeof c->id); break;
  case OTHER_MODEL: memset(c->model->id, 9, sizeof c->model->id); break;
  case OLDER: c->count = c->durable = 64; break;
  }
  fake_unlock(engine->fake);
  fake_start(engine->fake);
}

static void another_archive_is_said(void **state) {
  (void)state;
  static const int codes[] = {COLDKV_ENOCONVERSATION, COLDKV_ECONFLICT, COLDKV_ENOMODEL, COLDKV_ECONFLICT};
  for (int what = NO_CONVERSATION; what <= OLDER; what++)
    for (int syncs = 0; syncs < 2; syncs++) {
      struct engine engine;
      begin(&engine, NULL);
      uint64_t appends;
      fake_lock(engine.fake);
      appends = fake_counters(engine.fake)->appends;
      fake_unlock(engine.fake);
      come_back_with(&engine, (enum replacement)what);
      int result = 0;
      for (int i = 0; i < 100 && !result; i++) {
        result = syncs ? coldkv_sync(engine.conv) : engine_feed_to(&engine, engine.position + 64, 64);
        usleep(1000);
      }
      assert_int_equal(result, codes[what]);
      assert_non_null(strstr(coldkv_error(), "'toy'"));
      assert_non_null(strstr(coldkv_error(), "open it again"));
      struct coldkv_status status = engine_status(&engine);
      assert_false(status.connected);
      assert_int_equal(status.trouble, codes[what]);
      assert_string_equal(status.last_error, coldkv_error());
      fake_lock(engine.fake); /* nothing was stored behind a gap */
      assert_int_equal(fake_counters(engine.fake)->appends, appends);
      fake_unlock(engine.fake);
      assert_true(coldkv_sync(engine.conv) < 0 && coldkv_begin(engine.conv, (uint32_t[]){1}, 1) < 0); /* for good */
      engine_finish(&engine);
    }
}

/* --- status ------------------------------------------------------------------------------------------------------- */

static void the_status_says_what_is_wrong(void **state) {
  (void)state;
  struct engine engine;
  struct coldkv_client_options options = {.backlog_bytes = 100000, .timeout_ms = 200};
  begin(&engine, &options);
  struct coldkv_status status = engine_status(&engine);
  assert_int_equal(status.trouble, 0);
  assert_string_equal(status.last_error, "");
  assert_int_equal(status.backlog_bytes, 0);
  assert_int_equal(status.backlog_bytes_max, 100000);
  assert_in_range(status.waited_ms_max, 0, 200);
  struct fake_orders *orders = fake_lock(engine.fake);
  orders->failing_appends = 1000;
  orders->append_error = ERR_NO_SPACE;
  fake_unlock(engine.fake);
  while (engine_status(&engine).trouble == 0 && engine.position < 2000)
    assert_int_equal(engine_feed_to(&engine, engine.position + 64, 64), 0);
  status = engine_status(&engine);
  assert_int_equal(status.trouble, COLDKV_ENOSPACE);
  assert_true(status.connected);
  assert_string_equal(status.last_error, "told to refuse this append");
  assert_true(status.backlog > 0 && status.backlog_bytes > status.backlog * 416);
  fake_lock(engine.fake)->failing_appends = 0;
  fake_unlock(engine.fake);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  assert_int_equal(engine_status(&engine).trouble, 0);
  assert_string_equal(engine_status(&engine).last_error, "told to refuse this append"); /* it is over, and was */
  fake_stop(engine.fake, false);
  int result = 0;
  while (!result && engine.position < 3000)
    result = engine_feed_to(&engine, engine.position + 64, 64);
  assert_int_equal(result, COLDKV_EBACKLOG);
  status = engine_status(&engine);
  assert_int_equal(status.trouble, COLDKV_EUNREACHABLE);
  assert_non_null(strstr(status.last_error, engine.socket));
  assert_in_range(status.backlog_bytes, 100000 - 64 * 420 - 1000, 100000);
  fake_start(engine.fake);
  assert_int_equal(coldkv_sync(engine.conv), 0);
  engine_check_stored(&engine, engine_status(&engine).stored);
  fake_lock(engine.fake)->mute_lookups = true;
  fake_unlock(engine.fake);
  assert_int_equal(engine_feed_to(&engine, engine.position + 1, 1), 0);
  assert_in_range(engine_status(&engine).waited_ms_max, 195, 1000);
  assert_non_null(strstr(engine_status(&engine).last_error, "in time"));
  engine_finish(&engine);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_fork_leaves_the_parents_connection_alone),
      cmocka_unit_test(a_child_that_lives_on_holds_no_lease),
      cmocka_unit_test(closed_standard_descriptors_stay_closed),
      cmocka_unit_test(signals_cut_nothing_short),
      cmocka_unit_test(no_sigpipe),
      cmocka_unit_test(another_archive_is_said),
      cmocka_unit_test(the_status_says_what_is_wrong),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
