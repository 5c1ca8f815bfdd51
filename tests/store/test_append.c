// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/store/fixture.h"

#include <stdlib.h>
#include <string.h>

struct world {
  char *dir;
  struct archive *archive;
  struct model *model;
  struct conversation *conversation;
};

static int setup(void **state) {
  struct error error;
  struct world *w = calloc(1, sizeof *w);
  assert_non_null(w);
  w->dir = test_directory_make();
  w->archive = test_archive(w->dir, NULL);
  w->model = test_model(w->archive, 1);
  assert_ok(test_open(w->archive, "diary", w->model, true, &w->conversation, &error), &error);
  *state = w;
  return 0;
}

static void reopen(struct world *w) {
  struct error error;
  conversation_release(w->conversation);
  model_release(w->model);
  archive_close(w->archive);
  w->archive = test_archive(w->dir, NULL);
  w->model = test_model(w->archive, 1);
  assert_ok(test_open(w->archive, "diary", w->model, false, &w->conversation, &error), &error);
}

static int teardown(void **state) {
  struct world *w = *state;
  conversation_release(w->conversation);
  model_release(w->model);
  archive_close(w->archive);
  test_directory_remove(w->dir);
  free(w);
  return 0;
}

static void appended_tokens_are_seen_and_kept(void **state) {
  struct world *w = *state;
  struct error error;
  bool wrote;
  assert_ok(test_append(w->conversation, 0, 64, 5, 7, &wrote, &error), &error);
  assert_true(wrote);
  assert_int_equal(conversation_durable(w->conversation), 0);
  test_check(w->conversation, 64, 7);
  assert_ok(conversation_sync(w->conversation, &error), &error);
  assert_int_equal(conversation_durable(w->conversation), 64);
  assert_ok(test_append(w->conversation, 64, 1, 5, 7, &wrote, &error), &error);
  reopen(w);
  test_check(w->conversation, 65, 7);
  assert_int_equal(conversation_durable(w->conversation), 65);
  uint32_t ahead[LIMIT_AHEAD_MAX];
  assert_int_equal(conversation_ahead(w->conversation, ahead), 5);
  for (uint32_t i = 0; i < 5; i++)
    assert_int_equal(ahead[i], test_token_id(65 + i, 7));
}

static void a_repeat_changes_nothing(void **state) {
  struct world *w = *state;
  struct error error;
  bool wrote;
  test_fill(w->conversation, 200, 7);
  uint64_t bytes = archive_counters(w->archive)->appended_bytes;
  assert_ok(test_append(w->conversation, 100, 50, 9, 7, &wrote, &error), &error);
  assert_false(wrote);
  assert_ok(test_append(w->conversation, 0, 200, 3, 7, &wrote, &error), &error);
  assert_false(wrote);
  assert_int_equal(archive_counters(w->archive)->appended_bytes, bytes);
  test_check(w->conversation, 200, 7);
}

static void a_partial_repeat_adds_what_is_new(void **state) {
  struct world *w = *state;
  struct error error;
  bool wrote;
  test_fill(w->conversation, 200, 7);
  assert_ok(test_append(w->conversation, 150, 100, 2, 7, &wrote, &error), &error);
  assert_true(wrote);
  test_check(w->conversation, 250, 7);
  reopen(w);
  test_check(w->conversation, 250, 7);
}

static void gaps_conflicts_and_bad_records_are_refused(void **state) {
  struct world *w = *state;
  struct error error;
  bool wrote = true;
  test_fill(w->conversation, 100, 7);
  assert_error(test_append(w->conversation, 101, 1, 0, 7, &wrote, &error), ERR_GAP, &error);
  assert_false(wrote);
  assert_error(test_append(w->conversation, 99, 1, 0, 8, &wrote, &error), ERR_CONFLICT, &error);
  assert_error(test_append(w->conversation, 99, 10, 0, 8, &wrote, &error), ERR_CONFLICT, &error);

  struct test_append append;
  test_append_make(&append, 90, 20, 0, 7);
  uint8_t *records = append.bytes + 80;
  records[5 * TINY_BLOCKS * RECORD_BYTES + 3] ^= 1; /* token 95 differs in a record only */
  assert_error(conversation_append(w->conversation, &append.message, &wrote, &error), ERR_CONFLICT, &error);
  test_append_free(&append);

  test_append_make(&append, 100, 2, 0, 7);
  append.bytes[8 + TINY_BLOCKS * RECORD_BYTES + 50] ^= 1;
  assert_error(conversation_append(w->conversation, &append.message, &wrote, &error), ERR_BAD_RECORD, &error);
  test_append_free(&append);

  test_append_make(&append, 100, 2, 0, 7);
  store_u16(append.bytes + 8 + RECORD_K_SCALE, 0x7c00); /* infinite */
  record_seal(append.bytes + 8, 0, 0, 100);
  assert_error(conversation_append(w->conversation, &append.message, &wrote, &error), ERR_BAD_RECORD, &error);
  append.message.records.size -= RECORD_BYTES;
  assert_error(conversation_append(w->conversation, &append.message, &wrote, &error), ERR_BAD_PARAMS, &error);
  test_append_free(&append);
  test_check(w->conversation, 100, 7);
  reopen(w);
  test_check(w->conversation, 100, 7);
}

static void ahead_ids_alone_make_a_frame(void **state) {
  struct world *w = *state;
  struct error error;
  bool wrote;
  uint32_t ahead[LIMIT_AHEAD_MAX];
  assert_ok(test_append(w->conversation, 0, 0, 10, 7, &wrote, &error), &error);
  assert_true(wrote);
  assert_ok(test_append(w->conversation, 0, 0, 10, 7, &wrote, &error), &error);
  assert_false(wrote);
  reopen(w);
  assert_int_equal(conversation_count(w->conversation), 0);
  assert_int_equal(conversation_ahead(w->conversation, ahead), 10);
  test_fill(w->conversation, 4096, 7);
  assert_ok(test_append(w->conversation, 4096, 0, LIMIT_AHEAD_MAX, 7, &wrote, &error), &error); /* on a full log */
  assert_ok(test_append(w->conversation, 4000, 10, 1, 7, &wrote, &error), &error); /* old: its ahead is out of date */
  assert_false(wrote);
  reopen(w);
  assert_int_equal(conversation_ahead(w->conversation, ahead), LIMIT_AHEAD_MAX);
  assert_int_equal(ahead[LIMIT_AHEAD_MAX - 1], test_token_id(4096 + LIMIT_AHEAD_MAX - 1, 7));
  test_check(w->conversation, 4096, 7);
  assert_false(conversation_wants_seal(w->conversation));
}

static void an_append_may_cross_the_end_of_a_segment(void **state) {
  struct world *w = *state;
  struct error error;
  bool wrote;
  test_fill(w->conversation, 4000, 7);
  assert_ok(test_append(w->conversation, 4000, 256, 4, 7, &wrote, &error), &error);
  assert_true(conversation_wants_seal(w->conversation));
  test_check(w->conversation, 4256, 7);
  assert_ok(test_append(w->conversation, 3990, 256, 4, 7, &wrote, &error), &error); /* a repeat over the border */
  assert_false(wrote);
  reopen(w);
  test_check(w->conversation, 4256, 7);
  assert_true(conversation_wants_seal(w->conversation));
}

static void unloading_and_loading_keeps_everything(void **state) {
  struct world *w = *state;
  struct error error;
  struct view *view;
  test_fill(w->conversation, 4200, 7);
  assert_ok(view_acquire(w->conversation, &view, &error), &error);
  assert_ok(conversation_unload(w->conversation, &error), &error);
  assert_false(conversation_loaded(w->conversation));
  assert_int_equal(conversation_count(w->conversation), 4200);
  uint32_t id;
  assert_ok(view_tokens(view, 4199, 1, &id, &error), &error); /* views outlive it */
  assert_int_equal(id, test_token_id(4199, 7));
  struct view *none;
  assert_error(view_acquire(w->conversation, &none, &error), ERR_BUSY, &error);
  view_release(view);
  assert_int_equal(archive_counters(w->archive)->tail_bytes, 0);
  test_check(w->conversation, 4200, 7);
  bool wrote;
  assert_ok(conversation_unload(w->conversation, &error), &error);
  assert_ok(test_append(w->conversation, 4200, 5, 0, 7, &wrote, &error), &error); /* loads it */
  test_check(w->conversation, 4205, 7);
  assert_int_equal(archive_counters(w->archive)->tail_bytes, 2 * TINY_BLOCKS * RECORD_BLOCK_BYTES);
}

static void without_a_model_only_ids_ahead_are_taken(void **state) {
  struct world *w = *state;
  struct error error;
  struct conversation *c;
  bool wrote;
  assert_ok(test_open(w->archive, "young", NULL, true, &c, &error), &error);
  assert_null(conversation_model(c));
  assert_ok(test_append(c, 0, 0, 20, 3, &wrote, &error), &error);
  assert_error(test_append(c, 0, 1, 20, 3, &wrote, &error), ERR_NO_MODEL, &error);
  struct conversation *same;
  assert_ok(test_open(w->archive, "young", w->model, true, &same, &error), &error);
  assert_ptr_equal(same, c);
  assert_non_null(conversation_model(c));
  assert_ok(test_append(c, 0, 30, 20, 3, &wrote, &error), &error);
  test_check(c, 30, 3);
  conversation_release(same);
  conversation_release(c);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(appended_tokens_are_seen_and_kept, setup, teardown),
      cmocka_unit_test_setup_teardown(a_repeat_changes_nothing, setup, teardown),
      cmocka_unit_test_setup_teardown(a_partial_repeat_adds_what_is_new, setup, teardown),
      cmocka_unit_test_setup_teardown(gaps_conflicts_and_bad_records_are_refused, setup, teardown),
      cmocka_unit_test_setup_teardown(ahead_ids_alone_make_a_frame, setup, teardown),
      cmocka_unit_test_setup_teardown(an_append_may_cross_the_end_of_a_segment, setup, teardown),
      cmocka_unit_test_setup_teardown(unloading_and_loading_keeps_everything, setup, teardown),
      cmocka_unit_test_setup_teardown(without_a_model_only_ids_ahead_are_taken, setup, teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
