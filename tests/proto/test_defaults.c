// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "proto/defaults.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static int clear_environment(void **state) {
  (void)state;
  static const char *const names[] = {"COLDKV_DATA", "COLDKV_SOCKET", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"};
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
    unsetenv(names[i]);
  return setenv("HOME", "/home/somebody", 1);
}

static void test_data_dir_in_order(void **state) {
  (void)state;
  char path[100];
  assert_int_equal(default_data_dir(path, sizeof path), 0);
  assert_string_equal(path, "/home/somebody/.local/share/coldkv");
  setenv("XDG_DATA_HOME", "relative", 1);
  assert_int_equal(default_data_dir(path, sizeof path), 0);
  assert_string_equal(path, "/home/somebody/.local/share/coldkv");
  setenv("XDG_DATA_HOME", "/data", 1);
  assert_int_equal(default_data_dir(path, sizeof path), 0);
  assert_string_equal(path, "/data/coldkv");
  setenv("COLDKV_DATA", "", 1);
  assert_int_equal(default_data_dir(path, sizeof path), 0);
  assert_string_equal(path, "/data/coldkv");
  setenv("COLDKV_DATA", "here", 1);
  assert_int_equal(default_data_dir(path, sizeof path), 0);
  assert_string_equal(path, "here");
}

static void test_data_dir_without_home(void **state) {
  (void)state;
  char path[4200];
  unsetenv("HOME");
  int result = default_data_dir(path, sizeof path);
  if (result == 0) /* from the user database */
    assert_non_null(strstr(path, "/.local/share/coldkv"));
  else
    assert_string_equal(path, "");
}

static void test_socket_in_order(void **state) {
  (void)state;
  char path[100], wanted[100];
  snprintf(wanted, sizeof wanted, "/tmp/coldkv-%lu/coldkv.sock", (unsigned long)geteuid());
  assert_int_equal(default_socket_path(path, sizeof path), 0);
  assert_string_equal(path, wanted);
  setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
  assert_int_equal(default_socket_path(path, sizeof path), 0);
  assert_string_equal(path, "/run/user/7/coldkv.sock");
  setenv("COLDKV_SOCKET", "/x/y", 1);
  assert_int_equal(default_socket_path(path, sizeof path), 0);
  assert_string_equal(path, "/x/y");
}

static void test_what_does_not_fit(void **state) {
  (void)state;
  setenv("COLDKV_DATA", "/123456789", 1);
  setenv("COLDKV_SOCKET", "/123456789", 1);
  char path[11];
  assert_int_equal(default_data_dir(path, 11), 0);
  assert_int_equal(default_data_dir(path, 10), -1);
  assert_string_equal(path, "");
  assert_int_equal(default_socket_path(path, 11), 0);
  assert_int_equal(default_socket_path(path, 10), -1);
  assert_string_equal(path, "");
  assert_int_equal(default_socket_path(path, 0), -1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(test_data_dir_in_order, clear_environment),
      cmocka_unit_test_setup(test_data_dir_without_home, clear_environment),
      cmocka_unit_test_setup(test_socket_in_order, clear_environment),
      cmocka_unit_test_setup(test_what_does_not_fit, clear_environment),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
