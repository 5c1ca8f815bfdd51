// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Stops a process at every single I/O call of appends, seals, creations, calibrations and deletions, and looks at what
// the next start finds: everything that was acknowledged, nothing else than what was asked for. What a power cut leaves
// is for test_simdisk.c.
#include "tests/store/fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "store/verify.h"
#include "tests/store/fault.h"

enum { OLD_TOKENS = 4090, SALT = 7 };

/* What the child acknowledged before it ended; shared memory. */
struct progress {
  uint64_t durable;       /* of 'old' */
  uint64_t ahead_durable; /* ids ahead of 'old' */
  uint64_t young;         /* durable tokens of 'young'; made when not 0 */
  bool model, gone, finished;
  bool gone_begun, young_begun;
};

static struct progress *progress;
static char *base, *prepared;

/* Makes the archive that every child begins with: 'old' close to the end of its first log, 'doomed' with a segment. */
static int prepare(void **state) {
  struct error error;
  struct conversation *c;
  (void)state;
  progress = mmap(NULL, sizeof *progress, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  assert_true(progress != MAP_FAILED);
  base = test_directory_make();
  prepared = strdup(test_path(base, "prepared"));
  struct archive *archive = test_archive(prepared, NULL);
  struct model *model = test_model(archive, 1);
  assert_ok(test_open(archive, "old", model, true, &c, &error), &error);
  test_fill(c, OLD_TOKENS, SALT);
  assert_ok(conversation_sync(c, &error), &error);
  conversation_release(c);
  assert_ok(test_open(archive, "doomed", model, true, &c, &error), &error);
  test_fill(c, 4100, SALT);
  assert_ok(conversation_sync(c, &error), &error);
  assert_ok(conversation_seal(c, &error), &error);
  conversation_release(c);
  model_release(model);
  archive_close(archive);
  return 0;
}

static int cleanup(void **state) {
  (void)state;
  munmap(progress, sizeof *progress);
  free(prepared);
  test_directory_remove(base);
  return 0;
}

/* Appends to 'old', over the end of its log, and seals. */
static int work_on_old(struct archive *archive, struct error *error) {
  struct conversation *c;
  bool wrote;
  int result = test_open(archive, "old", NULL, false, &c, error);
  if (result)
    return result;
  result = test_append(c, OLD_TOKENS, 2, 11, SALT, &wrote, error);
  if (!result)
    result = conversation_sync(c, error);
  if (!result) {
    progress->durable = OLD_TOKENS + 2;
    progress->ahead_durable = 11;
    result = test_append(c, OLD_TOKENS + 2, 18, 9, SALT, &wrote, error); /* over the border, and not synced */
  }
  if (!result)
    result = conversation_seal(c, error);
  if (!result)
    result = test_append(c, OLD_TOKENS + 20, 5, 6, SALT, &wrote, error);
  if (!result)
    result = test_append(c, OLD_TOKENS + 25, 5, 6, SALT, &wrote, error);
  if (!result)
    result = conversation_sync(c, error);
  if (!result) {
    progress->durable = OLD_TOKENS + 30;
    progress->ahead_durable = 6;
  }
  conversation_release(c);
  return result;
}

static int work_on_young(struct archive *archive, struct error *error) {
  struct conversation *c;
  bool wrote;
  progress->young_begun = true;
  struct model *model;
  int result = test_model_freeze(archive, 2, &model, error);
  if (result)
    return result;
  progress->model = true;
  result = test_open(archive, "young", model, true, &c, error);
  if (!result) {
    result = test_append(c, 0, 10, 0, SALT, &wrote, error);
    if (!result)
      result = conversation_sync(c, error);
    if (!result)
      progress->young = 10;
    io_fault.unlink("nothing"); /* one more place to end at, after the last acknowledgement */
    conversation_release(c);
  }
  model_release(model);
  return result;
}

static void work(const char *dir) {
  struct archive_options options = {.io = &io_fault, .catalog_map_bytes = 64 << 20};
  struct archive *archive;
  struct error error = {0};
  if (archive_open(&archive, dir, &options, &error))
    _exit(1);
  int result = work_on_old(archive, &error);
  if (!result) {
    progress->gone_begun = true;
    result = conversation_delete(archive, TEST_UID, "doomed", &error);
    progress->gone = result == 0;
  }
  if (!result)
    result = work_on_young(archive, &error);
  progress->finished = result == 0;
  archive_close(archive);
  fault.mode = FAULT_NONE;
  fault_reset();
  _exit(result ? 1 : 0);
}

static void check_old(struct archive *archive) {
  struct error error;
  struct conversation *c;
  uint32_t ahead[LIMIT_AHEAD_MAX];
  assert_ok(test_open(archive, "old", NULL, false, &c, &error), &error);
  uint64_t count = conversation_count(c);
  assert_in_range(count, progress->durable, OLD_TOKENS + 30);
  assert_int_equal(conversation_durable(c), count);
  test_check(c, count, SALT);
  uint32_t ahead_count = conversation_ahead(c, ahead);
  for (uint32_t i = 0; i < ahead_count; i++)
    assert_int_equal(ahead[i], test_token_id(count + i, SALT));
  if (count == progress->durable && progress->ahead_durable)
    assert_int_equal(ahead_count, progress->ahead_durable);
  else
    assert_true(ahead_count > 0);
  /* and it goes on: over the border if it has not got there */
  test_fill(c, OLD_TOKENS + 60, SALT);
  assert_ok(conversation_sync(c, &error), &error);
  if (conversation_wants_seal(c))
    assert_ok(conversation_seal(c, &error), &error);
  test_check(c, OLD_TOKENS + 60, SALT);
  conversation_release(c);
}

/* Tells whether 'doomed' is still there. */
static bool check_rest(struct archive *archive) {
  struct error error;
  struct conversation *c;
  struct model *model;
  int result = test_open(archive, "doomed", NULL, false, &c, &error);
  bool doomed = result == 0;
  if (progress->gone || result) {
    assert_error(result, ERR_NO_CONVERSATION, &error);
    assert_true(progress->gone_begun);
  } else {
    test_check(c, 4100, SALT); /* all of it, or nothing */
    conversation_release(c);
  }
  uint8_t fingerprint[LIMIT_FINGERPRINT_BYTES];
  memset(fingerprint, 2, sizeof fingerprint);
  result = model_find(archive, TEST_UID, fingerprint, &model, &error);
  if (progress->model)
    assert_ok(result, &error);
  if (result == 0) {
    assert_true(progress->young_begun);
    result = test_open(archive, "young", model, false, &c, &error);
    if (progress->young)
      assert_ok(result, &error);
    if (result == 0) {
      assert_in_range(conversation_count(c), progress->young, 10);
      test_check(c, conversation_count(c), SALT);
      conversation_release(c);
    }
    model_release(model);
  }
  return doomed;
}

static int show_problem(void *context, const char *path, const char *what, const struct verify_report *report) {
  (void)context;
  (void)report;
  if (what)
    print_error("verify: %s: %s\n", path, what);
  return 0;
}

/* Starts after the crash, looks, stops, verifies. */
static void check_after(const char *dir) {
  struct error error;
  struct verify_report report;
  assert_ok(verify_archive(NULL, dir, &report, show_problem, NULL, &error), &error);
  assert_int_equal(report.bad, 0); /* a crash is no damage */
  struct archive *archive = test_archive(dir, NULL);
  check_old(archive);
  bool doomed = check_rest(archive);
  assert_int_equal(archive_counters(archive)->quarantined, 0);
  archive_close(archive);
  assert_ok(verify_archive(NULL, dir, &report, show_problem, NULL, &error), &error);
  assert_int_equal(report.bad, 0);
  assert_int_equal(test_count_entries(test_path(dir, "conversations"), "deleted-"), 0);
  /* nothing is left over: 'old' was sealed once, and 'doomed' if it is still there */
  unsigned segments = 0;
  for (unsigned i = 0; i < 256; i++) {
    char name[32];
    snprintf(name, sizeof name, "segments/%02x", i);
    segments += test_count_entries(test_path(dir, name), "");
  }
  assert_int_equal(segments, 1 + doomed);
}

/* Runs `what` in a child with the fault at call `at`; false when it was over before. */
static bool in_child(void (*what)(const char *), const char *dir, enum fault_mode mode, unsigned at) {
  int status;
  pid_t pid = fork();
  assert_true(pid >= 0);
  if (pid == 0) {
    fault_reset();
    fault.mode = mode;
    fault.at = at;
    what(dir);
  }
  assert_int_equal(waitpid(pid, &status, 0), pid);
  assert_true(WIFEXITED(status));
  if (WEXITSTATUS(status) && getenv("COLDKV_TEST_VERBOSE"))
    print_message("mode %d, call %u: exit %d\n", (int)mode, at, WEXITSTATUS(status));
  return WEXITSTATUS(status) != 0;
}

static char *fresh_copy(void) {
  char *dir = strdup(test_path(base, "run"));
  memset(progress, 0, sizeof *progress);
  progress->durable = OLD_TOKENS;
  test_tree_remove(dir); /* of a test that failed */
  test_tree_copy(prepared, dir);
  return dir;
}

/* Runs the work with the fault at call `at`; false when the work was over before. */
static bool run_one(enum fault_mode mode, unsigned at) {
  char *dir = fresh_copy();
  bool stopped = in_child(work, dir, mode, at);
  check_after(dir);
  test_tree_remove(dir);
  free(dir);
  return stopped;
}

static void run_all(enum fault_mode mode) {
  unsigned at = 1;
  while (run_one(mode, at))
    at++;
  assert_true(at > 40); /* the work makes more calls than that */
}

static void a_kill_at_any_call(void **state) {
  (void)state;
  run_all(FAULT_KILL);
}

static void a_torn_write_at_any_call(void **state) {
  (void)state;
  run_all(FAULT_TEAR);
}

static void a_disk_that_fails_from_any_call_on(void **state) {
  (void)state;
  run_all(FAULT_FAIL);
}

/* What a start does, which may itself be cut short. */
static void start(const char *dir) {
  struct archive_options options = {.io = &io_fault, .catalog_map_bytes = 64 << 20};
  struct archive *archive;
  struct conversation *c;
  struct error error;
  int result = archive_open(&archive, dir, &options, &error);
  if (result)
    _exit(1);
  result = test_open(archive, "old", NULL, false, &c, &error);
  if (!result)
    conversation_release(c);
  archive_close(archive);
  fault.mode = FAULT_NONE;
  fault_reset();
  _exit(result ? 1 : 0);
}

static void a_second_crash_during_recovery(void **state) {
  (void)state;
  char *dir;
  bool more = true;
  for (unsigned at = 8; more; at += 13) {
    bool second = true;
    for (unsigned then = 1; second && more; then++) {
      dir = fresh_copy();
      more = in_child(work, dir, FAULT_KILL, at);
      second = in_child(start, dir, then % 2 ? FAULT_TEAR : FAULT_KILL, then);
      check_after(dir);
      test_tree_remove(dir);
      free(dir);
    }
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_kill_at_any_call),
      cmocka_unit_test(a_torn_write_at_any_call),
      cmocka_unit_test(a_disk_that_fails_from_any_call_on),
      cmocka_unit_test(a_second_crash_during_recovery),
  };
  if (access("/dev/shm", W_OK) == 0)
    setenv("TMPDIR", "/dev/shm", 0); /* syncs mean nothing here, and hundreds of starts are quicker without a disk */
  return cmocka_run_group_tests(tests, prepare, cleanup);
}
