// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/store/fixture.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/catalog.h"
#include "store/catalog_check.h"
#include "store/catalog_value.h"

enum { MAP_BYTES = 16 << 20 };

static struct catalog catalog;
static char *dir;

static int setup(void **state) {
  struct error error;
  (void)state;
  dir = test_directory_make();
  assert_ok(catalog_open(&catalog, dir, MAP_BYTES, CATALOG_WRITE, &error), &error);
  return 0;
}

static int teardown(void **state) {
  (void)state;
  catalog_close(&catalog);
  test_directory_remove(dir);
  return 0;
}

static MDB_txn *begin(bool write) {
  struct error error;
  MDB_txn *txn;
  assert_ok(catalog_begin(&catalog, write, &txn, &error), &error);
  return txn;
}

static void commit(MDB_txn *txn) {
  struct error error;
  assert_ok(catalog_commit(txn, &error), &error);
}

static struct msg_conversation a_conversation(uint8_t *id, uint8_t mark, const char *name) {
  memset(id, mark, LIMIT_ID_BYTES);
  return (struct msg_conversation){.name = span_str(name),
                                   .id = span_of(id, LIMIT_ID_BYTES),
                                   .model_name = span_str("tiny"),
                                   .uid = 7,
                                   .tokens = 100u + mark,
                                   .durable = 90,
                                   .open = 1};
}

static void put(const char *name, uint8_t mark) {
  struct error error;
  uint8_t id[LIMIT_ID_BYTES];
  struct msg_conversation m = a_conversation(id, mark, name);
  MDB_txn *txn = begin(true);
  assert_ok(catalog_put_conversation(&catalog, txn, &m, &error), &error);
  assert_ok(catalog_put_name(&catalog, txn, 7, name, id, &error), &error);
  commit(txn);
}

static void entries_are_found_again(void **state) {
  (void)state;
  struct error error;
  struct conversation_entry entry;
  uint8_t id[LIMIT_ID_BYTES], wanted[LIMIT_ID_BYTES];
  put("a", 3);
  put("b", 1);
  MDB_txn *txn = begin(false);
  assert_ok(catalog_get_name(&catalog, txn, 7, "a", id, &error), &error);
  memset(wanted, 3, sizeof wanted);
  assert_memory_equal(id, wanted, sizeof id);
  assert_int_equal(catalog_get_name(&catalog, txn, 7, "aa", id, &error), CATALOG_NONE);
  assert_int_equal(catalog_get_name(&catalog, txn, 8, "a", id, &error), CATALOG_NONE);
  assert_ok(catalog_get_conversation(&catalog, txn, wanted, &entry, &error), &error);
  assert_int_equal(entry.message.tokens, 103);
  assert_string_equal(entry.name, "a");
  assert_string_equal(entry.model_name, "tiny");
  assert_int_equal(entry.message.model.size, 0);
  assert_int_equal(entry.message.open, 0); /* not for the disk */
  assert_ok(catalog_next_conversation(&catalog, txn, NULL, &entry, &error), &error);
  assert_string_equal(entry.name, "b");
  assert_ok(catalog_next_conversation(&catalog, txn, entry.id, &entry, &error), &error);
  assert_string_equal(entry.name, "a");
  assert_int_equal(catalog_next_conversation(&catalog, txn, wanted, &entry, &error), CATALOG_NONE);
  catalog_abort(txn);
  txn = begin(true);
  assert_ok(catalog_delete(&catalog, txn, catalog.conversations, wanted, &error), &error);
  assert_ok(catalog_delete(&catalog, txn, catalog.conversations, wanted, &error), &error);
  assert_ok(catalog_delete_name(&catalog, txn, 7, "a", &error), &error);
  assert_int_equal(catalog_get_conversation(&catalog, txn, wanted, &entry, &error), CATALOG_NONE);
  assert_int_equal(catalog_get_name(&catalog, txn, 7, "a", id, &error), CATALOG_NONE);
  commit(txn);
}

static void names_stand_by_user_in_byte_order(void **state) {
  (void)state;
  struct error error;
  static const struct {
    uint32_t uid;
    const char *name;
  } names[] = {{256, "a"}, {1, "z"}, {1, "y"}, {1, "yy"}, {0, "0"}, {UINT32_MAX, "q"}};
  uint8_t id[LIMIT_ID_BYTES] = {0};
  MDB_txn *txn = begin(true);
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
    assert_ok(catalog_put_name(&catalog, txn, names[i].uid, names[i].name, id, &error), &error);
  commit(txn);
  char name[LIMIT_NAME_BYTES_MAX + 1] = "";
  static const char *const wanted[] = {"y", "yy", "z"};
  txn = begin(false);
  for (int i = 0; i < 3; i++) {
    assert_ok(catalog_next_name(&catalog, txn, 1, name, name, id, &error), &error);
    assert_string_equal(name, wanted[i]);
  }
  assert_int_equal(catalog_next_name(&catalog, txn, 1, name, name, id, &error), CATALOG_NONE);
  assert_int_equal(catalog_next_name(&catalog, txn, 2, "", name, id, &error), CATALOG_NONE);
  assert_ok(catalog_next_name(&catalog, txn, UINT32_MAX, "", name, id, &error), &error);
  catalog_abort(txn);
}

static void segments_and_the_mark(void **state) {
  (void)state;
  struct error error;
  struct catalog_segment segment = {.first = UINT64_C(1) << 40, .count = 4096, .users = 2}, back;
  bool clean;
  memset(segment.id, 5, LIMIT_ID_BYTES);
  memset(segment.model, 6, LIMIT_ID_BYTES);
  memset(segment.conversation, 7, LIMIT_ID_BYTES);
  MDB_txn *txn = begin(true);
  assert_ok(catalog_put_segment(&catalog, txn, &segment, &error), &error);
  assert_ok(catalog_get_segment(&catalog, txn, segment.id, &back, &error), &error);
  assert_memory_equal(&segment, &back, sizeof back);
  assert_ok(catalog_get_clean(&catalog, txn, &clean, &error), &error);
  assert_false(clean);
  assert_ok(catalog_set_clean(&catalog, txn, true, &error), &error);
  assert_ok(catalog_get_clean(&catalog, txn, &clean, &error), &error);
  assert_true(clean);
  assert_ok(catalog_set_clean(&catalog, txn, false, &error), &error);
  assert_ok(catalog_get_clean(&catalog, txn, &clean, &error), &error);
  assert_false(clean);
  commit(txn);
}

static void a_value_belongs_to_its_key(void **state) {
  (void)state;
  struct error error;
  uint8_t id[LIMIT_ID_BYTES];
  put("a", 1);
  MDB_txn *txn = begin(true);
  /* the value of one key under another */
  MDB_val key = {.mv_size = 5, .mv_data = (void *)(uintptr_t)"\0\0\0\7a"}, value;
  assert_int_equal(mdb_get(txn, catalog.names, &key, &value), 0);
  uint8_t copy[64];
  assert_true(value.mv_size <= sizeof copy);
  memcpy(copy, value.mv_data, value.mv_size);
  value.mv_data = copy;
  key.mv_data = (void *)(uintptr_t)"\0\0\0\7b";
  assert_int_equal(mdb_put(txn, catalog.names, &key, &value, 0), 0);
  assert_error(catalog_get_name(&catalog, txn, 7, "b", id, &error), ERR_CORRUPT, &error);
  assert_ok(catalog_get_name(&catalog, txn, 7, "a", id, &error), &error);
  commit(txn);
  assert_error(catalog_walk(&catalog, &error), ERR_CORRUPT, &error);
}

static void a_name_that_leads_nowhere_is_found_by_the_walk(void **state) {
  (void)state;
  struct error error;
  const uint8_t id[LIMIT_ID_BYTES] = {1};
  put("a", 1);
  assert_ok(catalog_walk(&catalog, &error), &error);
  MDB_txn *txn = begin(true);
  assert_ok(catalog_put_name(&catalog, txn, 7, "b", id, &error), &error);
  commit(txn);
  assert_error(catalog_walk(&catalog, &error), ERR_CORRUPT, &error);
}

static void a_full_map_is_no_damage(void **state) {
  (void)state;
  struct error error = {0};
  uint8_t id[LIMIT_ID_BYTES];
  catalog_close(&catalog);
  assert_ok(catalog_open(&catalog, dir, 256 << 10, CATALOG_WRITE, &error), &error);
  catalog.map_bytes_max = 256 << 10; /* it may not grow, see test_map_full.c */
  int result = 0;
  for (int i = 0; i < 4000 && !result; i++) {
    char name[LIMIT_NAME_BYTES_MAX + 1];
    snprintf(name, sizeof name, "%0200d", i);
    struct msg_conversation m = a_conversation(id, (uint8_t)i, name);
    id[0] = (uint8_t)(i >> 8);
    MDB_txn *txn = begin(true);
    result = catalog_put_conversation(&catalog, txn, &m, &error);
    if (result)
      catalog_abort(txn);
    else
      result = catalog_commit(txn, &error);
  }
  assert_error(result, ERR_NO_SPACE, &error);
  assert_ok(catalog_walk(&catalog, &error), &error);
}

static void a_copy_holds_the_same(void **state) {
  (void)state;
  struct error error;
  struct stat status;
  put("a", 1);
  put("b", 2);
  catalog_close(&catalog);
  const char *copy = test_path(dir, "copy");
  assert_ok(catalog_check(dir, MAP_BYTES, copy, &error), &error);
  assert_int_equal(stat(copy, &status), 0);
  assert_int_equal(rename(copy, test_path(dir, "data.mdb")), 0);
  assert_ok(catalog_open(&catalog, dir, MAP_BYTES, CATALOG_WRITE, &error), &error);
  assert_ok(catalog_walk(&catalog, &error), &error);
  struct conversation_entry entry;
  const uint8_t first[LIMIT_ID_BYTES] = {0};
  MDB_txn *txn = begin(false);
  assert_ok(catalog_next_conversation(&catalog, txn, first, &entry, &error), &error);
  assert_string_equal(entry.name, "a");
  assert_ok(catalog_next_conversation(&catalog, txn, entry.id, &entry, &error), &error);
  assert_string_equal(entry.name, "b");
  catalog_abort(txn);
}

static int crash(void *context, struct catalog *c, struct catalog_child *child, struct error *error) {
  (void)c;
  (void)error;
  catalog_child_tell(child, "one");
  catalog_child_tell(child, "two");
  if (*(int *)context == 0)
    return 0;
  if (*(int *)context == 1)
    return error_set(error, ERR_NO_SPACE, "no room");
  raise(*(int *)context);
  return 0;
}

static unsigned lines;

static int count_lines(void *context, const char *line) {
  (void)context;
  assert_string_equal(line, lines++ ? "two" : "one");
  return 0;
}

static void what_happens_in_a_child_is_told(void **state) {
  (void)state;
  struct error error;
  static const struct {
    int kind, code;
  } cases[] = {{0, 0}, {1, ERR_NO_SPACE}, {SIGSEGV, ERR_CORRUPT}, {SIGBUS, ERR_CORRUPT}, {SIGALRM, ERR_CORRUPT}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    int kind = cases[i].kind;
    lines = 0;
    int result = catalog_in_child(dir, MAP_BYTES, crash, count_lines, &kind, &error);
    if (cases[i].code)
      assert_error(result, cases[i].code, &error);
    else
      assert_ok(result, &error);
    assert_int_equal(lines, 2);
  }
  assert_error(catalog_in_child(test_path(dir, "none"), MAP_BYTES, crash, NULL, NULL, &error), ERR_CORRUPT, &error);
}

static int tell_whether_open(void *context, struct catalog *c, struct catalog_child *child, struct error *error) {
  (void)c;
  (void)error;
  catalog_child_tell(child, fcntl(*(int *)context, F_GETFD) >= 0 ? "open" : "closed");
  return 0;
}

static int expect_closed(void *context, const char *line) {
  (void)context;
  assert_string_equal(line, "closed");
  lines++;
  return 0;
}

/* A daemon that is killed while its child works must not leave its lock and its socket behind. */
static void a_child_holds_nothing_of_its_parent(void **state) {
  (void)state;
  struct error error;
  int fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 100);
  assert_true(fd >= 100);
  lines = 0;
  assert_ok(catalog_in_child(dir, MAP_BYTES, tell_whether_open, expect_closed, &fd, &error), &error);
  assert_int_equal(lines, 1);
  close(fd);
}

/* Tells a line and then takes longer than anybody waits. */
static int take_forever(void *context, struct catalog *child_catalog, struct catalog_child *child,
                        struct error *error) {
  (void)context;
  (void)child_catalog;
  (void)error;
  catalog_child_tell(child, "begun");
  sleep(120);
  return 0;
}

static int until_silent(void *context, const char *line) {
  unsigned *told = context;
  *told += line != NULL;
  return line ? 0 : 7;
}

static void a_child_is_ended_when_its_parent_has_enough(void **state) {
  struct error error = {0};
  unsigned told = 0;
  (void)state;
  assert_int_equal(catalog_in_child(dir, MAP_BYTES, take_forever, until_silent, &told, &error), 7);
  assert_int_equal(told, 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(entries_are_found_again, setup, teardown),
      cmocka_unit_test_setup_teardown(names_stand_by_user_in_byte_order, setup, teardown),
      cmocka_unit_test_setup_teardown(segments_and_the_mark, setup, teardown),
      cmocka_unit_test_setup_teardown(a_value_belongs_to_its_key, setup, teardown),
      cmocka_unit_test_setup_teardown(a_name_that_leads_nowhere_is_found_by_the_walk, setup, teardown),
      cmocka_unit_test_setup_teardown(a_full_map_is_no_damage, setup, teardown),
      cmocka_unit_test_setup_teardown(a_copy_holds_the_same, setup, teardown),
      cmocka_unit_test_setup_teardown(what_happens_in_a_child_is_told, setup, teardown),
      cmocka_unit_test_setup_teardown(a_child_holds_nothing_of_its_parent, setup, teardown),
      cmocka_unit_test_setup_teardown(a_child_is_ended_when_its_parent_has_enough, setup, teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
