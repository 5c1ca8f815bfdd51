// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Pages of segments that left memory come back together, by every method; and scan regions are kept within a budget.
#include "tests/store/fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "store/fetch.h"
#include "store/internal.h"

enum {
  SALT = 9,
  TOKENS = 2 * 4096 + 10,
  SEGMENTS = 2,
  CODES = 40,
  WINDOW_BYTES = 64 * SEGMENT_PAGE_BYTES,
  LIST_PAGES = 4096, /* that fetch.c notes at a time */
};
#define SCAN_BYTES ((uint64_t)TINY_BLOCKS * SEGMENT_SCAN_PAGES * SEGMENT_PAGE_BYTES)

struct world {
  char *dir;
  struct archive *archive;
  struct model *model;
  struct conversation *c;
};

/* Calls of mincore, which is taken in place of the C library's. */
static struct {
  unsigned calls, failed;
  bool fail;
} asked;

int mincore(void *address, size_t size, unsigned char *resident) {
  asked.calls++;
  int result = asked.fail ? (errno = EAGAIN, -1) : (int)syscall(SYS_mincore, address, size, resident);
  asked.failed += result != 0;
  return result;
}

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
static void touch_scan_pages(struct view *view, uint32_t layer) {
  struct error error;
  struct record_columns columns;
  for (uint32_t part = 0; part < view_parts(view); part++)
    assert_ok(view_columns(view, part, layer, 0, &columns, &error), &error);
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
  touch_scan_pages(view, 1);
  forget_segments(w);
  uint32_t read = fetch_codes(fetch, view);
  if (read == 0 && method != FETCH_NONE)
    print_message("%s: the page cache forgets nothing here\n", fetch_method_name(method));
  else
    assert_int_equal(read, method == FETCH_NONE ? 0 : SEGMENTS * CODES / 2);
  fetch_begin(fetch);
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

/* A view of an archive that was just opened, whose scan pages were checked, with nothing in memory. */
static struct view *view_cold(struct world *w) {
  struct error error;
  struct view *view;
  close_archive(w);
  open_archive(w, false);
  assert_ok(view_acquire(w->c, &view, &error), &error);
  for (uint32_t layer = 0; layer < TINY_LAYERS; layer++)
    touch_scan_pages(view, layer);
  for (uint32_t part = 0; part < SEGMENTS; part++) { /* a page that is mapped keeps its neighbours */
    const struct segment *segment = view_segment(view, part);
    assert_int_equal(madvise(segment_address(segment), segment_size(segment), MADV_DONTNEED), 0);
  }
  forget_segments(w);
  return view;
}

/* Number i of key codes on CODES pages, which lie in both segments and come in no order. */
static const uint8_t *scattered(struct view *view, uint32_t i, uint32_t *part) {
  struct error error;
  struct record_columns columns;
  uint32_t page = i * 7 % CODES;
  *part = page % SEGMENTS;
  assert_ok(view_columns(view, *part, page % 3 * 9, 0, &columns, &error), &error);
  return columns.k_mag + (size_t)page / 3 * SEGMENT_PAGE_BYTES;
}

/* Asks for the first `count` of them, twice. */
static void want_scattered(struct fetch *fetch, struct view *view, uint32_t count) {
  for (uint32_t i = 0; i < 2 * count; i++) {
    uint32_t part;
    const uint8_t *address = scattered(view, i % count, &part);
    fetch_want(fetch, view, part, address + i, RECORD_K_MAG_BYTES);
  }
}

/* Brings them in, and waits for reads that madvise has only started; returns how many pages were read. */
static uint32_t fetch_scattered(struct fetch *fetch, struct view *view, uint32_t count) {
  want_scattered(fetch, view, count);
  uint32_t read = fetch_run(fetch);
  for (uint32_t i = 0; i < count; i++) {
    uint32_t part;
    uint8_t byte;
    const uint8_t *address = scattered(view, i, &part);
    const struct segment *segment = view_segment(view, part);
    assert_int_equal(pread(segment_fd(segment), &byte, 1, (off_t)segment_offset(segment, address)), 1);
  }
  return read;
}

static void check_once(struct world *w, enum fetch_method method) {
  struct error error;
  struct fetch *fetch;
  struct view *view = view_cold(w);
  assert_ok(fetch_create(&fetch, method, &error), &error);
  uint32_t half = fetch_scattered(fetch, view, CODES / 2);
  fetch_begin(fetch);
  uint32_t read = half + fetch_scattered(fetch, view, CODES);
  if (read == 0)
    print_message("%s: the page cache forgets nothing here\n", fetch_method_name(method));
  else
    assert_int_equal(read, CODES);
  assert_int_equal(half, read / 2);
  forget_segments(w); /* what is not mapped, as a read does not */
  want_scattered(fetch, view, CODES);
  assert_int_equal(fetch_run(fetch), 0); /* nobody has told it to look once more */
  fetch_begin(fetch);
  want_scattered(fetch, view, CODES);
  fetch_begin(fetch);
  assert_int_equal(fetch_run(fetch), 0); /* what was noted is forgotten */
  assert_int_equal(fetch_scattered(fetch, view, CODES), read);
  view_release(view);
  fetch_destroy(fetch);
}

static void each_page_is_read_once(void **state) {
  check_once(*state, FETCH_ADVISE);
  if (fetch_best() == FETCH_IO_URING)
    check_once(*state, FETCH_IO_URING);
}

/* Asks for key codes and values of every record in segments; returns how many pages they have. */
static uint32_t want_all(struct fetch *fetch, struct view *view) {
  struct error error;
  for (uint32_t layer = 0; layer < TINY_LAYERS; layer++)
    for (uint32_t part = 0; part < SEGMENTS; part++) {
      struct record_columns columns;
      assert_ok(view_columns(view, part, layer, 0, &columns, &error), &error);
      fetch_want(fetch, view, part, columns.k_mag, (size_t)SEGMENT_RESCORE_PAGES * SEGMENT_PAGE_BYTES);
      fetch_want(fetch, view, part, columns.v_code, (size_t)SEGMENT_VALUE_PAGES * SEGMENT_PAGE_BYTES);
    }
  return SEGMENTS * TINY_BLOCKS * (SEGMENT_RESCORE_PAGES + SEGMENT_VALUE_PAGES);
}

static void more_pages_than_the_list_holds(void **state) {
  struct world *w = *state;
  struct error error;
  struct fetch *fetch;
  struct view *view = view_cold(w);
  assert_ok(fetch_create(&fetch, fetch_best(), &error), &error);
  uint32_t wanted = want_all(fetch, view), read = fetch_run(fetch);
  assert_true(wanted > LIST_PAGES);
  if (read == 0)
    print_message("the page cache forgets nothing here\n");
  else
    assert_int_equal(read, wanted);
  assert_int_equal(fetch_run(fetch), 0);
  view_release(view);
  fetch_destroy(fetch);
  test_check(w->c, TOKENS, SALT);
}

/* Windows with pages of key codes or values. */
static unsigned windows_of(const struct view *view) {
  unsigned windows = 0;
  for (uint32_t part = 0; part < SEGMENTS; part++) {
    const struct segment *segment = view_segment(view, part);
    size_t first = (size_t)segment_page(segment, SEGMENT_RESCORE, 0, 0) * SEGMENT_PAGE_BYTES;
    windows += (unsigned)((segment_size(segment) - 1) / WINDOW_BYTES - first / WINDOW_BYTES + 1);
  }
  return windows;
}

/* What is in memory costs one question for many pages, none of them about what is not mapped, and no read; where there
 * is no answer, everything is read. */
static void the_kernel_is_asked_for_many_pages_at_once(void **state) {
  struct world *w = *state;
  struct error error;
  struct fetch *fetch;
  struct view *view;
  test_check(w->c, TOKENS, SALT); /* reads all of it */
  assert_ok(fetch_create(&fetch, FETCH_ADVISE, &error), &error);
  assert_ok(view_acquire(w->c, &view, &error), &error);
  asked.calls = asked.failed = 0;
  want_all(fetch, view);
  want_all(fetch, view);
  assert_int_equal(fetch_run(fetch), 0);
  assert_int_equal(asked.failed, 0);
  assert_in_range(asked.calls, windows_of(view), 2 * windows_of(view)); /* some drive each other out */
  fetch_begin(fetch);
  asked.fail = true;
  want_scattered(fetch, view, CODES);
  asked.fail = false;
  assert_int_equal(fetch_run(fetch), CODES);
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
      cmocka_unit_test_setup_teardown(each_page_is_read_once, setup, teardown),
      cmocka_unit_test_setup_teardown(more_pages_than_the_list_holds, setup, teardown),
      cmocka_unit_test_setup_teardown(the_kernel_is_asked_for_many_pages_at_once, setup, teardown),
      cmocka_unit_test_setup_teardown(scan_regions_stay_within_the_budget, setup, teardown),
      cmocka_unit_test_setup_teardown(what_was_kept_is_given_back, setup, teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
