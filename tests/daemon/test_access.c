// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Lists of users and groups, and the check of a peer on a socket pair. Other users than one: test_access.py.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/access.h"

static void test_lists(void **state) {
  (void)state;
  struct access access = {0};
  struct error error = {0};
  assert_int_equal(access_set_users(&access, " root , 12,,4294967294 ", &error), 0);
  assert_int_equal(access.user_count, 3);
  assert_int_equal(access.users[0], 0);
  assert_int_equal(access.users[1], 12);
  assert_int_equal(access.users[2], 4294967294u);
  assert_int_equal(access_set_groups(&access, "root", &error), 0);
  assert_int_equal(access.group_count, 1);
  assert_true(access_shared(&access));
  assert_int_equal(access_set_users(&access, "", &error), 0); /* the last list counts */
  assert_int_equal(access.user_count, 0);
  assert_int_equal(access_set_groups(&access, " , ", &error), 0);
  assert_false(access_shared(&access));
}

static void test_bad_lists(void **state) {
  (void)state;
  static const char *const bad[] = {"no such user", "4294967295", "-1", "0x10", "12 13", "root;bin",
                                    "99999999999999999999"};
  struct access access = {0};
  struct error error = {0};
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    assert_int_equal(access_set_users(&access, bad[i], &error), -ERR_ARGUMENT);
    assert_non_null(strstr(error.text, bad[i]));
    assert_int_equal(access_set_groups(&access, bad[i], &error), -ERR_ARGUMENT);
  }
  char list[4 * (ACCESS_IDS_MAX + 1) + 1] = "", longest[300];
  for (unsigned i = 0; i < ACCESS_IDS_MAX; i++)
    strcat(list, "123,");
  assert_int_equal(access_set_users(&access, list, &error), 0);
  assert_int_equal(access.user_count, ACCESS_IDS_MAX);
  strcat(list, "123");
  assert_int_equal(access_set_users(&access, list, &error), -ERR_ARGUMENT);
  memset(longest, 'a', sizeof longest);
  longest[sizeof longest - 1] = 0;
  assert_int_equal(access_set_users(&access, longest, &error), -ERR_ARGUMENT);
}

static void test_own_user(void **state) {
  (void)state;
  struct access access = {0};
  struct error error = {0};
  uint32_t uid = 1;
  int ends[2];
  assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  assert_int_equal(access_check(&access, ends[0], &uid, &error), 0);
  assert_int_equal(uid, geteuid());
  assert_true(access_operator(uid));
  close(ends[0]);
  close(ends[1]);
  assert_int_equal(access_check(&access, ends[0], &uid, &error), -ERR_IO);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_lists),
      cmocka_unit_test(test_bad_lists),
      cmocka_unit_test(test_own_user),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
