// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What opening a conversation makes of damaged, torn and missing files.
#include "tests/store/fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "store/log.h"

enum { SALT = 4 };

struct world {
  char *dir, *conversation; /* its directory */
};

/* 'x': a segment of 4096 tokens and a log of 3 synced frames, 10 tokens each. */
static int setup(void **state) {
  struct error error;
  struct conversation *c;
  bool wrote;
  struct world *w = calloc(1, sizeof *w);
  assert_non_null(w);
  w->dir = test_directory_make();
  struct archive *archive = test_archive(w->dir, NULL);
  struct model *model = test_model(archive, 1);
  assert_ok(test_open(archive, "x", model, true, &c, &error), &error);
  test_fill(c, 4096, SALT);
  for (int i = 0; i < 3; i++) {
    assert_ok(test_append(c, 4096 + 10 * (uint64_t)i, 10, 2, SALT, &wrote, &error), &error);
    assert_ok(conversation_sync(c, &error), &error);
  }
  assert_ok(conversation_seal(c, &error), &error);
  conversation_release(c);
  model_release(model);
  archive_close(archive);
  w->conversation = strdup(test_find(test_path(w->dir, "conversations"), ""));
  test_log_last[0] = 0;
  *state = w;
  return 0;
}

static int teardown(void **state) {
  struct world *w = *state;
  test_directory_remove(w->dir);
  free(w->conversation);
  free(w);
  return 0;
}

static const char *the_log(struct world *w) { return test_path(w->conversation, "log-00000000000000004096"); }

/* Opens 'x' in a fresh start, after which the catalog (which may know better) is made again when `forget`. */
static int open_x(struct world *w, bool forget, struct archive **archive, struct conversation **c,
                  struct error *error) {
  if (forget)
    test_tree_remove(test_path(w->dir, "catalog"));
  *archive = test_archive(w->dir, NULL);
  return test_open(*archive, "x", NULL, false, c, error);
}

static void assert_refused(struct world *w, bool forget, int code, const char *naming) {
  struct error error;
  struct archive *archive;
  struct conversation *c;
  assert_error(open_x(w, forget, &archive, &c, &error), code, &error);
  if (!strstr(error.text, naming))
    fail_msg("'%s' does not name %s", error.text, naming);
  archive_close(archive);
}

/* Opens 'x' for reading, as is allowed whatever its logs look like. */
static int open_to_read(struct archive *archive, struct conversation **c, struct error *error) {
  uint8_t fingerprint[LIMIT_FINGERPRINT_BYTES];
  bool created;
  memset(fingerprint, 1, sizeof fingerprint);
  struct msg_open wanted = {.name = span_str("x"), .fingerprint = span_of(fingerprint, sizeof fingerprint)};
  test_geometry(&wanted.geometry);
  return conversation_open(archive, TEST_UID, &wanted, c, &created, error);
}

static int count_damage(void *context, const struct damage *damage) {
  struct damage *last = context;
  *last = *damage;
  return 0;
}

static void damage_in_the_middle_leaves_what_precedes_it(void **state) {
  struct world *w = *state;
  struct error error;
  struct archive *archive;
  struct conversation *c;
  bool wrote;
  uint64_t size = test_file_size(the_log(w));
  test_flip_bit(the_log(w), (LOG_HEADER_BYTES + (size - LOG_HEADER_BYTES) / 3 + 100) * 8); /* in the second frame */
  for (int forget = 0; forget < 2; forget++) {
    struct damage damage = {.found_s = 0};
    assert_error(open_x(w, forget, &archive, &c, &error), ERR_CORRUPT, &error);
    assert_non_null(strstr(error.text, "log-00000000000000004096"));
    assert_non_null(strstr(error.text, "repair"));
    assert_int_equal(archive_counters(archive)->quarantined, 1);
    assert_non_null(strstr(test_log_last, "damaged"));
    assert_error(test_open(archive, "x", NULL, true, &c, &error), ERR_CORRUPT, &error); /* nor made anew */
    assert_ok(open_to_read(archive, &c, &error), &error);
    assert_true(conversation_damaged(c, NULL));
    test_check(c, 4106, SALT);
    assert_error(test_append(c, 4106, 10, 2, SALT, &wrote, &error), ERR_CORRUPT, &error);
    assert_false(conversation_wants_seal(c));
    assert_error(test_open(archive, "x", NULL, true, &c, &error), ERR_CORRUPT, &error); /* while it is open, too */
    assert_int_equal(damage_list_each(archive_damage(archive), count_damage, &damage), 0);
    assert_string_equal(damage.place.name, "x");
    assert_int_equal(damage.place.first, 4106);
    assert_non_null(strstr(damage.path, "/log-00000000000000004096"));
    struct conversation *held = NULL;
    assert_ok(open_to_read(archive, &held, &error), &error);
    conversation_release(held);
    conversation_release(held);
    archive_close(archive);
    assert_int_equal(test_file_size(the_log(w)), size); /* nothing was cut off, nothing renamed */
  }
  test_flip_bit(the_log(w), (LOG_HEADER_BYTES + (size - LOG_HEADER_BYTES) / 3 + 100) * 8);
  assert_ok(open_x(w, false, &archive, &c, &error), &error);
  test_check(c, 4126, SALT);
  conversation_release(c);
  archive_close(archive);
}

static void a_torn_end_is_dropped_and_told(void **state) {
  struct world *w = *state;
  struct error error;
  struct archive *archive;
  struct conversation *c;
  uint64_t size = test_file_size(the_log(w));
  assert_int_equal(truncate(the_log(w), (off_t)size - 1), 0);
  /* without the catalog nobody knows that these tokens had been durable */
  assert_ok(open_x(w, true, &archive, &c, &error), &error);
  test_check(c, 4116, SALT);
  assert_int_equal(archive_counters(archive)->torn_frames, 1);
  assert_non_null(strstr(test_log_last, "torn"));
  assert_int_equal(test_file_size(the_log(w)), LOG_HEADER_BYTES + (size - LOG_HEADER_BYTES) / 3 * 2);
  test_fill(c, 4200, SALT);
  test_check(c, 4200, SALT);
  conversation_release(c);
  archive_close(archive);
  assert_ok(open_x(w, false, &archive, &c, &error), &error);
  test_check(c, 4200, SALT);
  assert_int_equal(archive_counters(archive)->torn_frames, 0);
  conversation_release(c);
  archive_close(archive);
}

static void durable_tokens_that_are_gone_are_missed(void **state) {
  struct world *w = *state;
  struct error error;
  struct archive *archive;
  struct conversation *c;
  uint64_t size = test_file_size(the_log(w));
  test_flip_bit(the_log(w), (size - 50) * 8); /* in the last frame: it looks torn */
  assert_refused(w, false, ERR_CORRUPT, "4126 were durable");
  assert_int_equal(test_file_size(the_log(w)), size); /* and nothing was cut off */
  test_flip_bit(the_log(w), (size - 50) * 8);
  assert_ok(open_x(w, false, &archive, &c, &error), &error);
  test_check(c, 4126, SALT);
  conversation_release(c);
  archive_close(archive);
  assert_int_equal(unlink(the_log(w)), 0);
  assert_refused(w, false, ERR_CORRUPT, "4126 were durable");
}

/* The segment of 'x' cannot be read: the rest can, and the conversation goes on. */
static void assert_lost_segment(struct world *w, const char *path) {
  struct error error;
  struct archive *archive;
  struct conversation *c;
  struct view *view;
  struct record_columns columns;
  uint8_t records[2 * RECORD_BYTES];
  uint32_t ids[2];
  bool wrote;
  struct damage damage = {.found_s = 0};
  assert_ok(open_x(w, false, &archive, &c, &error), &error);
  assert_int_equal(damage_list_each(archive_damage(archive), count_damage, &damage), 0);
  assert_non_null(strstr(path, damage.path));
  assert_int_equal(damage.place.first, 0);
  assert_int_equal(damage.place.count, 4096);
  assert_ok(view_acquire(c, &view, &error), &error);
  assert_int_equal(view_count(view), 4126);
  assert_error(view_columns(view, 0, 0, 0, &columns, &error), ERR_CORRUPT, &error);
  assert_int_equal(columns.count, 4096);
  assert_ok(view_columns(view, 1, 0, 0, &columns, &error), &error);
  assert_error(view_records(view, 0, 0, 4095, 2, records, &error), ERR_CORRUPT, &error);
  assert_ok(view_records(view, 0, 0, 4096, 2, records, &error), &error);
  assert_error(view_tokens(view, 4095, 2, ids, &error), ERR_CORRUPT, &error);
  assert_ok(view_tokens(view, 4096, 2, ids, &error), &error);
  view_release(view);
  assert_error(test_append(c, 4095, 2, 2, SALT, &wrote, &error), ERR_CORRUPT, &error);
  assert_ok(test_append(c, 4126, 0, 1, SALT, &wrote, &error), &error);
  assert_true(wrote);
  assert_ok(test_append(c, 4126, 0, 2, SALT, &wrote, &error), &error);
  conversation_release(c);
  archive_close(archive);
}

static void damaged_or_missing_segments_are_named(void **state) {
  struct world *w = *state;
  char segment[4096];
  for (unsigned i = 0; i < 256; i++) {
    char name[32];
    snprintf(name, sizeof name, "segments/%02x", i);
    if (test_count_entries(test_path(w->dir, name), ""))
      snprintf(segment, sizeof segment, "%s", test_find(test_path(w->dir, name), ""));
  }
  struct error error;
  struct archive *archive;
  struct conversation *c;
  struct view *view;
  struct record_columns columns;
  for (int way = 0; way < 3; way++) { /* its id, its incompat flags (the CRC comes first), the file */
    char kept[4096 + 8];
    snprintf(kept, sizeof kept, "%s.kept", segment);
    if (way < 2)
      test_flip_bit(segment, way ? 16 * 8 : 24 * 8);
    else
      assert_int_equal(rename(segment, kept), 0);
    assert_lost_segment(w, segment);
    if (way < 2)
      test_flip_bit(segment, way ? 16 * 8 : 24 * 8);
    else
      assert_int_equal(rename(kept, segment), 0);
  }
  test_flip_bit(segment, (6 * 4096 + 9) * 8); /* a scan page of layer 0: found when it is first asked for */
  assert_ok(open_x(w, false, &archive, &c, &error), &error);
  assert_ok(view_acquire(c, &view, &error), &error);
  assert_int_equal(view_parts(view), 2);
  assert_error(view_columns(view, 0, 0, 0, &columns, &error), ERR_CORRUPT, &error);
  assert_int_equal(archive_counters(archive)->bad_pages, 1);
  assert_error(view_columns(view, 0, 0, 0, &columns, &error), ERR_CORRUPT, &error);
  assert_int_equal(archive_counters(archive)->bad_pages, 1);
  assert_ok(view_columns(view, 0, 1, 0, &columns, &error), &error);
  assert_ok(view_columns(view, 1, 0, 0, &columns, &error), &error);
  uint8_t records[2 * RECORD_BYTES];
  assert_error(view_records(view, 0, 0, 0, 2, records, &error), ERR_CORRUPT, &error);
  assert_non_null(strstr(error.text, "token 0"));
  bool wrote;
  assert_error(test_append(c, 0, 1, 0, SALT, &wrote, &error), ERR_CORRUPT, &error); /* the stored one is wrong */
  view_release(view);
  conversation_release(c);
  archive_close(archive);
}

static void a_damaged_meta_is_named_and_kept_in_the_list(void **state) {
  struct world *w = *state;
  test_flip_bit(test_path(w->conversation, "meta"), 30 * 8);
  assert_refused(w, false, ERR_CORRUPT, "meta");
  test_flip_bit(test_path(w->conversation, "meta"), 30 * 8);
  test_flip_bit(test_path(w->conversation, "meta"), 8 * 8);
  assert_refused(w, false, ERR_VERSION, "meta");
  /* made again from the files after a crash, the catalog keeps what it knew of what cannot be read */
  pid_t pid = fork();
  assert_true(pid >= 0);
  if (pid == 0) {
    test_archive(w->dir, NULL);
    _exit(0);
  }
  int status;
  assert_int_equal(waitpid(pid, &status, 0), pid);
  assert_int_equal(status, 0);
  struct archive *archive = test_archive(w->dir, NULL);
  struct conversation *c;
  struct error error;
  assert_int_equal(archive_counters(archive)->quarantined, 1);
  assert_error(test_open(archive, "x", NULL, true, &c, &error), ERR_VERSION, &error);
  archive_close(archive);
}

static void a_missing_log_in_between_is_missed(void **state) {
  struct world *w = *state;
  struct error error;
  struct archive *archive;
  struct conversation *c;
  assert_ok(open_x(w, false, &archive, &c, &error), &error);
  test_fill(c, 8300, SALT);
  conversation_release(c);
  archive_close(archive);
  char *kept = strdup(test_path(w->dir, "kept"));
  assert_int_equal(rename(the_log(w), kept), 0);
  assert_refused(w, true, ERR_CORRUPT, "log-00000000000000008192");
  assert_int_equal(rename(kept, the_log(w)), 0);
  free(kept);
  assert_ok(open_x(w, true, &archive, &c, &error), &error);
  test_check(c, 8300, SALT);
  conversation_release(c);
  archive_close(archive);
  /* a closed log was complete before the next was made: its end cannot be torn */
  assert_int_equal(truncate(the_log(w), (off_t)test_file_size(the_log(w)) - 1), 0);
  assert_refused(w, true, ERR_CORRUPT, "log-00000000000000004096");
}

static void a_log_torn_while_it_was_made_is_removed(void **state) {
  struct world *w = *state;
  struct error error;
  struct archive *archive;
  struct conversation *c;
  assert_ok(open_x(w, false, &archive, &c, &error), &error);
  test_fill(c, 8192, SALT);
  assert_ok(conversation_sync(c, &error), &error);
  conversation_release(c);
  archive_close(archive);
  for (int size = 0; size <= LOG_HEADER_BYTES; size += 32) {
    const char *torn = test_path(w->conversation, "log-00000000000000008192");
    FILE *file = fopen(torn, "wb");
    assert_non_null(file);
    for (int i = 0; i < size; i++)
      fputc(0, file);
    assert_int_equal(fclose(file), 0);
    assert_ok(open_x(w, true, &archive, &c, &error), &error);
    assert_int_equal(archive_counters(archive)->torn_frames, 1);
    test_check(c, 8192, SALT);
    assert_false(conversation_wants_seal(c)); /* the log before is the open one again */
    conversation_release(c);
    archive_close(archive);
  }
  assert_ok(open_x(w, false, &archive, &c, &error), &error);
  test_fill(c, 8200, SALT);
  test_check(c, 8200, SALT);
  conversation_release(c);
  archive_close(archive);
}

static void foreign_logs_are_refused(void **state) {
  struct world *w = *state;
  struct error error;
  struct archive *archive = test_archive(w->dir, NULL);
  struct conversation *c;
  assert_ok(test_open(archive, "y", NULL, true, &c, &error), &error);
  bool wrote;
  assert_ok(test_append(c, 0, 0, 3, SALT, &wrote, &error), &error);
  char text[33], from[4096];
  for (int i = 0; i < 16; i++)
    snprintf(text + 2 * (size_t)i, 3, "%02x", conversation_id(c)[i]);
  snprintf(from, sizeof from, "%s/conversations/%s/log-%020d", w->dir, text, 0);
  conversation_release(c);
  archive_close(archive);
  assert_int_equal(unlink(the_log(w)), 0);
  test_tree_copy(from, the_log(w));
  assert_refused(w, true, ERR_CORRUPT, "another conversation");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(damage_in_the_middle_leaves_what_precedes_it, setup, teardown),
      cmocka_unit_test_setup_teardown(a_torn_end_is_dropped_and_told, setup, teardown),
      cmocka_unit_test_setup_teardown(durable_tokens_that_are_gone_are_missed, setup, teardown),
      cmocka_unit_test_setup_teardown(damaged_or_missing_segments_are_named, setup, teardown),
      cmocka_unit_test_setup_teardown(a_damaged_meta_is_named_and_kept_in_the_list, setup, teardown),
      cmocka_unit_test_setup_teardown(a_missing_log_in_between_is_missed, setup, teardown),
      cmocka_unit_test_setup_teardown(a_log_torn_while_it_was_made_is_removed, setup, teardown),
      cmocka_unit_test_setup_teardown(foreign_logs_are_refused, setup, teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
