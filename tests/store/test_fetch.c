// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Pages of segments that left memory come back together, by every method; and scan regions are kept within a budget.
#include "tests/store/fixture.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "store/fetch.h"
#include "store/segment.h"

enum { SALT = 9, TOKENS = 2 * 4096 + 10, SEGMENTS = 2, CODES = 40 };
#define SCAN_BYTES ((uint64_t)TINY_BLOCKS * SEGMENT_SCAN_PAGES * SEGMENT_PAGE_BYTES)

struct world {
  char *dir;
  struct archive *archive;
  struct model *model;
  struct conversation *c;
};

static void open_archive(struct world *w, bool create) {
  struct error error;
  w->archive = test_archive(w->dir, NULL);
  w->model = test_model(w->archive, 1);
  assert_ok(test_open(w->archive, "x", w->model, create, &w->c, &error), &error);
  assert_ok(conversation_load(w->c, &error), &error);
}

static void close_archive(struct world *w) {
  conversation_release(w->c);
  model_release(w->model);
  archive_close(w->archive);
}

static int setup(void **state) {
  struct error error;
  struct world *w = calloc(1, sizeof *w);
  assert_non_null(w);
  w->dir = test_directory_make();
  open_archive(w, true);
  test_fill(w->c, TOKENS, SALT);
  assert_ok(conversation_sync(w->c, &error), &error);
  while (conversation_wants_seal(w->c))
    assert_ok(conversation_seal(w->c, &error), &error);
  *state = w;
  return 0;
}

static int teardown(void **state) {
  struct world *w = *state;
  close_archive(w);
  test_directory_remove(w->dir);
  free(w);
  return 0;
}

/* Has the page cache forget what is not mapped of every segment. */
static void forget_segments(const struct world *w) {
  for (unsigned i = 0; i < 256; i++) {
    char name[32];
    snprintf(name, sizeof name, "segments/%02x", i);
    const char *dir = test_path(w->dir, name);
    if (access(dir, F_OK) || !test_count_entries(dir, ""))
      continue;
    int fd = open(test_find(dir, ""), O_RDONLY);
    assert_true(fd >= 0);
    assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    close(fd);
  }
}

/* Has the scan pages checked, which reads them, and by reading ahead maybe more. */
static void touch_scan_pages(struct view *view) {
  struct error error;
  struct record_columns columns;
  for (uint32_t part = 0; part < view_parts(view); part++)
    assert_ok(view_columns(view, part, 1, 0, &columns, &error), &error);
}

/* Asks for some key codes of every part, two on each page, and runs. */
static uint32_t fetch_codes(struct fetch *fetch, struct view *view) {
  struct error error;
  for (uint32_t part = 0; part < view_parts(view); part++) {
    struct record_columns columns;
    assert_ok(view_columns(view, part, 1, 0, &columns, &error), &error);
    for (uint32_t i = 0; i < CODES && i < columns.count; i++) {
      uint32_t entry = columns.count > CODES ? i / 2 * 200 + i % 2 : i; /* 128 codes a page */
      fetch_want(fetch, view, part, columns.k_mag + (size_t)entry * RECORD_K_MAG_BYTES, RECORD_K_MAG_BYTES);
    }
  }
  return fetch_run(fetch);
}

static void check_method(struct world *w, enum fetch_method method) {
  struct error error;
  struct fetch *fetch;
  struct view *view;
  close_archive(w);
  open_archive(w, false);
  assert_ok(fetch_create(&fetch, method, &error), &error);
  assert_ok(view_acquire(w->c, &view, &error), &error);
  touch_scan_pages(view);
  forget_segments(w);
  uint32_t read = fetch_codes(fetch, view);
  if (read == 0 && method != FETCH_NONE)
    print_message("%s: the page cache forgets nothing here\n", fetch_method_name(method));
  else
    assert_int_equal(read, method == FETCH_NONE ? 0 : SEGMENTS * CODES / 2);
  if (method == FETCH_IO_URING)
    assert_int_equal(fetch_codes(fetch, view), 0); /* all there */
  view_release(view);
  fetch_destroy(fetch);
  test_check(w->c, TOKENS, SALT);
}

static void cold_pages_come_back(void **state) {
  check_method(*state, FETCH_ADVISE);
  check_method(*state, FETCH_NONE);
  if (fetch_best() == FETCH_IO_URING)
    check_method(*state, FETCH_IO_URING);
  else
    print_message("io_uring is compiled out or forbidden here\n");
}

static void more_pages_than_the_list_holds(void **state) {
  struct world *w = *state;
  struct error error;
  struct fetch *fetch;
  struct view *view;
  assert_ok(fetch_create(&fetch, fetch_best(), &error), &error);
  assert_ok(view_acquire(w->c, &view, &error), &error);
  struct record_columns columns[2];
  for (uint32_t head = 0; head < 2; head++)
    assert_ok(view_columns(view, 0, head, 0, &columns[head], &error), &error);
  for (uint32_t i = 0; i < 20000; i++) /* never the same page twice in a row */
    fetch_want(fetch, view, 0, columns[i % 2].k_mag, RECORD_K_MAG_BYTES);
  assert_in_range(fetch_run(fetch), 0, 20000);
  assert_int_equal(fetch_run(fetch), 0);
  view_release(view);
  fetch_destroy(fetch);
}

static void scan_regions_stay_within_the_budget(void **state) {
  struct world *w = *state;
  struct error error;
  struct view *view;
  assert_ok(view_acquire(w->c, &view, &error), &error);
  const struct archive_counters *counters = archive_counters(w->archive);
  view_keep(view, SCAN_BYTES - 1);
  assert_int_equal(counters->scan_kept_bytes, 0);
  view_keep(view, 2 * SCAN_BYTES - 1);
  assert_int_equal(counters->scan_kept_bytes, SCAN_BYTES);
  view_keep(view, 100 * SCAN_BYTES);
  view_keep(view, 100 * SCAN_BYTES);
  assert_int_equal(counters->scan_kept_bytes, SEGMENTS * SCAN_BYTES);
  view_release(view);
  test_check(w->c, TOKENS, SALT);
}

static void what_was_kept_is_given_back(void **state) {
  struct world *w = *state;
  struct error error;
  struct view *view;
  assert_ok(view_acquire(w->c, &view, &error), &error);
  view_keep(view, 100 * SCAN_BYTES);
  view_release(view);
  assert_int_not_equal(archive_counters(w->archive)->scan_kept_bytes, 0);
  conversation_release(w->c);
  assert_int_equal(archive_counters(w->archive)->scan_kept_bytes, 0);
  assert_ok(test_open(w->archive, "x", w->model, false, &w->c, &error), &error);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(cold_pages_come_back, setup, teardown),
      cmocka_unit_test_setup_teardown(more_pages_than_the_list_holds, setup, teardown),
      cmocka_unit_test_setup_teardown(scan_regions_stay_within_the_budget, setup, teardown),
      cmocka_unit_test_setup_teardown(what_was_kept_is_given_back, setup, teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
