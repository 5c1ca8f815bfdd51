// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "proto/error.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static const struct {
  int code;
  const char *name;
} all[] = {
#define ROW(id, value, name) {ERR_##id, name},
    ERROR_CODES(ROW)
#undef ROW
};
enum { ALL = sizeof all / sizeof all[0] };

static void test_names_are_unique_and_found(void **state) {
  (void)state;
  for (int i = 0; i < ALL; i++) {
    assert_int_equal(all[i].code, i + 1);
    assert_string_equal(error_name(all[i].code), all[i].name);
    assert_int_equal(error_code_from_name(all[i].name, strlen(all[i].name)), all[i].code);
    for (int j = 0; j < i; j++)
      assert_string_not_equal(all[i].name, all[j].name);
  }
}

static void test_unknown_names_and_codes(void **state) {
  (void)state;
  assert_string_equal(error_name(0), "internal");
  assert_string_equal(error_name(-1), "internal");
  assert_string_equal(error_name(ALL + 1), "internal");
  assert_int_equal(error_code_from_name("", 0), ERR_INTERNAL);
  assert_int_equal(error_code_from_name(NULL, 0), ERR_INTERNAL);
  assert_int_equal(error_code_from_name("ga", 2), ERR_INTERNAL);
  assert_int_equal(error_code_from_name("gaps", 4), ERR_INTERNAL);
  assert_int_equal(error_code_from_name("gaps", 3), ERR_GAP);
  assert_int_equal(error_code_from_name("gap\0", 4), ERR_INTERNAL);
}

static void test_set(void **state) {
  (void)state;
  struct error error = {0};
  assert_int_equal(error_set(&error, ERR_GAP, "starts at %d", 7), -ERR_GAP);
  assert_int_equal(error.code, ERR_GAP);
  assert_string_equal(error.text, "starts at 7");
  assert_int_equal(error_set(NULL, ERR_GAP, "starts at %d", 7), -ERR_GAP);
}

static void test_set_errno(void **state) {
  (void)state;
  static const struct {
    int errno_value, code;
  } cases[] = {{ENOSPC, ERR_NO_SPACE}, {EDQUOT, ERR_NO_SPACE}, {ENOMEM, ERR_MEMORY}, {EIO, ERR_IO}, {ENOENT, ERR_IO}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    struct error error = {0};
    assert_int_equal(error_set_errno(&error, cases[i].errno_value, "file '%s'", "a"), -cases[i].code);
    assert_int_equal(error.code, cases[i].code);
    assert_memory_equal(error.text, "file 'a': ", 10);
    assert_string_equal(error.text + 10, strerror(cases[i].errno_value));
    assert_int_equal(error_set_errno(NULL, cases[i].errno_value, "x"), -cases[i].code);
  }
}

static void test_prefix(void **state) {
  (void)state;
  struct error error = {0};
  error_set(&error, ERR_CORRUPT, "page 3 fails its CRC");
  assert_int_equal(error_prefix(&error, "segment %s", "ab"), -ERR_CORRUPT);
  assert_int_equal(error.code, ERR_CORRUPT);
  assert_string_equal(error.text, "segment ab: page 3 fails its CRC");
  assert_true(error_prefix(NULL, "x") < 0);
}

/* Whatever is said, the text ends inside its array. */
static void test_long_sentences_are_cut(void **state) {
  (void)state;
  char sentence[2 * ERROR_TEXT_BYTES];
  struct error error;
  for (size_t length = ERROR_TEXT_BYTES - 40; length < sizeof sentence; length++) {
    memset(sentence, 'x', length);
    sentence[length] = '\0';
    size_t cut = length < ERROR_TEXT_BYTES - 1 ? length : ERROR_TEXT_BYTES - 1;
    error_set(&error, ERR_IO, "%s", sentence);
    assert_int_equal(strlen(error.text), cut);
    error_set_errno(&error, EIO, "%s", sentence);
    assert_in_range(strlen(error.text), cut, ERROR_TEXT_BYTES - 1);
    error_set(&error, ERR_IO, "tail");
    error_prefix(&error, "%s", sentence);
    assert_in_range(strlen(error.text), cut, ERROR_TEXT_BYTES - 1);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_names_are_unique_and_found), cmocka_unit_test(test_unknown_names_and_codes),
      cmocka_unit_test(test_set),                        cmocka_unit_test(test_set_errno),
      cmocka_unit_test(test_prefix),                     cmocka_unit_test(test_long_sentences_are_cut),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
