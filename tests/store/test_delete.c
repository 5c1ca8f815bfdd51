// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/store/fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/store/fault.h"

enum { SALT = 8 };

static int setup(void **state) {
  fault_reset();
  *state = test_directory_make();
  return 0;
}

static int teardown(void **state) {
  fault_reset();
  test_directory_remove(*state);
  return 0;
}

static void make(struct archive *archive, const char *name, uint64_t tokens) {
  struct error error;
  struct conversation *c;
  struct model *model = test_model(archive, 1);
  assert_ok(test_open(archive, name, model, true, &c, &error), &error);
  test_fill(c, tokens, SALT);
  while (conversation_wants_seal(c))
    assert_ok(conversation_seal(c, &error), &error);
  conversation_release(c);
  model_release(model);
}

static unsigned count_segments(const char *dir) {
  unsigned count = 0;
  for (unsigned i = 0; i < 256; i++) {
    char name[32];
    snprintf(name, sizeof name, "segments/%02x", i);
    count += test_count_entries(test_path(dir, name), "");
  }
  return count;
}

static void a_deleted_conversation_leaves_nothing(void **state) {
  struct error error;
  struct conversation *c;
  struct archive *archive = test_archive(*state, NULL);
  make(archive, "a", 9000);
  make(archive, "b", 4100);
  assert_int_equal(count_segments(*state), 3);
  assert_error(conversation_delete(archive, TEST_UID, "none", &error), ERR_NO_CONVERSATION, &error);
  assert_error(conversation_delete(archive, TEST_UID + 1, "a", &error), ERR_NO_CONVERSATION, &error);
  assert_ok(test_open(archive, "a", NULL, false, &c, &error), &error);
  assert_error(conversation_delete(archive, TEST_UID, "a", &error), ERR_BUSY, &error);
  conversation_release(c);
  assert_ok(conversation_delete(archive, TEST_UID, "a", &error), &error);
  assert_int_equal(count_segments(*state), 1);
  assert_int_equal(test_count_entries(test_path(*state, "conversations"), ""), 1);
  assert_error(test_open(archive, "a", NULL, false, &c, &error), ERR_NO_CONVERSATION, &error);
  make(archive, "a", 10); /* the name is free */
  archive_close(archive);
  archive = test_archive(*state, NULL);
  assert_ok(test_open(archive, "b", NULL, false, &c, &error), &error);
  test_check(c, 4100, SALT);
  conversation_release(c);
  assert_ok(test_open(archive, "a", NULL, false, &c, &error), &error);
  test_check(c, 10, SALT);
  conversation_release(c);
  archive_close(archive);
}

static void a_damaged_conversation_can_be_deleted(void **state) {
  struct error error;
  struct conversation *c;
  struct archive *archive = test_archive(*state, NULL);
  make(archive, "a", 20);
  char meta[4096];
  snprintf(meta, sizeof meta, "%s/meta", test_find(test_path(*state, "conversations"), ""));
  test_flip_bit(meta, 200);
  assert_error(test_open(archive, "a", NULL, false, &c, &error), ERR_CORRUPT, &error);
  assert_ok(conversation_delete(archive, TEST_UID, "a", &error), &error);
  assert_int_equal(test_count_entries(test_path(*state, "conversations"), ""), 0);
  archive_close(archive);
}

static void what_cannot_be_removed_now_goes_at_the_next_start(void **state) {
  struct error error;
  struct conversation *c;
  struct archive *archive = test_archive(*state, &io_fault);
  make(archive, "a", 4100);
  fault_reset();
  fault.mode = FAULT_FAIL;
  fault.at = 1;
  fault.only = 1u << FAULT_UNLINK;
  assert_ok(conversation_delete(archive, TEST_UID, "a", &error), &error);
  fault_reset();
  assert_int_equal(count_segments(*state), 1);
  assert_int_equal(test_count_entries(test_path(*state, "conversations"), "deleted-"), 1);
  assert_error(test_open(archive, "a", NULL, false, &c, &error), ERR_NO_CONVERSATION, &error);
  archive_close(archive);
  archive = test_archive(*state, NULL);
  assert_int_equal(count_segments(*state), 0);
  assert_int_equal(test_count_entries(test_path(*state, "conversations"), ""), 0);
  archive_close(archive);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(a_deleted_conversation_leaves_nothing, setup, teardown),
      cmocka_unit_test_setup_teardown(a_damaged_conversation_can_be_deleted, setup, teardown),
      cmocka_unit_test_setup_teardown(what_cannot_be_removed_now_goes_at_the_next_start, setup, teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
