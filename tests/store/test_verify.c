// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/store/fixture.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "store/verify.h"

enum { SALT = 12 };

struct world {
  char *dir, *segment, *meta, *closed, *open, *model;
};

static char *keep(const char *text) {
  char *kept = strdup(text);
  assert_non_null(kept);
  return kept;
}

/* A conversation with a segment, a closed log and an open one. */
static int setup(void **state) {
  struct error error;
  struct conversation *c;
  struct world *w = calloc(1, sizeof *w);
  assert_non_null(w);
  w->dir = test_directory_make();
  struct archive *archive = test_archive(w->dir, NULL);
  struct model *model = test_model(archive, 1);
  assert_ok(test_open(archive, "x", model, true, &c, &error), &error);
  test_fill(c, 4096, SALT);
  test_fill(c, 8300, SALT);
  assert_ok(conversation_sync(c, &error), &error);
  test_fill(c, 8400, SALT);
  assert_ok(conversation_seal(c, &error), &error);
  conversation_release(c);
  model_release(model);
  archive_close(archive);
  w->model = keep(test_find(test_path(w->dir, "models"), ""));
  const char *conversation = test_find(test_path(w->dir, "conversations"), "");
  w->meta = keep(test_path(conversation, "meta"));
  w->closed = keep(test_path(conversation, "log-00000000000000004096"));
  w->open = keep(test_path(conversation, "log-00000000000000008192"));
  for (unsigned i = 0; i < 256; i++) {
    char name[32];
    snprintf(name, sizeof name, "segments/%02x", i);
    if (test_count_entries(test_path(w->dir, name), ""))
      w->segment = keep(test_find(test_path(w->dir, name), ""));
  }
  *state = w;
  return 0;
}

static int teardown(void **state) {
  struct world *w = *state;
  test_directory_remove(w->dir);
  free(w->model);
  free(w->meta);
  free(w->closed);
  free(w->open);
  free(w->segment);
  free(w);
  return 0;
}

struct told {
  unsigned problems, steps;
  char path[256], what[512];
  int stop;
};

static int take(void *context, const char *path, const char *what, const struct verify_report *report) {
  struct told *told = context;
  assert_true(report->files_done <= report->files_total);
  if (!what) {
    told->steps++;
    return told->stop;
  }
  if (told->problems++)
    return told->stop;
  snprintf(told->path, sizeof told->path, "%s", path);
  snprintf(told->what, sizeof told->what, "%s", what);
  return told->stop;
}

static struct verify_report verify(struct world *w, struct told *told) {
  struct error error;
  struct verify_report report;
  *told = (struct told){0};
  assert_ok(verify_archive(NULL, w->dir, &report, take, told, &error), &error);
  assert_int_equal(report.bad, told->problems);
  return report;
}

static void a_good_archive_has_no_problems(void **state) {
  struct world *w = *state;
  struct told told;
  struct verify_report report = verify(w, &told);
  assert_int_equal(report.bad, 0);
  assert_int_equal(report.segments, 1);
  assert_int_equal(report.logs, 2);
  assert_int_equal(report.metas, 1);
  assert_int_equal(report.models, 1);
  assert_int_equal(report.records, 8400 * TINY_BLOCKS);
  assert_int_equal(report.files_total, 6);
  assert_int_equal(report.files_done, 6);
  uint64_t bytes = test_file_size(w->segment) + test_file_size(w->closed) + test_file_size(w->open) +
                   test_file_size(w->meta) + test_file_size(w->model);
  assert_int_equal(report.bytes_done, bytes);
  assert_true(told.steps > 2);
}

/* One flipped bit anywhere is told, with the right file; and nothing is changed by looking. */
static void each_file_is_looked_at(void **state) {
  struct world *w = *state;
  const char *const paths[] = {w->model, w->meta, w->closed, w->segment};
  for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
    struct told told;
    uint64_t size = test_file_size(paths[i]);
    for (uint64_t part = 1; part < 8; part++) {
      test_flip_bit(paths[i], size * part + 3); /* byte size * part / 8 */
      verify(w, &told);
      if (!told.problems)
        fail_msg("%s, part %u: not found", paths[i], (unsigned)part);
      if (paths[i] != w->meta && !strstr(paths[i], told.path))
        fail_msg("%s: told of %s: %s", paths[i], told.path, told.what);
      assert_null(strstr(told.path, w->dir)); /* relative */
      test_flip_bit(paths[i], size * part + 3);
    }
  }
  struct told told;
  assert_int_equal(verify(w, &told).bad, 0);
}

static void missing_and_foreign_files_are_told(void **state) {
  struct world *w = *state;
  struct told told;
  char *kept = keep(test_path(w->dir, "kept"));
  char *const paths[] = {w->segment, w->closed, w->meta};
  for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
    assert_int_equal(rename(paths[i], kept), 0);
    assert_true(verify(w, &told).bad > 0);
    assert_int_equal(rename(kept, paths[i]), 0);
  }
  assert_int_equal(rename(w->open, kept), 0); /* only the catalog knows that there was more */
  assert_int_equal(verify(w, &told).bad, 1);
  assert_non_null(strstr(told.path, "/log-00000000000000004096")); /* where the tokens end now */
  assert_non_null(strstr(told.what, "8400 were durable"));
  assert_int_equal(rename(kept, w->open), 0);
  char other[4096];
  snprintf(other, sizeof other, "%.*s/%s", (int)(strrchr(w->segment, '/') - w->segment), w->segment,
           "00000000000000000000000000000000.seg");
  test_tree_copy(w->segment, other);
  assert_int_equal(verify(w, &told).bad, 0); /* its tokens are in another segment: the next start may remove it */
  assert_int_equal(unlink(other), 0);
  free(kept);
}

static void a_torn_open_log_is_no_problem(void **state) {
  struct world *w = *state;
  struct told told;
  test_tree_remove(test_path(w->dir, "catalog"));
  assert_int_equal(truncate(w->open, (off_t)test_file_size(w->open) - 1), 0);
  assert_int_equal(verify(w, &told).bad, 0);
  assert_int_equal(truncate(w->closed, (off_t)test_file_size(w->closed) - 1), 0);
  assert_int_equal(verify(w, &told).bad, 1);
}

static void the_catalog_is_compared(void **state) {
  struct world *w = *state;
  struct told told;
  char *path = keep(test_path(w->dir, "catalog/data.mdb"));
  uint64_t size = test_file_size(path);
  assert_int_equal(truncate(path, (off_t)size / 2), 0);
  assert_int_equal(verify(w, &told).bad, 1);
  assert_string_equal(told.path, "catalog");
  free(path);
  test_tree_remove(test_path(w->dir, "catalog"));
  assert_int_equal(verify(w, &told).bad, 0);

  archive_close(test_archive(w->dir, NULL)); /* makes it again, and marks it */
  char *kept = keep(test_path(w->dir, "kept"));
  assert_int_equal(rename(w->model, kept), 0);
  assert_int_equal(verify(w, &told).bad, 2); /* the conversation misses it, and so does the catalog */
  assert_non_null(strstr(told.what, "has no file"));
  assert_int_equal(rename(kept, w->model), 0);
  free(kept);
}

static void a_check_can_be_stopped(void **state) {
  struct world *w = *state;
  struct error error;
  struct verify_report report;
  struct told told = {.stop = 9};
  assert_int_equal(verify_archive(NULL, w->dir, &report, take, &told, &error), 9);
  assert_int_equal(told.steps, 1);
  assert_error(verify_archive(NULL, test_path(w->dir, "models"), &report, NULL, NULL, &error), ERR_BAD_PARAMS, &error);
}

static unsigned child_sleeps_us;

static void sleep_in_child(void) {
  if (child_sleeps_us)
    usleep(child_sleeps_us);
}

/* The check of the catalog goes on in a child, which may take long: meanwhile there is progress, and it can be stopped.
 * (That a child is slow showed first under load, as a crash.) */
static void a_slow_catalog_is_waited_for(void **state) {
  struct world *w = *state;
  struct told quick, slow;
  verify(w, &quick);
  child_sleeps_us = 700000;
  verify(w, &slow);
  child_sleeps_us = 0;
  assert_int_equal(slow.problems, 0);
  assert_true(slow.steps > quick.steps);
}

static void single_files_are_told_apart(void **state) {
  struct world *w = *state;
  struct error error;
  struct verify_report report;
  struct told told = {0};
  assert_ok(verify_file(NULL, w->segment, &report, take, &told, &error), &error);
  assert_int_equal(report.segments, 1);
  assert_ok(verify_file(NULL, w->closed, &report, take, &told, &error), &error);
  assert_int_equal(report.logs, 1);
  assert_int_equal(report.records, 4096 * TINY_BLOCKS);
  assert_ok(verify_file(NULL, w->meta, &report, take, &told, &error), &error);
  assert_int_equal(report.metas, 1);
  assert_ok(verify_file(NULL, w->model, &report, take, &told, &error), &error);
  assert_int_equal(report.models, 1);
  assert_int_equal(told.problems, 0);
  assert_ok(verify_file(NULL, test_path(w->dir, "LOCK"), &report, take, &told, &error), &error);
  assert_int_equal(told.problems, 1);
  assert_error(verify_file(NULL, test_path(w->dir, "none"), &report, take, &told, &error), ERR_IO, &error);
}

int main(void) {
  pthread_atfork(NULL, NULL, sleep_in_child);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(a_good_archive_has_no_problems, setup, teardown),
      cmocka_unit_test_setup_teardown(each_file_is_looked_at, setup, teardown),
      cmocka_unit_test_setup_teardown(missing_and_foreign_files_are_told, setup, teardown),
      cmocka_unit_test_setup_teardown(a_torn_open_log_is_no_problem, setup, teardown),
      cmocka_unit_test_setup_teardown(the_catalog_is_compared, setup, teardown),
      cmocka_unit_test_setup_teardown(a_check_can_be_stopped, setup, teardown),
      cmocka_unit_test_setup_teardown(a_slow_catalog_is_waited_for, setup, teardown),
      cmocka_unit_test_setup_teardown(single_files_are_told_apart, setup, teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
