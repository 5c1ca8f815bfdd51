// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A catalog whose map is too small: it grows, and where it cannot, what does not fit is refused and nothing else is
// harmed.
#include "tests/store/fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "store/internal.h"

enum { SMALL_MAP_BYTES = 96 << 10, MANY = 400 };

static struct archive *small_archive(const char *dir) {
  struct archive_options options = {.catalog_map_bytes = SMALL_MAP_BYTES};
  struct archive *archive;
  struct error error;
  assert_ok(archive_open(&archive, dir, &options, &error), &error);
  return archive;
}

static int count_one(void *context, const struct msg_conversation *conversation) {
  (void)conversation;
  *(unsigned *)context += 1;
  return 0;
}

static void name_of(unsigned i, char name[200]) {
  snprintf(name, 200, "conversation %u with a name of some length %0100u", i, i);
}

/* Makes conversations until one is refused; returns how many there are now. */
static unsigned make_many(struct archive *archive, unsigned from, unsigned most, struct error *error) {
  for (unsigned i = from; i < most; i++) {
    struct conversation *c;
    char name[200];
    name_of(i, name);
    if (test_open(archive, name, NULL, true, &c, error))
      return i;
    conversation_release(c);
  }
  return most;
}

static unsigned count_names(struct archive *archive) {
  unsigned count = 0;
  struct error error;
  assert_ok(conversation_each(archive, TEST_UID, "", count_one, &count, &error), &error);
  return count;
}

static void a_full_map_grows(void **state) {
  struct error error = {0};
  struct archive *archive = small_archive(*state);
  if (make_many(archive, 0, MANY, &error) != MANY)
    fail_msg("%s", error.text);
  assert_true(test_file_size(test_path(*state, "catalog/data.mdb")) > 2 * SMALL_MAP_BYTES);
  archive_close(archive);
  archive = small_archive(*state); /* whose map is too small for what is there */
  assert_int_equal(count_names(archive), MANY);
  assert_int_equal(make_many(archive, MANY, MANY + 50, &error), MANY + 50);
  archive_close(archive);
  test_tree_remove(test_path(*state, "catalog"));
  archive = small_archive(*state); /* made again in one transaction, which is too large for it */
  assert_int_equal(count_names(archive), MANY + 50);
  archive_close(archive);
}

static void a_map_that_cannot_grow_refuses_cleanly(void **state) {
  struct error error = {0};
  struct conversation *c;
  struct archive *archive = small_archive(*state);
  archive->catalog.map_bytes_max = SMALL_MAP_BYTES;
  unsigned made = make_many(archive, 0, MANY, &error);
  assert_in_range(made, 10, MANY - 1);
  assert_int_equal(error.code, ERR_NO_SPACE);
  assert_non_null(strstr(error.text, "catalog"));
  assert_int_equal(count_names(archive), made);
  assert_int_equal(test_count_entries(test_path(*state, "conversations"), ""), made);
  assert_false(archive_read_only(archive));
  /* those that are there serve */
  char name[200];
  name_of(3, name);
  assert_ok(test_open(archive, name, NULL, false, &c, &error), &error);
  conversation_release(c);
  archive->catalog.map_bytes_max = CATALOG_MAP_BYTES_MAX; /* and it goes on when there is room */
  assert_int_equal(make_many(archive, made, made + 5, &error), made + 5);
  archive_close(archive);
  archive = small_archive(*state);
  assert_int_equal(count_names(archive), made + 5);
  archive_close(archive);
}

static int setup(void **state) {
  *state = test_directory_make();
  return 0;
}

static int teardown(void **state) {
  test_directory_remove(*state);
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(a_full_map_grows, setup, teardown),
      cmocka_unit_test_setup_teardown(a_map_that_cannot_grow_refuses_cleanly, setup, teardown),
  };
  if (access("/dev/shm", W_OK) == 0)
    setenv("TMPDIR", "/dev/shm", 0); /* hundreds of syncs are quicker without a disk */
  return cmocka_run_group_tests(tests, NULL, NULL);
}
