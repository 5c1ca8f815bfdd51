// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Whose lookup is next: the schedule alone, with a clock of the test's own and threads that do nothing.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/connection.h"
#include "daemon/request.h"

enum { THREADS = 2, OUT_MAX = 2 * THREADS, CONNECTIONS = 6, REQUESTS = 256, SMALL = 1000, LARGE = 2000000 };

static struct options options = {.threads = THREADS};
static struct server server;
static struct connection connections[CONNECTIONS];
static struct request requests[REQUESTS], *given[REQUESTS];
static uint32_t request_count, given_count, dropped;

/* What reads.c calls instead of the daemon's own. */
void request_lookup(struct request *request) { given[given_count++] = request; }

void request_finish(struct request *request) {
  assert_int_equal(request->error.code, ERR_SHUTTING_DOWN);
  dropped++;
}

static int begin(void **state) {
  (void)state;
  memset(&server, 0, sizeof server);
  memset(connections, 0, sizeof connections);
  memset(requests, 0, sizeof requests);
  request_count = given_count = dropped = 0;
  server.options = &options;
  server.loop.time = 1000000;
  reads_init(&server);
  for (int i = 0; i < CONNECTIONS; i++) {
    connections[i].server = &server;
    reads_init_queue(&connections[i].reads);
  }
  return 0;
}

static void put(int connection, uint64_t cost) {
  struct request *request = &requests[request_count++];
  *request = (struct request){.server = &server, .connection = &connections[connection], .cost = cost};
  reads_put(request);
}

/* The read that was given to the threads as number `at`, from 0, is back. */
static void done(uint32_t at) {
  assert_true(at < given_count);
  reads_done(given[at]);
}

static void check_given(uint32_t at, int connection, bool heavy) {
  assert_true(at < given_count);
  assert_ptr_equal(given[at]->connection, &connections[connection]);
  assert_int_equal(given[at]->heavy, heavy);
}

/* Two connections are active, so that nobody is alone. */
static void two_active(void) {
  put(4, 1);
  put(5, 1);
  done(0);
  done(1);
  given_count = 0;
}

static void threads_get_little_more_than_they_work_on(void **state) {
  (void)state;
  for (int i = 0; i < OUT_MAX + 3; i++)
    put(0, SMALL);
  assert_int_equal(given_count, OUT_MAX);
  for (uint32_t i = 0; i < 3; i++) {
    done(i);
    assert_int_equal(given_count, OUT_MAX + i + 1);
    assert_ptr_equal(given[OUT_MAX + i], &requests[OUT_MAX + i]);
  }
  done(3);
  assert_int_equal(given_count, OUT_MAX + 3);
}

static void enough_is_read_ahead(void **state) {
  (void)state;
  for (int i = 0; i < OUT_MAX; i++)
    put(0, SMALL);
  int waiting = 0;
  while (!reads_enough(&connections[0].reads)) {
    put(0, SMALL);
    assert_true(++waiting < 16);
  }
  assert_true(waiting > 0);
  done(0);
  assert_false(reads_enough(&connections[0].reads));
}

static void who_used_least_goes_first(void **state) {
  (void)state;
  two_active();
  for (int i = 0; i < OUT_MAX + 20; i++)
    put(0, SMALL);
  put(1, SMALL);
  put(2, 2 * SMALL);
  put(2, SMALL);
  done(0);
  check_given(OUT_MAX, 1, false); /* as little as 2, and came before it */
  done(1);
  check_given(OUT_MAX + 1, 2, false);
  done(2);
  check_given(OUT_MAX + 2, 2, false); /* has used 2000, 0 has used 4000 */
  done(3);
  check_given(OUT_MAX + 3, 0, false);
}

static void equals_take_turns(void **state) {
  (void)state;
  two_active();
  for (int i = 0; i < OUT_MAX; i++)
    put(3, SMALL);
  for (int round = 0; round < 3; round++)
    for (int connection = 0; connection < 2; connection++)
      put(connection, SMALL);
  for (uint32_t i = 0; i < 6; i++) {
    done(i);
    check_given(OUT_MAX + i, (int)(i % 2), false);
  }
}

static void large_reads_have_threads_of_their_own(void **state) {
  (void)state;
  two_active();
  put(0, LARGE);
  put(0, LARGE);
  check_given(0, 0, true);
  assert_int_equal(given_count, 1); /* one of a connection at a time */
  put(1, LARGE);
  put(2, LARGE);
  assert_int_equal(given_count, 2); /* and as many as there are threads */
  for (int i = 0; i < OUT_MAX; i++) {
    put(3, SMALL);
    check_given(2 + (uint32_t)i, 3, false); /* all others still have theirs */
  }
  done(0);
  check_given(2 + OUT_MAX, 2, true); /* 2 has used nothing yet, 0 has */
  done(1);
  check_given(3 + OUT_MAX, 0, true);
}

static void much_of_the_small_is_large(void **state) {
  (void)state;
  two_active();
  put(0, SMALL);
  check_given(0, 0, false);
  done(0);
  connections[0].reads.used = 2 * LARGE; /* rather than thousands of them */
  put(0, SMALL);
  check_given(1, 0, true);
  put(0, SMALL);
  assert_int_equal(given_count, 2); /* it has one out */
  put(1, SMALL);
  check_given(2, 1, false);
  server.loop.time += 500; /* that forgives most of it */
  done(1);
  check_given(3, 0, false);
}

static void alone_nothing_is_large(void **state) {
  (void)state;
  two_active();
  put(0, LARGE);
  check_given(0, 0, true);
  done(0);
  server.loop.time += 2000;
  put(0, LARGE);
  put(0, LARGE);
  check_given(1, 0, false);
  check_given(2, 0, false);
}

static void who_comes_to_a_quiet_daemon_is_alone(void **state) {
  (void)state;
  put(0, LARGE);
  put(0, LARGE);
  check_given(0, 0, false);
  check_given(1, 0, false);
  done(0);
  done(1);
  reads_drop(&connections[0]); /* closed */
  put(1, LARGE);
  check_given(2, 1, false);
  done(2);
  put(2, LARGE); /* now there are two */
  check_given(3, 2, true);
  put(1, LARGE);
  check_given(4, 1, true);
}

static void a_closed_connection_waits_for_nothing(void **state) {
  (void)state;
  for (int i = 0; i < OUT_MAX + 3; i++)
    put(0, SMALL);
  put(1, SMALL);
  connections[0].closed = true;
  reads_drop(&connections[0]);
  assert_int_equal(dropped, 3);
  put(0, SMALL);
  assert_int_equal(dropped, 4);
  done(0);
  check_given(OUT_MAX, 1, false);
  for (uint32_t i = 1; i <= OUT_MAX; i++)
    done(i);
  assert_int_equal(given_count, OUT_MAX + 1);
  assert_int_equal(server.reads.out, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(threads_get_little_more_than_they_work_on, begin),
      cmocka_unit_test_setup(enough_is_read_ahead, begin),
      cmocka_unit_test_setup(who_used_least_goes_first, begin),
      cmocka_unit_test_setup(equals_take_turns, begin),
      cmocka_unit_test_setup(large_reads_have_threads_of_their_own, begin),
      cmocka_unit_test_setup(much_of_the_small_is_large, begin),
      cmocka_unit_test_setup(alone_nothing_is_large, begin),
      cmocka_unit_test_setup(who_comes_to_a_quiet_daemon_is_alone, begin),
      cmocka_unit_test_setup(a_closed_connection_waits_for_nothing, begin),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
