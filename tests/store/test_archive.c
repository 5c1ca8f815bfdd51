// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/store/fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/store/fault.h"

enum { SALT = 9 };

static int setup(void **state) {
  fault_reset();
  test_log_lines = 0;
  test_log_last[0] = 0;
  *state = test_directory_make();
  return 0;
}

static int teardown(void **state) {
  fault_reset();
  test_directory_remove(*state);
  return 0;
}

/* Two conversations, one of them with a segment, of one model. */
static void fill_archive(const char *dir) {
  struct error error;
  struct conversation *c;
  struct archive *archive = test_archive(dir, NULL);
  struct model *model = test_model(archive, 1);
  assert_ok(test_open(archive, "long", model, true, &c, &error), &error);
  test_fill(c, 4200, SALT);
  assert_ok(conversation_sync(c, &error), &error);
  assert_ok(conversation_seal(c, &error), &error);
  conversation_release(c);
  assert_ok(test_open(archive, "short", model, true, &c, &error), &error);
  test_fill(c, 20, SALT);
  conversation_release(c);
  model_release(model);
  archive_close(archive);
}

static void check_archive(const char *dir) {
  struct error error;
  struct conversation *c;
  struct archive *archive = test_archive(dir, NULL);
  assert_ok(test_open(archive, "long", NULL, false, &c, &error), &error);
  test_check(c, 4200, SALT);
  conversation_release(c);
  assert_ok(test_open(archive, "short", NULL, false, &c, &error), &error);
  test_check(c, 20, SALT);
  conversation_release(c);
  archive_close(archive);
}

static void an_archive_is_private(void **state) {
  const char *dir = test_path(*state, "new");
  struct stat status;
  fill_archive(dir);
  static const char *const names[] = {"", "models", "conversations", "segments", "catalog"};
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    assert_int_equal(stat(test_path(dir, names[i]), &status), 0);
    assert_int_equal(status.st_mode & 07777, 0700);
  }
  assert_int_equal(stat(test_path(dir, "catalog/data.mdb"), &status), 0);
  assert_int_equal(status.st_mode & 07777, 0600);
  assert_int_equal(stat(test_path(dir, "LOCK"), &status), 0);
  assert_int_equal(status.st_mode & 07777, 0600);
}

static void one_process_owns_it(void **state) {
  struct error error;
  struct archive *archive = test_archive(*state, NULL), *second;
  assert_error(archive_open(&second, *state, NULL, &error), ERR_BUSY, &error);
  char pid[32];
  snprintf(pid, sizeof pid, "process %ld", (long)getpid());
  assert_non_null(strstr(error.text, pid));
  assert_non_null(strstr(error.text, *state));
  archive_close(archive);
  archive_close(test_archive(*state, NULL));
}

static void a_clean_start_reads_nothing_again(void **state) {
  fill_archive(*state);
  test_log_lines = 0;
  check_archive(*state);
  assert_int_equal(test_log_lines, 0);
}

static void a_missing_catalog_is_made_again(void **state) {
  fill_archive(*state);
  test_tree_remove(test_path(*state, "catalog"));
  check_archive(*state);
  assert_int_equal(test_log_lines, 1);
  assert_non_null(strstr(test_log_last, "1 models, 2 conversations"));
  check_archive(*state);
  assert_int_equal(test_log_lines, 1);
}

/* Rot anywhere in the catalog's file ends in a rebuild or in nothing, never in a crash or in wrong answers. */
static void a_rotten_catalog_is_made_again(void **state) {
  fill_archive(*state);
  const char *data = test_path(*state, "catalog/data.mdb");
  char *kept = strdup(test_path(*state, "kept"));
  test_tree_copy(data, kept);
  uint64_t size = test_file_size(kept), rebuilt = 0;
  for (uint64_t page = 0; page * 4096 < size; page++) {
    char path[4096];
    snprintf(path, sizeof path, "%s/catalog/data.mdb", (const char *)*state);
    unlink(path);
    test_tree_copy(kept, path);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    for (unsigned i = 0; i < 4096; i += 3)
      assert_int_equal(pwrite(fd, "\xa5", 1, (off_t)(page * 4096 + i)), 1);
    close(fd);
    test_log_lines = 0;
    check_archive(*state);
    rebuilt += test_log_lines != 0;
  }
  assert_true(rebuilt >= 3);
  free(kept);
}

/* The same for single bytes. COLDKV_TEST_ROUNDS sets how many. */
static void a_changed_byte_in_the_catalog_does_no_harm(void **state) {
  const char *rounds = getenv("COLDKV_TEST_ROUNDS");
  uint64_t random = 1;
  fill_archive(*state);
  char *path = strdup(test_path(*state, "catalog/data.mdb")), *kept = strdup(test_path(*state, "kept"));
  test_tree_copy(path, kept);
  uint64_t size = test_file_size(kept);
  for (int i = rounds ? atoi(rounds) : 50; i > 0; i--) {
    unlink(path);
    test_tree_copy(kept, path);
    for (int flips = i % 3; flips >= 0; flips--) {
      random = random * UINT64_C(6364136223846793005) + 1442695040888963407u;
      test_flip_bit(path, (random >> 11) % (size * 8));
    }
    check_archive(*state);
  }
  free(path);
  free(kept);
}

static void a_truncated_catalog_is_made_again(void **state) {
  fill_archive(*state);
  char path[4096];
  snprintf(path, sizeof path, "%s/catalog/data.mdb", (const char *)*state);
  uint64_t size = test_file_size(path);
  for (uint64_t left = 0; left < size; left += 8192) {
    assert_int_equal(truncate(path, (off_t)left), 0);
    check_archive(*state);
  }
}

/* A process that ends without closing the archive. */
static void abandon(const char *dir) {
  pid_t pid = fork();
  assert_true(pid >= 0);
  if (pid == 0) {
    struct error error;
    struct conversation *c;
    bool wrote;
    struct archive *archive = test_archive(dir, NULL);
    if (test_open(archive, "short", NULL, false, &c, &error) || test_append(c, 20, 10, 0, SALT, &wrote, &error))
      _exit(1);
    _exit(0);
  }
  int status;
  assert_int_equal(waitpid(pid, &status, 0), pid);
  assert_int_equal(status, 0);
}

struct seen {
  uint64_t tokens[2], durable[2];
  unsigned count;
};

static int see(void *context, const struct msg_conversation *m) {
  struct seen *seen = context;
  assert_in_range(seen->count, 0, 1);
  assert_int_equal(m->model_name.size, 4);
  seen->tokens[seen->count] = m->tokens;
  seen->durable[seen->count++] = m->durable;
  return 0;
}

static void after_a_kill_lists_tell_what_the_files_hold(void **state) {
  struct error error;
  fill_archive(*state);
  abandon(*state);
  struct archive *archive = test_archive(*state, NULL);
  struct seen seen = {.count = 0};
  assert_ok(conversation_each(archive, TEST_UID, "", see, &seen, &error), &error);
  assert_int_equal(seen.count, 2);
  assert_int_equal(seen.tokens[0], 4200);
  assert_int_equal(seen.tokens[1], 30);
  archive_close(archive);
}

static int count_visit(void *context, const struct msg_conversation *m) {
  (void)m;
  ++*(unsigned *)context;
  return 0;
}

static void lists_go_on_after_a_name_and_belong_to_a_user(void **state) {
  struct error error;
  struct conversation *c;
  struct archive *archive = test_archive(*state, NULL);
  static const char *const names[] = {"b", "a", "ab", "\xc3\xa4", "B"};
  for (int i = 0; i < 5; i++) {
    assert_ok(test_open(archive, names[i], NULL, true, &c, &error), &error);
    conversation_release(c);
  }
  static const struct {
    const char *after;
    unsigned left;
  } cases[] = {{"", 5}, {"A", 5}, {"B", 4}, {"a", 3}, {"aa", 3}, {"ab", 2}, {"b", 1}, {"\xc3\xa4", 0}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    unsigned count = 0;
    assert_ok(conversation_each(archive, TEST_UID, cases[i].after, count_visit, &count, &error), &error);
    assert_int_equal(count, cases[i].left);
  }
  unsigned count = 0;
  assert_ok(conversation_each(archive, TEST_UID + 1, "", count_visit, &count, &error), &error);
  assert_ok(conversation_each(archive, TEST_UID - 1, NULL, count_visit, &count, &error), &error);
  assert_int_equal(count, 0);
  archive_close(archive);
}

static void a_conversation_is_described(void **state) {
  struct error error;
  struct conversation *c;
  struct conversation_entry entry;
  fill_archive(*state);
  struct archive *archive = test_archive(*state, NULL);
  for (int open = 0; open < 2; open++) {
    if (open)
      assert_ok(test_open(archive, "long", NULL, false, &c, &error), &error);
    assert_ok(conversation_describe(archive, TEST_UID, "long", &entry, &error), &error);
    assert_int_equal(entry.message.tokens, 4200);
    assert_int_equal(entry.message.durable, 4200);
    assert_int_equal(entry.message.extents.count, 1);
    assert_int_equal(entry.extents[0].kind, 0);
    assert_int_equal(entry.extents[0].count, 4096);
    assert_int_equal(entry.message.log_first, 4096);
    assert_int_equal(entry.message.log_tokens, 104);
    assert_true(entry.message.bytes > 4200 * TINY_BLOCKS * RECORD_BYTES);
    conversation_entry_finish(&entry);
  }
  test_fill(c, 8200, SALT);
  for (int open = 1; open >= 0; open--) {
    assert_ok(conversation_describe(archive, TEST_UID, "long", &entry, &error), &error);
    assert_int_equal(entry.message.extents.count, 2);
    assert_int_equal(entry.extents[1].kind, 1);
    assert_int_equal(entry.extents[1].first, 4096);
    assert_int_equal(entry.extents[1].count, 4096);
    assert_memory_equal(entry.extents[1].id.data, entry.id, LIMIT_ID_BYTES);
    assert_int_equal(entry.message.log_first, 8192);
    assert_int_equal(entry.message.log_tokens, 8);
    conversation_entry_finish(&entry);
    if (open)
      conversation_release(c);
  }
  assert_error(conversation_describe(archive, TEST_UID, "none", &entry, &error), ERR_NO_CONVERSATION, &error);
  assert_error(conversation_describe(archive, TEST_UID + 1, "long", &entry, &error), ERR_NO_CONVERSATION, &error);
  archive_close(archive);
}

static void opening_checks_who_asks_and_with_what(void **state) {
  struct error error;
  struct conversation *c, *same;
  bool created;
  uint8_t fingerprint[LIMIT_FINGERPRINT_BYTES];
  struct archive *archive = test_archive(*state, NULL);
  struct model *one = test_model(archive, 1), *two = test_model(archive, 2);
  memset(fingerprint, 1, sizeof fingerprint);
  struct msg_open wanted = {.name = span_str("x"),
                            .fingerprint = span_of(fingerprint, sizeof fingerprint),
                            .model = model_description(one)->id};
  test_geometry(&wanted.geometry);
  assert_error(conversation_open(archive, TEST_UID, &wanted, &c, &created, &error), ERR_NO_CONVERSATION, &error);
  wanted.create = 1;
  assert_error(conversation_open(archive, TEST_UID + 1, &wanted, &c, &created, &error), ERR_NO_MODEL, &error);
  assert_ok(conversation_open(archive, TEST_UID, &wanted, &c, &created, &error), &error);
  assert_true(created);
  assert_ok(conversation_open(archive, TEST_UID, &wanted, &same, &created, &error), &error);
  assert_false(created);
  assert_ptr_equal(c, same);
  conversation_release(same);
  assert_string_equal(conversation_name(c), "x");
  assert_true(geometry_equal(conversation_geometry(c), &wanted.geometry));
  for (int open = 1; open >= 0; open--) {
    fingerprint[0] = 9;
    assert_error(conversation_open(archive, TEST_UID, &wanted, &same, &created, &error), ERR_MODEL_MISMATCH, &error);
    fingerprint[0] = 1;
    wanted.geometry.layers++;
    assert_error(conversation_open(archive, TEST_UID, &wanted, &same, &created, &error), ERR_MODEL_MISMATCH, &error);
    wanted.geometry.layers--;
    wanted.model = model_description(two)->id;
    assert_error(conversation_open(archive, TEST_UID, &wanted, &same, &created, &error), ERR_MODEL_MISMATCH, &error);
    wanted.model = model_description(one)->id;
    if (open)
      conversation_release(c);
  }
  model_release(one);
  model_release(two);
  archive_close(archive);
}

static void a_full_disk_stops_appends_until_there_is_room(void **state) {
  struct error error;
  struct conversation *c;
  bool wrote;
  struct archive *archive = test_archive(*state, &io_fault);
  struct model *model = test_model(archive, 1);
  assert_ok(test_open(archive, "x", model, true, &c, &error), &error);
  static const uint64_t starts[] = {0, 100, 4000}; /* a new log, an open one, one that is crossed */
  for (int i = 0; i < 3; i++)
    for (unsigned at = 1; at <= 3; at++) {
      test_fill(c, starts[i], SALT);
      uint64_t first = conversation_count(c);
      assert_ok(conversation_sync(c, &error), &error);
      fault_reset();
      fault.mode = FAULT_FAIL;
      fault.at = at;
      fault.only = 1u << FAULT_OPEN | 1u << FAULT_WRITE | 1u << FAULT_TRUNCATE;
      fault.error = ENOSPC;
      int result = test_append(c, first, 200, 5, SALT, &wrote, &error);
      bool failed = fault.counted >= at;
      fault_reset();
      assert_int_equal(wrote, !failed);
      if (failed) {
        assert_error(result, ERR_NO_SPACE, &error);
        test_check(c, first, SALT);
      }
      assert_false(archive_read_only(archive));
    }
  test_fill(c, 4500, SALT);
  conversation_release(c);
  model_release(model);
  archive_close(archive);
  archive = test_archive(*state, NULL);
  assert_ok(test_open(archive, "x", NULL, false, &c, &error), &error);
  test_check(c, 4500, SALT);
  conversation_release(c);
  archive_close(archive);
}

static void a_failed_sync_ends_all_writing(void **state) {
  struct error error;
  struct conversation *c, *other;
  bool wrote;
  struct archive *archive = test_archive(*state, &io_fault);
  struct model *model = test_model(archive, 1), *none;
  assert_ok(test_open(archive, "x", model, true, &c, &error), &error);
  test_fill(c, 50, SALT);
  assert_ok(conversation_sync(c, &error), &error);
  test_fill(c, 60, SALT);
  fault_reset();
  fault.mode = FAULT_FAIL_ONCE;
  fault.at = 1;
  fault.only = 1u << FAULT_FDATASYNC;
  assert_error(conversation_sync(c, &error), ERR_IO, &error);
  assert_int_equal(conversation_durable(c), 50);
  assert_true(archive_read_only(archive));
  fault_reset();
  assert_error(conversation_sync(c, &error), ERR_READ_ONLY, &error); /* never tried again */
  assert_non_null(strstr(error.text, "cannot sync"));
  assert_error(test_append(c, 60, 5, 0, SALT, &wrote, &error), ERR_READ_ONLY, &error);
  assert_error(test_open(archive, "y", model, true, &other, &error), ERR_READ_ONLY, &error);
  assert_error(test_model_freeze(archive, 3, &none, &error), ERR_READ_ONLY, &error);
  assert_error(conversation_delete(archive, TEST_UID, "x", &error), ERR_READ_ONLY, &error);
  assert_error(conversation_seal(c, &error), ERR_READ_ONLY, &error);
  test_check(c, 60, SALT); /* reads go on */
  conversation_release(c);
  model_release(model);
  archive_close(archive);
  assert_int_equal(fault.counted, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(an_archive_is_private, setup, teardown),
      cmocka_unit_test_setup_teardown(one_process_owns_it, setup, teardown),
      cmocka_unit_test_setup_teardown(a_clean_start_reads_nothing_again, setup, teardown),
      cmocka_unit_test_setup_teardown(a_missing_catalog_is_made_again, setup, teardown),
      cmocka_unit_test_setup_teardown(a_rotten_catalog_is_made_again, setup, teardown),
      cmocka_unit_test_setup_teardown(a_changed_byte_in_the_catalog_does_no_harm, setup, teardown),
      cmocka_unit_test_setup_teardown(a_truncated_catalog_is_made_again, setup, teardown),
      cmocka_unit_test_setup_teardown(after_a_kill_lists_tell_what_the_files_hold, setup, teardown),
      cmocka_unit_test_setup_teardown(lists_go_on_after_a_name_and_belong_to_a_user, setup, teardown),
      cmocka_unit_test_setup_teardown(a_conversation_is_described, setup, teardown),
      cmocka_unit_test_setup_teardown(opening_checks_who_asks_and_with_what, setup, teardown),
      cmocka_unit_test_setup_teardown(a_full_disk_stops_appends_until_there_is_room, setup, teardown),
      cmocka_unit_test_setup_teardown(a_failed_sync_ends_all_writing, setup, teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
