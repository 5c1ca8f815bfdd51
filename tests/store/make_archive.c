// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// make_archive DIR: an archive for test_format.py: conversation "x" of 8500 tokens (one segment, one closed log, one
// open log), and "young" without a model. What the tokens hold follows from their index, as fixture.c says.
#include "tests/store/fixture.h"

#include <stdlib.h>

enum { SALT = 77 };

static char *dir;

static void make(void **state) {
  struct error error;
  struct conversation *c;
  bool wrote;
  (void)state;
  struct archive *archive = test_archive(dir, NULL);
  struct model *model = test_model(archive, 1);
  assert_ok(test_open(archive, "x", model, true, &c, &error), &error);
  test_fill(c, 8400, SALT);
  assert_ok(conversation_sync(c, &error), &error);
  assert_ok(conversation_seal(c, &error), &error);
  assert_ok(test_append(c, 8400, 100, 20, SALT, &wrote, &error), &error);
  conversation_release(c);
  assert_ok(test_open(archive, "young", NULL, true, &c, &error), &error);
  assert_ok(test_append(c, 0, 0, 7, SALT, &wrote, &error), &error);
  conversation_release(c);
  model_release(model);
  archive_close(archive);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(make)};
  dir = argc == 2 ? argv[1] : NULL;
  return dir ? cmocka_run_group_tests(tests, NULL, NULL) : EXIT_FAILURE;
}
