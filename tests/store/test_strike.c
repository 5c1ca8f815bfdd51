// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Every single I/O call of opening, appending, sealing, reading, unloading, loading, deleting, calibrating and
// verifying fails, once or from there on, while the process lives on. A failure is told with the file's path; what
// failed once can be done again, unless a sync failed; what was acknowledged is there, then and after the next start.
// Interrupted calls and short counts are noticed by nobody.
//
// COLDKV_TORTURE_SECONDS=N: every call in every way (else a sample of them), over and over for so long.
#include "tests/store/fixture.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "store/verify.h"
#include "tests/store/strike.h"

enum { OLD_TOKENS = 4090, YOUNG_TOKENS = 10, SALT = 7 };

static char *base, *prepared, *dir;
static uint64_t seed, failed_calls;
static double ends; /* torture until then; 0: the bounded test */

/* What has been acknowledged. */
struct acknowledged {
  uint64_t old, young;
  bool model, gone_asked, gone;
};

static struct acknowledged told;

static int prepare(void **state) {
  struct error error;
  struct conversation *c;
  (void)state;
  base = test_directory_make();
  prepared = strdup(test_path(base, "prepared"));
  dir = strdup(test_path(base, "run"));
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
  free(prepared);
  free(dir);
  test_directory_remove(base);
  print_message("calls failed=%llu\n", (unsigned long long)failed_calls);
  return 0;
}

/* --- one run ------------------------------------------------------------------------------------------------------ */

struct run {
  struct archive *archive;
  struct conversation *c;
  struct model *model;
};

typedef int step_fn(struct run *run, struct error *error);

static void check_sentence(const struct error *error) {
  if (error->code == ERR_READ_ONLY) {
    assert_non_null(strstr(error->text, "check the disk"));
    return;
  }
  if (!strike.no_file && !strstr(error->text, base)) /* the archive is in it, and the directory that names it is it */
    fail_msg("%s failed, and the error names no path: %s", strike.name, error->text);
  assert_true(error->code == ERR_IO || error->code == ERR_NO_SPACE || error->code == ERR_MEMORY);
}

/* Does a step, and again when it failed for a call that would not fail now. False: it cannot be done. */
static bool attempt(struct run *run, step_fn *step) {
  struct error error = {0};
  unsigned before = strike.struck;
  int result = step(run, &error);
  if (!result)
    return true;
  bool read_only = run->archive && archive_read_only(run->archive);
  if (!strike.struck || (before == strike.struck && !read_only))
    fail_msg("failed although no call did: %s", error.text);
  check_sentence(&error);
  if (read_only)
    assert_true(strike.sync || strike.mode == STRIKE_FROM_ON);
  if (strike.mode == STRIKE_FROM_ON || read_only)
    return false;
  assert_ok(step(run, &error), &error);
  return true;
}

static int open_archive(struct run *run, struct error *error) {
  struct archive_options options = {.io = &io_strike, .catalog_map_bytes = 64 << 20};
  return archive_open(&run->archive, dir, &options, error);
}

static int open_old(struct run *run, struct error *error) {
  return test_open(run->archive, "old", NULL, false, &run->c, error);
}

static int append_to(struct run *run, uint64_t end, struct error *error) {
  bool wrote;
  uint64_t at = conversation_count(run->c);
  return at >= end ? 0 : test_append(run->c, at, (uint32_t)(end - at), 6, SALT, &wrote, error);
}

static int append_two(struct run *run, struct error *error) { return append_to(run, OLD_TOKENS + 2, error); }
static int append_over_border(struct run *run, struct error *error) { return append_to(run, OLD_TOKENS + 20, error); }
static int append_more(struct run *run, struct error *error) { return append_to(run, OLD_TOKENS + 30, error); }

static int sync_old(struct run *run, struct error *error) {
  int result = conversation_sync(run->c, error);
  if (!result)
    told.old = conversation_count(run->c);
  return result;
}

static int seal(struct run *run, struct error *error) {
  return conversation_wants_seal(run->c) ? conversation_seal(run->c, error) : 0;
}

static int reload(struct run *run, struct error *error) {
  int result = conversation_unload(run->c, error);
  return result ? result : conversation_load(run->c, error);
}

static int describe(struct run *run, struct error *error) {
  struct conversation_entry entry;
  int result = conversation_describe(run->archive, TEST_UID, "doomed", &entry, error);
  if (!result)
    conversation_entry_finish(&entry);
  return result;
}

static int delete_doomed(struct run *run, struct error *error) {
  told.gone_asked = true;
  int result = conversation_delete(run->archive, TEST_UID, "doomed", error);
  told.gone = result == 0;
  return result;
}

static int calibrate(struct run *run, struct error *error) {
  int result = test_model_freeze(run->archive, 2, &run->model, error);
  told.model |= result == 0;
  return result;
}

static int open_young(struct run *run, struct error *error) {
  return test_open(run->archive, "young", run->model, true, &run->c, error);
}

static int fill_young(struct run *run, struct error *error) {
  int result = append_to(run, YOUNG_TOKENS, error);
  if (!result)
    result = conversation_sync(run->c, error);
  if (!result)
    told.young = YOUNG_TOKENS;
  return result;
}

/* A view reads what it read before, whatever fails below. */
static void read_back(struct run *run) {
  struct error error;
  if (!conversation_loaded(run->c))
    return;
  struct view *view;
  struct record_columns columns;
  assert_ok(view_acquire(run->c, &view, &error), &error);
  for (uint32_t part = 0; part < view_parts(view); part++)
    assert_ok(view_columns(view, part, TINY_LAYERS - 1, 0, &columns, &error), &error);
  view_release(view);
  test_check(run->c, conversation_count(run->c), SALT);
}

static void work_on_old(struct run *run) {
  static step_fn *const steps[] = {append_two, sync_old, append_over_border, seal, append_more, sync_old, reload};
  if (!attempt(run, open_old))
    return;
  for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
    attempt(run, steps[i]);
    read_back(run);
  }
  conversation_release(run->c);
  run->c = NULL;
}

static void work_on_young(struct run *run) {
  if (!attempt(run, calibrate))
    return;
  if (attempt(run, open_young)) {
    attempt(run, fill_young);
    conversation_release(run->c);
  }
  model_release(run->model);
}

/* A check that cannot read says so, in one way or another. */
static void verify_struck(void) {
  struct verify_report report;
  struct error error = {0};
  unsigned before = strike.struck;
  int result = verify_archive(&io_strike, dir, &report, NULL, NULL, &error);
  if (before == strike.struck) {
    assert_ok(result, &error);
    assert_int_equal(report.bad, 0);
  } else if (result) {
    check_sentence(&error);
  }
}

static void work(void) {
  struct run run = {0};
  if (!attempt(&run, open_archive))
    return;
  work_on_old(&run);
  attempt(&run, describe);
  attempt(&run, delete_doomed);
  work_on_young(&run);
  bool writable = !archive_read_only(run.archive);
  archive_close(run.archive);
  if (writable && strike.mode != STRIKE_FROM_ON) { /* nothing is missing of what was asked for */
    assert_int_equal(told.old, OLD_TOKENS + 30);
    assert_int_equal(told.young, YOUNG_TOKENS);
    assert_true(told.gone);
  }
  if (writable)
    verify_struck();
}

/* --- afterwards --------------------------------------------------------------------------------------------------- */

static int show_problem(void *context, const char *path, const char *what, const struct verify_report *report) {
  (void)context;
  (void)report;
  if (what)
    print_error("verify: %s: %s\n", path, what);
  return 0;
}

static void verify_clean(void) {
  struct verify_report report;
  struct error error;
  assert_ok(verify_archive(NULL, dir, &report, show_problem, NULL, &error), &error);
  assert_int_equal(report.bad, 0);
}

static void check_young(struct archive *archive) {
  struct error error;
  struct model *model;
  struct conversation *c;
  uint8_t fingerprint[LIMIT_FINGERPRINT_BYTES];
  memset(fingerprint, 2, sizeof fingerprint);
  int result = model_find(archive, TEST_UID, fingerprint, &model, &error);
  if (told.model)
    assert_ok(result, &error);
  if (result)
    return;
  result = test_open(archive, "young", model, false, &c, &error);
  if (told.young)
    assert_ok(result, &error);
  if (!result) {
    assert_in_range(conversation_count(c), told.young, YOUNG_TOKENS);
    test_check(c, conversation_count(c), SALT);
    conversation_release(c);
  }
  model_release(model);
}

/* The next start finds all that was told, and nothing left over. */
static void check_after(void) {
  struct error error;
  struct conversation *c;
  strike.mode = STRIKE_NONE;
  verify_clean();
  struct archive *archive = test_archive(dir, NULL);
  assert_ok(test_open(archive, "old", NULL, false, &c, &error), &error);
  assert_in_range(conversation_count(c), told.old, OLD_TOKENS + 30);
  test_check(c, conversation_count(c), SALT);
  test_fill(c, OLD_TOKENS + 60, SALT);
  assert_ok(conversation_sync(c, &error), &error);
  if (conversation_wants_seal(c))
    assert_ok(conversation_seal(c, &error), &error);
  conversation_release(c);
  int result = test_open(archive, "doomed", NULL, false, &c, &error);
  bool doomed = result == 0;
  if (!doomed)
    assert_true(told.gone_asked && result == -ERR_NO_CONVERSATION);
  assert_false(doomed && told.gone);
  if (doomed) {
    test_check(c, 4100, SALT);
    conversation_release(c);
  }
  check_young(archive);
  assert_int_equal(archive_counters(archive)->quarantined, 0);
  archive_close(archive);
  verify_clean();
  assert_int_equal(test_count_entries(test_path(dir, "conversations"), "deleted-"), 0);
  unsigned segments = 0;
  for (unsigned i = 0; i < 256; i++) {
    char name[32];
    snprintf(name, sizeof name, "segments/%02x", i);
    segments += test_count_entries(test_path(dir, name), "");
  }
  assert_int_equal(segments, 1 + doomed);
}

/* False when the work was over before the call. */
static bool run_one(enum strike_mode mode, int error, unsigned at) {
  test_tree_remove(dir);
  test_tree_copy(prepared, dir);
  told = (struct acknowledged){.old = OLD_TOKENS};
  strike = (struct strike){.mode = mode, .error = error, .at = at};
  if (getenv("COLDKV_TEST_VERBOSE"))
    print_message("mode %d, errno %d, call %u\n", (int)mode, error, at);
  work();
  bool struck = strike.struck != 0;
  failed_calls += strike.struck;
  check_after();
  return struck;
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* Every call; or every few, beginning at one of the first, which differs from run to run. */
static void run_all(enum strike_mode mode, int error, unsigned step, unsigned least) {
  unsigned at = ends ? 1 : 1 + (unsigned)(seed % step);
  while (run_one(mode, error, at))
    at += ends ? 1 : step;
  assert_true(at > least); /* the work makes more calls than that */
}

static void one_read_or_write_fails(void **state) {
  (void)state;
  run_all(STRIKE_ONCE, EIO, 11, 200);
}

static void all_fail_from_one_on(void **state) {
  (void)state;
  run_all(STRIKE_FROM_ON, EIO, 23, 200);
}

static void one_finds_the_disk_full(void **state) {
  (void)state;
  run_all(STRIKE_ONCE, ENOSPC, 29, 200);
}

static void the_disk_is_full_from_one_on(void **state) {
  (void)state;
  run_all(STRIKE_FROM_ON, ENOSPC, 37, 200);
}

static bool assert_unnoticed(enum strike_mode mode, int error, unsigned at) {
  bool struck = run_one(mode, error, at);
  assert_int_equal(told.old, OLD_TOKENS + 30);
  assert_int_equal(told.young, YOUNG_TOKENS);
  assert_true(told.gone);
  return struck;
}

static void interrupted_calls_and_short_counts_are_unnoticed(void **state) {
  (void)state;
  assert_true(assert_unnoticed(STRIKE_INTERRUPT, EINTR, 0));
  assert_true(strike.struck > 100);
  unsigned at = 1, step = ends ? 1 : 23;
  while (assert_unnoticed(STRIKE_SHORT, 0, at))
    at += step;
  assert_true(at > 50);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(interrupted_calls_and_short_counts_are_unnoticed),
      cmocka_unit_test(one_read_or_write_fails),
      cmocka_unit_test(all_fail_from_one_on),
      cmocka_unit_test(one_finds_the_disk_full),
      cmocka_unit_test(the_disk_is_full_from_one_on),
  };
  if (access("/dev/shm", W_OK) == 0)
    setenv("TMPDIR", "/dev/shm", 0); /* hundreds of starts are quicker without a disk */
  const char *seconds = getenv("COLDKV_TORTURE_SECONDS");
  ends = seconds && atof(seconds) > 0 ? now() + atof(seconds) : 0;
  seed = (uint64_t)time(NULL);
  int failed = 0;
  do
    failed = cmocka_run_group_tests(tests, prepare, cleanup);
  while (!failed && ends && now() < ends);
  if (!failed) /* what was lost or wrong is an assertion that failed */
    printf("torture: strike calls=%llu lost=0 wrong=0\n", (unsigned long long)failed_calls);
  return failed;
}
