// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/store/fixture.h"

#include <string.h>

#include "store/path.h"

static const uint8_t id[LIMIT_ID_BYTES] = {0xab, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xff};
#define ID_TEXT "ab0102030405060708090a0b0c0d0eff"

static void ids_are_hex(void **state) {
  (void)state;
  char text[PATH_ID_TEXT_BYTES];
  uint8_t back[LIMIT_ID_BYTES];
  path_id_text(id, text);
  assert_string_equal(text, ID_TEXT);
  assert_true(path_id_parse(ID_TEXT, back));
  assert_memory_equal(back, id, sizeof id);
  assert_false(path_id_parse("", back));
  assert_false(path_id_parse("ab", back));
  assert_false(path_id_parse(ID_TEXT "0", back));
  assert_false(path_id_parse("AB0102030405060708090a0b0c0d0eff", back));
  assert_false(path_id_parse("gb0102030405060708090a0b0c0d0eff", back));
}

static void everything_has_its_place(void **state) {
  (void)state;
  char path[PATH_BYTES];
  path_model(path, "D", id);
  assert_string_equal(path, "D/models/" ID_TEXT);
  path_conversation(path, "D", id);
  assert_string_equal(path, "D/conversations/" ID_TEXT);
  path_deleted(path, "D", id);
  assert_string_equal(path, "D/conversations/deleted-" ID_TEXT);
  path_meta(path, "D", id);
  assert_string_equal(path, "D/conversations/" ID_TEXT "/meta");
  path_log(path, "D", id, 4096);
  assert_string_equal(path, "D/conversations/" ID_TEXT "/log-00000000000000004096");
  path_segment(path, "D", id);
  assert_string_equal(path, "D/segments/ab/" ID_TEXT ".seg");
  path_segment_directory(path, "D", id);
  assert_string_equal(path, "D/segments/ab");
}

static void names_are_read_back_strictly(void **state) {
  (void)state;
  uint64_t first = 1;
  uint8_t back[LIMIT_ID_BYTES];
  assert_true(path_log_parse("log-00000000000000004096", &first));
  assert_int_equal(first, 4096);
  assert_false(path_log_parse("log-4096", &first));
  assert_false(path_log_parse("log-000000000000000040960", &first));
  assert_false(path_log_parse("log-0000000000000000409x", &first));
  assert_false(path_log_parse("log-99999999999999999999", &first));
  assert_false(path_log_parse("log-00000000000000004096.damaged", &first));
  assert_true(path_segment_parse(ID_TEXT ".seg", back));
  assert_memory_equal(back, id, sizeof id);
  assert_false(path_segment_parse(ID_TEXT ".seg.tmp", back));
  assert_false(path_segment_parse(ID_TEXT, back));
  assert_true(path_is_temporary("meta.tmp"));
  assert_false(path_is_temporary("meta"));
  assert_false(path_is_temporary(".tmp"));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(ids_are_hex),
      cmocka_unit_test(everything_has_its_place),
      cmocka_unit_test(names_are_read_back_strictly),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
