// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "proto/text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

/* RFC 3629 by the definition of its table, sharing nothing with the code under test. */
static size_t encode(uint32_t point, char out[4]) {
  if (point < 0x80)
    return out[0] = (char)point, 1;
  size_t length = point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
  static const uint8_t lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
  for (size_t i = length; i-- > 1; point >>= 6)
    out[i] = (char)(0x80 | (point & 0x3f));
  out[0] = (char)(lead[length] | point);
  return length;
}

static void test_every_code_point(void **state) {
  (void)state;
  for (uint32_t point = 0; point < 0x200000; point++) {
    char bytes[4];
    size_t length = encode(point, bytes);
    bool control = point < 0x20 || (point >= 0x7f && point < 0xa0);
    bool surrogate = point >= 0xd800 && point < 0xe000;
    size_t wanted = control || surrogate || point > 0x10ffff ? 0 : length;
    assert_int_equal(text_character(bytes, length), wanted);
    for (size_t cut = 1; cut < length; cut++)
      assert_int_equal(text_character(bytes, cut), 0);
  }
}

/* Two bytes decide most of it: all of them, each followed by two good continuation bytes. */
static void test_every_pair_of_bytes(void **state) {
  (void)state;
  for (unsigned first = 0x80; first < 256; first++)
    for (unsigned second = 0; second < 256; second++) {
      char bytes[5] = {(char)first, (char)second, (char)0x80, (char)0x80, 0};
      size_t length = text_character(bytes, 4);
      if (length) {
        assert_in_range(second, 0x80, 0xbf);
        assert_in_range(first, 0xc2, 0xf4);
        assert_int_equal(length, first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4);
      }
    }
}

static void test_repair_leaves_what_is_valid(void **state) {
  (void)state;
  static const struct {
    const char *before, *after;
  } cases[] = {{"", ""},
               {"plain", "plain"},
               {"\xe2\x82\xac", "\xe2\x82\xac"},
               {"\xe2\x82", "??"},
               {"a\x80" "b\x1b[0m", "a?b?[0m"},
               {"\xe2\xe2\x82\xac\x82", "?\xe2\x82\xac?"}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char text[16];
    size_t size = strlen(cases[i].before);
    strcpy(text, cases[i].before);
    assert_int_equal(text_valid(text, size), strcmp(cases[i].before, cases[i].after) == 0);
    text_repair(text, size);
    assert_string_equal(text, cases[i].after);
    assert_true(text_valid(text, size));
  }
  char zero[3] = "a\0b";
  assert_false(text_valid(zero, 3));
  text_repair(zero, 3);
  assert_memory_equal(zero, "a?b", 3);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_code_point),
      cmocka_unit_test(test_every_pair_of_bytes),
      cmocka_unit_test(test_repair_leaves_what_is_valid),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
