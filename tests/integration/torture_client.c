// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A client streams tokens through a bad line to a daemon that is killed, stopped, continued and restarted at random.
// At the end the archive holds exactly the tokens handed over, byte for byte, once each, and no call took longer than
// coldkv.h says. Argument: coldkvd. COLDKV_TORTURE_SECONDS=N runs for so long, COLDKV_TORTURE_SEED=N differently.
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "client/clock.h"
#include "client/conversation.h"
#include "tests/client/engine.h"
#include "tests/client/proxy.h"
#include "tests/integration/read_back.h"
#include "tests/proto/random.h"

/* What the client is told, and what a busy machine may add to a wait. */
enum { TIMEOUT_MS = 250, BLOCK_TIMEOUT_MS = 600, SYNC_TIMEOUT_MS = 1200, SLACK_MS = 750 };
enum { SECONDS_DEFAULT = 12, BACKLOG_BYTES = 1500000, PAUSE_US = 8000 };

static const char *daemon_path;

struct torture {
  struct engine engine;
  struct random chaos, random; /* of the thread that makes trouble; of the client */
  struct proxy *proxy;
  char data[96], line[96], log[96];
  pthread_t thread;
  pthread_mutex_t mutex;
  bool over;
  pid_t daemon; /* 0: none runs */
  uint64_t seed, until_ms, troubles, restarts, stops;
  uint64_t full, reopened, synced, sync_ms_max;
};

/* --- the daemon and who torments it ------------------------------------------------------------------------------- */

static void start_daemon(struct torture *t) {
  static const char *const modes[] = {"always", "interval", "none"};
  const char *mode = modes[random_below(&t->chaos, 3)];
  const char *arguments[] = {daemon_path, "--data", t->data, "--socket", t->engine.socket, "--durability", mode,
                             "--interval-ms", "50", NULL};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 1, t->log, O_WRONLY | O_CREAT | O_APPEND, 0600);
  posix_spawn_file_actions_adddup2(&actions, 1, 2);
  assert_int_equal(posix_spawn(&t->daemon, daemon_path, &actions, NULL, (char **)(uintptr_t)arguments, environ), 0);
  posix_spawn_file_actions_destroy(&actions);
}

static void end_daemon(struct torture *t, int number) {
  kill(t->daemon, number);
  waitpid(t->daemon, NULL, 0);
  t->daemon = 0;
}

static void sleep_below(struct torture *t, uint32_t ms) { usleep((useconds_t)random_below(&t->chaos, ms) * 1000); }

/* Two bad lines out of three hang up after some bytes, one answers late. */
static void spoil_line(struct torture *t) {
  struct proxy_orders orders = {0};
  switch (random_below(&t->chaos, 4)) {
  case 0: orders.cut_up = 1 + random_below(&t->chaos, 60000); break;
  case 1: orders.cut_down = 1 + random_below(&t->chaos, 20000); break;
  case 2: orders.delay_ms = (uint32_t)random_below(&t->chaos, 2 * TIMEOUT_MS); break;
  default: orders.stall = true; break;
  }
  *proxy_lock(t->proxy) = orders;
  proxy_unlock(t->proxy);
  sleep_below(t, 600);
  *proxy_lock(t->proxy) = (struct proxy_orders){0};
  proxy_unlock(t->proxy);
}

static void make_trouble(struct torture *t) {
  uint64_t kind = t->troubles++ < 5 ? t->troubles % 5 : random_below(&t->chaos, 5); /* each at least once */
  switch (kind) {
  case 0: /* stopped: it takes connections, and says nothing */
    kill(t->daemon, SIGSTOP);
    t->stops++;
    usleep((TIMEOUT_MS + SLACK_MS + 200) * 1000); /* a client that waits too long is seen to */
    sleep_below(t, 700);
    kill(t->daemon, SIGCONT);
    break;
  case 1:
  case 2:
    end_daemon(t, SIGKILL);
    sleep_below(t, 700);
    start_daemon(t);
    t->restarts++;
    break;
  case 3: /* politely, and back at once */
    end_daemon(t, SIGTERM);
    start_daemon(t);
    t->restarts++;
    break;
  default:
    spoil_line(t);
    break;
  }
}

static bool is_over(struct torture *t) {
  pthread_mutex_lock(&t->mutex);
  bool over = t->over;
  pthread_mutex_unlock(&t->mutex);
  return over;
}

static void *torment(void *context) {
  struct torture *t = context;
  while (!is_over(t)) {
    make_trouble(t);
    sleep_below(t, t->troubles < 5 || random_below(&t->chaos, 2) ? 300 : 2000); /* now and then the backlog goes out */
  }
  return NULL;
}

/* --- the client --------------------------------------------------------------------------------------------------- */

static int timed_sync(struct torture *t) {
  uint64_t began = clock_ms();
  int result = coldkv_sync(t->engine.conv);
  uint64_t took = clock_ms() - began;
  if (took > t->sync_ms_max)
    t->sync_ms_max = took;
  t->synced += result == 0;
  return result;
}

static void check_passing(int result) {
  if (result && result != COLDKV_EUNREACHABLE && result != COLDKV_ETIMEOUT && result != COLDKV_EBUSY)
    fail_msg("%d: %s", result, coldkv_error());
}

static void open_again(struct torture *t) {
  int result = -1;
  for (int i = 0; i < 500 && result; i++) {
    result = engine_open(&t->engine, NULL);
    check_passing(result);
    usleep(result ? 20000 : 0);
  }
  assert_int_equal(result, 0);
  coldkv_set_slots(t->engine.conv, 4);
}

/* The process ends and another one goes on: all that was synced is still there. */
static void reopen(struct torture *t) {
  uint64_t tokens = t->engine.position;
  coldkv_close(t->engine.conv);
  t->engine.conv = NULL;
  open_again(t);
  int result = 0;
  for (int i = 0; i < 2000 && (result = engine_resume(&t->engine)) == COLDKV_EBACKLOG; i++)
    usleep(5000);
  assert_true(result >= 0);
  assert_int_equal(engine_status(&t->engine).tokens, tokens);
  t->engine.position = tokens;
  t->reopened++;
}

static void stream(struct torture *t) {
  while (clock_ms() < t->until_ms) {
    uint32_t block = 1 + (uint32_t)random_below(&t->random, random_below(&t->random, 4) ? 8 : 64);
    int result = engine_feed_to(&t->engine, t->engine.position + block, 64);
    if (result == COLDKV_EBACKLOG) {
      t->full++;
    } else if (result) {
      fail_msg("%d: %s", result, coldkv_error());
    } else if (random_below(&t->random, 200) == 0) {
      result = timed_sync(t);
      check_passing(result);
      if (!result && random_below(&t->random, 2))
        reopen(t);
    }
    usleep(PAUSE_US);
  }
}

/* --- all of it ---------------------------------------------------------------------------------------------------- */

static void set_up(struct torture *t) {
  const char *temporary = getenv("TMPDIR"), *seed = getenv("COLDKV_TORTURE_SEED");
  static const struct coldkv_client_options options = {.timeout_ms = TIMEOUT_MS, .block_timeout_ms = BLOCK_TIMEOUT_MS,
                                                       .sync_timeout_ms = SYNC_TIMEOUT_MS,
                                                       .backlog_bytes = BACKLOG_BYTES};
  struct engine *engine = &t->engine;
  engine_describe(engine);
  snprintf(engine->directory, sizeof engine->directory, "%s/coldkv-torture-XXXXXX",
           temporary && strlen(temporary) < 32 ? temporary : "/tmp");
  assert_non_null(mkdtemp(engine->directory));
  snprintf(engine->socket, sizeof engine->socket, "%s/socket", engine->directory);
  snprintf(t->data, sizeof t->data, "%s/data", engine->directory);
  snprintf(t->line, sizeof t->line, "%s/line", engine->directory);
  snprintf(t->log, sizeof t->log, "%s/log", engine->directory);
  t->seed = seed ? strtoull(seed, NULL, 10) : clock_ms();
  t->chaos.state = t->seed;
  t->random.state = ~t->seed;
  pthread_mutex_init(&t->mutex, NULL);
  start_daemon(t);
  t->proxy = proxy_create(t->line, engine->socket);
  engine_connect(engine, t->line, &options);
  open_again(t);
}

static void calm_down(struct torture *t) {
  pthread_mutex_lock(&t->mutex);
  t->over = true;
  pthread_mutex_unlock(&t->mutex);
  pthread_join(t->thread, NULL);
}

static void tear_down(struct torture *t) {
  char command[160];
  end_daemon(t, SIGTERM);
  proxy_destroy(t->proxy);
  pthread_mutex_destroy(&t->mutex);
  snprintf(command, sizeof command, "rm -r '%s'", t->engine.directory);
  assert_int_equal(system(command), 0);
}

static struct torture torture;
static struct read_back found;

static void nothing_lost_nothing_twice(void **state) {
  (void)state;
  struct torture *t = &torture;
  const char *seconds = getenv("COLDKV_TORTURE_SECONDS");
  set_up(t);
  t->until_ms = clock_ms() + 1000 * (seconds ? strtoull(seconds, NULL, 10) : SECONDS_DEFAULT);
  print_message("seed %llu, in %s\n", (unsigned long long)t->seed, t->engine.directory);
  assert_int_equal(pthread_create(&t->thread, NULL, torment, t), 0);
  stream(t);
  calm_down(t);
  int result = -1;
  for (int i = 0; i < 50 && result; i++) {
    result = timed_sync(t);
    check_passing(result);
  }
  assert_int_equal(result, 0);
  struct coldkv_status status = engine_status(&t->engine);
  coldkv_close(t->engine.conv);
  t->engine.conv = NULL;
  end_daemon(t, SIGKILL); /* what was acknowledged is on disk, not in its memory */
  start_daemon(t);
  read_back(&t->engine, status.stored, &found);
  print_message("%llu stops, %llu cuts, backlog full %llu times, %llu syncs, reopened %llu times, lookups missed %llu "
                "of %llu, longest sync %llu ms\n",
                (unsigned long long)t->stops, (unsigned long long)proxy_counters(t->proxy).cuts,
                (unsigned long long)t->full, (unsigned long long)t->synced, (unsigned long long)t->reopened,
                (unsigned long long)status.lookups_missed, (unsigned long long)status.lookups,
                (unsigned long long)t->sync_ms_max);
  assert_int_equal(found.lost, 0);
  assert_int_equal(found.duplicated, 0);
  assert_int_equal(found.tokens, status.stored);
  assert_int_equal(found.ahead, t->engine.position - status.stored);
  assert_true(t->restarts >= 3 && t->stops >= 1 && status.stored > 1000);
  assert_true(t->engine.call_ms_max <= TIMEOUT_MS + SLACK_MS);
  assert_true(t->engine.block_ms_max <= BLOCK_TIMEOUT_MS + SLACK_MS);
  assert_true(t->sync_ms_max <= SYNC_TIMEOUT_MS + SLACK_MS);
  coldkv_model_destroy(t->engine.model);
  coldkv_client_destroy(t->engine.client);
  tear_down(t);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(nothing_lost_nothing_twice)};
  if (argc != 2) {
    fprintf(stderr, "usage: torture_client COLDKVD\n");
    return 2;
  }
  daemon_path = argv[1];
  setvbuf(stdout, NULL, _IOLBF, 0); /* the last line is the last */
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  if (failed && torture.daemon > 0) {
    pthread_mutex_lock(&torture.mutex);
    kill(torture.daemon, SIGKILL);
    fprintf(stderr, "the archive and the log are left in %s\n", torture.engine.directory);
  }
  fflush(stderr);
  printf("torture: client restarts=%llu tokens=%llu lost=%llu duplicated=%llu blocked_ms_max=%llu limit_ms=%d\n",
         (unsigned long long)torture.restarts, (unsigned long long)found.tokens, (unsigned long long)found.lost,
         (unsigned long long)found.duplicated, (unsigned long long)torture.engine.call_ms_max, TIMEOUT_MS);
  return failed != 0;
}
