// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/store/fixture.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "store/verify.h"

enum { SALT = 2, TOKENS = 5 * 4096 + 100, READERS = 2 };

struct world {
  char *dir;
  struct archive *archive;
  struct conversation *c;
};

static int setup(void **state) {
  struct error error;
  struct world *w = calloc(1, sizeof *w);
  assert_non_null(w);
  w->dir = test_directory_make();
  w->archive = test_archive(w->dir, NULL);
  struct model *model = test_model(w->archive, 1);
  assert_ok(test_open(w->archive, "x", model, true, &w->c, &error), &error);
  model_release(model);
  *state = w;
  return 0;
}

static int teardown(void **state) {
  struct world *w = *state;
  conversation_release(w->c);
  archive_close(w->archive);
  test_directory_remove(w->dir);
  free(w);
  return 0;
}

static void an_empty_view(void **state) {
  struct world *w = *state;
  struct error error;
  struct view *view;
  struct record_columns columns;
  uint32_t id;
  assert_ok(view_acquire(w->c, &view, &error), &error);
  assert_int_equal(view_count(view), 0);
  assert_int_equal(view_parts(view), 0);
  assert_error(view_columns(view, 0, 0, 0, &columns, &error), ERR_RANGE, &error);
  assert_ok(view_tokens(view, 0, 0, &id, &error), &error);
  assert_error(view_tokens(view, 0, 1, &id, &error), ERR_RANGE, &error);
  view_release(view);
  view_release(NULL);
}

static void a_view_does_not_change(void **state) {
  struct world *w = *state;
  struct error error;
  struct view *view;
  struct record_columns columns;
  uint32_t ids[30];
  uint8_t records[30 * RECORD_BYTES];
  test_fill(w->c, 4106, SALT);
  assert_ok(view_acquire(w->c, &view, &error), &error);
  test_fill(w->c, 9000, SALT);
  assert_ok(conversation_seal(w->c, &error), &error);
  assert_int_equal(view_count(view), 4106);
  assert_int_equal(view_parts(view), 2);
  assert_ok(view_columns(view, 1, 1, 0, &columns, &error), &error);
  assert_int_equal(columns.first, 4096);
  assert_int_equal(columns.count, 10);
  assert_ok(view_tokens(view, 4080, 26, ids, &error), &error);
  assert_int_equal(ids[25], test_token_id(4105, SALT));
  assert_error(view_tokens(view, 4080, 27, ids, &error), ERR_RANGE, &error);
  assert_error(view_tokens(view, UINT64_MAX, 2, ids, &error), ERR_RANGE, &error);
  assert_error(view_records(view, 2, 0, 0, 1, records, &error), ERR_RANGE, &error);
  assert_error(view_records(view, 0, 1, 0, 1, records, &error), ERR_RANGE, &error);
  assert_error(view_columns(view, 2, 0, 0, &columns, &error), ERR_RANGE, &error);
  assert_ok(view_records(view, 0, 0, 4090, 16, records, &error), &error);
  view_release(view);
}

struct race {
  struct world *world;
  atomic_bool stop, failed;
  _Atomic uint64_t views;
};

/* Asserts do not belong in other threads: what is wrong is told by a flag. */
static bool look(struct conversation *c, uint64_t *before) {
  struct error error;
  struct view *view;
  uint8_t record[RECORD_BYTES], wanted[RECORD_BYTES];
  uint32_t id;
  if (view_acquire(c, &view, &error))
    return false;
  uint64_t count = view_count(view), covered = 0;
  bool good = count >= *before;
  *before = count;
  for (uint32_t part = 0; part < view_parts(view) && good; part++) {
    struct record_columns columns;
    good = view_columns(view, part, 1, 0, &columns, &error) == 0 && columns.first == covered;
    covered += columns.count;
  }
  good = good && covered == count;
  for (uint64_t token = count; token-- > 0 && good && count - token < 40;) {
    uint64_t at = token % 2 ? token : (token * 7919) % count;
    test_record(wanted, 0, 0, at, SALT);
    good = view_records(view, 0, 0, at, 1, record, &error) == 0 && memcmp(record, wanted, RECORD_BYTES) == 0 &&
           view_tokens(view, at, 1, &id, &error) == 0 && id == test_token_id(at, SALT);
  }
  view_release(view);
  return good;
}

static void *reader(void *context) {
  struct race *race = context;
  uint64_t before = 0;
  while (!race->stop && !race->failed) {
    if (!look(race->world->c, &before))
      race->failed = true;
    race->views++;
  }
  return NULL;
}

static void *sealer(void *context) {
  struct race *race = context;
  struct error error;
  while (!race->stop || conversation_wants_seal(race->world->c)) {
    if (conversation_seal(race->world->c, &error))
      race->failed = true;
    sched_yield();
  }
  return NULL;
}

static void readers_a_sealer_and_a_writer_at_once(void **state) {
  struct world *w = *state;
  struct race race = {.world = w};
  struct error error;
  struct verify_report report;
  pthread_t threads[READERS + 1];
  bool wrote;
  for (int i = 0; i < READERS; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, reader, &race), 0);
  assert_int_equal(pthread_create(&threads[READERS], NULL, sealer, &race), 0);
  while (conversation_count(w->c) < TOKENS && !race.failed) {
    uint64_t at = conversation_count(w->c);
    assert_ok(test_append(w->c, at, at + 61 < TOKENS ? 61 : (uint32_t)(TOKENS - at), 3, SALT, &wrote, &error), &error);
    if (at / 61 % 4 == 0)
      assert_ok(conversation_sync(w->c, &error), &error);
    if (at / 61 % 50 == 49) /* a resend that reaches into what may just be sealed */
      assert_ok(test_append(w->c, at - 61, 61, 3, SALT, &wrote, &error), &error);
    if (at / 61 == 200) {
      assert_ok(verify_archive(NULL, w->dir, &report, NULL, NULL, &error), &error);
      assert_int_equal(report.bad, 0);
    }
  }
  race.stop = true;
  for (int i = 0; i <= READERS; i++)
    assert_int_equal(pthread_join(threads[i], NULL), 0);
  assert_false(race.failed);
  assert_true(race.views > READERS);
  assert_int_equal(archive_counters(w->archive)->segments_sealed, 5);
  test_check(w->c, TOKENS, SALT);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(an_empty_view, setup, teardown),
      cmocka_unit_test_setup_teardown(a_view_does_not_change, setup, teardown),
      cmocka_unit_test_setup_teardown(readers_a_sealer_and_a_writer_at_once, setup, teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
