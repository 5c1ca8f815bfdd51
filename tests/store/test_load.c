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

static void damage_in_the_middle_is_set_aside(void **state) {
  struct world *w = *state;
  struct error error;
  struct archive *archive;
  struct conversation *c;
  uint64_t size = test_file_size(the_log(w));
  test_flip_bit(the_log(w), (LOG_HEADER_BYTES + (size - LOG_HEADER_BYTES) / 3 + 100) * 8); /* in the second frame */
  assert_error(open_x(w, false, &archive, &c, &error), ERR_CORRUPT, &error);
  assert_non_null(strstr(error.text, "log-00000000000000004096"));
  assert_int_equal(archive_counters(archive)->quarantined, 1);
  assert_non_null(strstr(test_log_last, "damaged"));
  assert_error(test_open(archive, "x", NULL, true, &c, &error), ERR_CORRUPT, &error); /* nor made anew */
  assert_int_equal(archive_counters(archive)->quarantined, 1);
  archive_close(archive);
  assert_refused(w, false, ERR_CORRUPT, ".damaged");
  assert_refused(w, true, ERR_CORRUPT, ".damaged");

  /* its bytes are all there, and what precedes the damage can be read */
  const char *aside = test_path(w->conversation, "log-00000000000000004096.damaged");
  struct log_reader *reader;
  struct log_frame frame;
  assert_int_equal(test_file_size(aside), size);
  assert_ok(log_reader_open(&io_system, aside, &reader, NULL, &error), &error);
  assert_int_equal(log_reader_next(reader, &frame, &error), LOG_FRAME);
  assert_int_equal(frame.count, 10);
  assert_error(log_reader_next(reader, &frame, &error), ERR_CORRUPT, &error);
  log_reader_close(reader);
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

static void damaged_or_missing_segments_are_named(void **state) {
  struct world *w = *state;
  char segment[4096];
  for (unsigned i = 0; i < 256; i++) {
    char name[32];
    snprintf(name, sizeof name, "segments/%02x", i);
    if (test_count_entries(test_path(w->dir, name), ""))
      snprintf(segment, sizeof segment, "%s", test_find(test_path(w->dir, name), ""));
  }
  test_flip_bit(segment, 24 * 8); /* its id */
  assert_refused(w, false, ERR_CORRUPT, segment);
  test_flip_bit(segment, 24 * 8);
  test_flip_bit(segment, 16 * 8); /* incompat: the CRC comes first */
  assert_refused(w, false, ERR_CORRUPT, segment);
  test_flip_bit(segment, 16 * 8);

  struct error error;
  struct archive *archive;
  struct conversation *c;
  struct view *view;
  struct record_columns columns;
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

  assert_int_equal(unlink(segment), 0);
  assert_refused(w, false, ERR_IO, segment);
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
      cmocka_unit_test_setup_teardown(damage_in_the_middle_is_set_aside, setup, teardown),
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
