// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/store/fixture.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/verify.h"
#include "tests/store/fault.h"

enum { SALT = 6, TOKENS = 3 * 4096 + 50 };

struct world {
  char *dir;
  struct archive *archive;
  struct model *model;
  struct conversation *c;
};

static int setup(void **state) {
  struct error error;
  struct world *w = calloc(1, sizeof *w);
  assert_non_null(w);
  fault_reset();
  w->dir = test_directory_make();
  w->archive = test_archive(w->dir, &io_fault);
  w->model = test_model(w->archive, 1);
  assert_ok(test_open(w->archive, "x", w->model, true, &w->c, &error), &error);
  test_fill(w->c, TOKENS, SALT);
  *state = w;
  return 0;
}

static int teardown(void **state) {
  struct world *w = *state;
  conversation_release(w->c);
  model_release(w->model);
  archive_close(w->archive);
  test_directory_remove(w->dir);
  free(w);
  return 0;
}

static unsigned count_logs(struct world *w) {
  return test_count_entries(test_find(test_path(w->dir, "conversations"), ""), "log-");
}

static unsigned count_segments(struct world *w) {
  unsigned count = 0;
  for (unsigned i = 0; i < 256; i++) {
    char name[32];
    snprintf(name, sizeof name, "segments/%02x", i);
    count += test_count_entries(test_path(w->dir, name), "");
  }
  return count;
}

static void sealed_tokens_are_the_same(void **state) {
  struct world *w = *state;
  struct error error;
  struct view *before, *after;
  uint8_t record[RECORD_BYTES], wanted[RECORD_BYTES];
  assert_ok(view_acquire(w->c, &before, &error), &error);
  uint64_t tail = archive_counters(w->archive)->tail_bytes;
  assert_int_equal(count_logs(w), 4);
  for (unsigned i = 1; i <= 3; i++) {
    assert_true(conversation_wants_seal(w->c));
    assert_ok(conversation_seal(w->c, &error), &error);
    assert_int_equal(count_logs(w), 4 - i);
    assert_int_equal(count_segments(w), i);
    test_check(w->c, TOKENS, SALT);
  }
  assert_false(conversation_wants_seal(w->c));
  assert_ok(conversation_seal(w->c, &error), &error); /* nothing to do */
  assert_int_equal(archive_counters(w->archive)->segments_sealed, 3);
  assert_int_equal(archive_counters(w->archive)->segments_mapped, 3);
  assert_int_equal(archive_counters(w->archive)->tail_bytes, tail); /* the old view holds on to it */
  assert_ok(view_records(before, 1, 0, 4095, 1, record, &error), &error);
  test_record(wanted, 1, 0, 4095, SALT);
  assert_memory_equal(record, wanted, RECORD_BYTES);
  assert_ok(view_acquire(w->c, &after, &error), &error);
  assert_int_equal(view_parts(before), 4);
  assert_int_equal(view_parts(after), 4);
  view_release(before);
  view_release(after);
  assert_int_equal(archive_counters(w->archive)->tail_bytes, tail / 4);
  conversation_release(w->c);
  assert_ok(test_open(w->archive, "x", NULL, false, &w->c, &error), &error);
  test_check(w->c, TOKENS, SALT);
  uint32_t ahead[LIMIT_AHEAD_MAX];
  assert_int_equal(conversation_ahead(w->c, ahead), 3);
}

static void the_log_goes_last(void **state) {
  struct world *w = *state;
  struct error error;
  fault_reset();
  assert_ok(conversation_seal(w->c, &error), &error);
  /* mkdir, its entry; segment: file, size, data (w...), sync, name, entry; next log: open, sync, entry; meta: file,
   * data, sync, name, entry; unlink. The order of letters is the format's promise. */
  char order[256];
  size_t size = 0;
  for (size_t i = 0; i < fault.order_size; i++)
    if (size == 0 || fault.order[i] != 'w' || order[size - 1] != 'w')
      order[size++] = fault.order[i];
  order[size] = 0;
  assert_string_equal(order, "mfotwdrfodfowdrfu");
}

static void a_failed_seal_can_be_tried_again(void **state) {
  struct world *w = *state;
  struct error error;
  fault_reset();
  assert_ok(conversation_seal(w->c, &error), &error);
  unsigned calls = fault.counted;
  unsigned sealed = 1;
  for (unsigned at = 1; at < calls && sealed < 3; at++) {
    fault_reset();
    fault.mode = FAULT_FAIL_ONCE;
    fault.at = at;
    fault.error = ENOSPC;
    /* all but the syncs, which end all writing */
    fault.only = ~(1u << FAULT_FDATASYNC | 1u << FAULT_FSYNC);
    int result = conversation_seal(w->c, &error);
    bool struck = fault.counted >= at;
    fault_reset();
    if (!struck)
      break;
    if (result)
      assert_error(result, ERR_NO_SPACE, &error);
    else
      sealed++; /* the unlink of the log: it is removed at the next start */
    assert_false(archive_read_only(w->archive));
    test_check(w->c, TOKENS, SALT);
    assert_int_equal(count_segments(w), sealed);
  }
  while (conversation_wants_seal(w->c))
    assert_ok(conversation_seal(w->c, &error), &error);
  test_check(w->c, TOKENS, SALT);
  conversation_release(w->c);
  model_release(w->model);
  archive_close(w->archive);
  w->archive = test_archive(w->dir, &io_fault);
  w->model = test_model(w->archive, 1);
  assert_ok(test_open(w->archive, "x", NULL, false, &w->c, &error), &error);
  test_check(w->c, TOKENS, SALT);
  assert_int_equal(count_logs(w), 1);
  assert_int_equal(count_segments(w), 3);
}

static void sealing_goes_on_when_unloaded_meanwhile(void **state) {
  struct world *w = *state;
  struct error error;
  assert_ok(conversation_unload(w->c, &error), &error);
  assert_false(conversation_wants_seal(w->c));
  assert_ok(conversation_seal(w->c, &error), &error);
  assert_int_equal(count_segments(w), 0);
  assert_ok(conversation_load(w->c, &error), &error);
  assert_true(conversation_wants_seal(w->c));
  assert_ok(conversation_seal(w->c, &error), &error);
  assert_ok(conversation_unload(w->c, &error), &error);
  test_check(w->c, TOKENS, SALT);
}

static int no_problem(void *context, const char *path, const char *what, const struct verify_report *report) {
  (void)context;
  (void)report;
  if (what)
    fail_msg("%s: %s", path, what);
  return 0;
}

static void a_half_sealed_archive_verifies_while_open(void **state) {
  struct world *w = *state;
  struct error error;
  struct verify_report report;
  assert_ok(conversation_seal(w->c, &error), &error);
  assert_ok(verify_archive(NULL, w->dir, &report, no_problem, NULL, &error), &error);
  assert_int_equal(report.bad, 0);
  assert_int_equal(report.segments, 1);
  assert_int_equal(report.logs, 3);
  assert_int_equal(report.metas, 1);
  assert_int_equal(report.models, 1);
  assert_int_equal(report.records, TOKENS * TINY_BLOCKS);
  assert_int_equal(report.files_done, report.files_total);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(sealed_tokens_are_the_same, setup, teardown),
      cmocka_unit_test_setup_teardown(the_log_goes_last, setup, teardown),
      cmocka_unit_test_setup_teardown(a_failed_seal_can_be_tried_again, setup, teardown),
      cmocka_unit_test_setup_teardown(sealing_goes_on_when_unloaded_meanwhile, setup, teardown),
      cmocka_unit_test_setup_teardown(a_half_sealed_archive_verifies_while_open, setup, teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
