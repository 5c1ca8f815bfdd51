// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/options.h"

static char config_path[PATH_MAX];

static void write_config(const void *text, size_t size) {
  FILE *file = fopen(config_path, "w");
  assert_non_null(file);
  assert_int_equal(fwrite(text, 1, size, file), size);
  assert_int_equal(fclose(file), 0);
}

static int read_arguments(struct options *options, struct error *error, const char *const *arguments) {
  char *argv[16];
  int argc = 0;
  while (arguments[argc])
    argc++;
  assert_true(argc < 16);
  memcpy(argv, arguments, ((size_t)argc + 1) * sizeof *argv); /* getopt permutes its own array */
  *error = (struct error){0};
  return options_read(options, argc, argv, error);
}
#define READ(...) read_arguments(&options, &error, (const char *const[]){"coldkvd", __VA_ARGS__, NULL})

static void test_command_line_wins_over_file(void **state) {
  (void)state;
  struct options options;
  struct error error;
  static const char text[] = "# where\n data = /srv/kv \nthreads=3\n\ndurability = none # quick\ninterval-ms = 7";
  write_config(text, strlen(text));
  assert_int_equal(READ("--config", config_path, "--threads", "5", "--socket", "/tmp/s"), 0);
  assert_string_equal(options.data, "/srv/kv");
  assert_string_equal(options.socket, "/tmp/s");
  assert_int_equal(options.threads, 5);
  assert_int_equal(options.durability, DURABILITY_NONE);
  assert_int_equal(options.interval_ms, 7);
}

static void test_defaults(void **state) {
  (void)state;
  struct options options;
  struct error error;
  assert_int_equal(READ("--data", "/d"), 0);
  assert_int_equal(options.durability, DURABILITY_ALWAYS);
  assert_true(options.threads >= 1);
  assert_true(strlen(options.socket) > 0);
}

static void test_backend(void **state) {
  (void)state;
  struct options options;
  struct error error;
  assert_int_equal(READ("--data", "/d"), 0);
  assert_int_equal(options.backend, BACKEND_AUTO);
  assert_int_equal(options.vram_limit, 0);
  assert_true(options.vram_codes_limit == VRAM_CODES_DEFAULT);
  assert_int_equal(options.gpu_tokens_min, 16384);
  static const char text[] = "backend = cuda\nvram-limit = 40000\nvram-codes-limit = 3\ngpu-tokens-min = 5";
  write_config(text, strlen(text));
  assert_int_equal(READ("--config", config_path, "--data", "/d", "--vram-limit", "7"), 0);
  assert_int_equal(options.backend, BACKEND_CUDA);
  assert_int_equal(options.vram_limit, 7);
  assert_int_equal(options.vram_codes_limit, 3);
  assert_int_equal(options.gpu_tokens_min, 5);
  assert_int_equal(READ("--data", "/d", "--backend", "gpu"), -ERR_ARGUMENT);
  assert_non_null(strstr(error.text, "auto, cpu, cuda"));
}

static void test_limits(void **state) {
  (void)state;
  struct options options;
  struct error error;
  assert_int_equal(READ("--data", "/d"), 0);
  assert_int_equal(options.connections, 1024);
  assert_int_equal(options.user_connections, 256);
  assert_int_equal(options.user_conversations, 1024);
  assert_int_equal(options.user_requests, 1024);
  assert_int_equal(options.quota_mb, 0);
  assert_int_equal(options.client_timeout_s, 30);
  assert_false(access_shared(&options.access));
  assert_int_equal(options_connection_bytes(&options), 2 << 20);
  assert_int_equal(READ("--data", "/d", "--user-queue-mb", "100000"), 0);
  assert_int_equal(options_connection_bytes(&options), 64 << 20);
  assert_int_equal(READ("--data", "/d", "--user-queue-mb", "288"), 0);
  assert_int_equal(options_connection_bytes(&options), 128 << 10);
  assert_int_equal(READ("--data", "/d", "--user-queue-mb", "287"), -ERR_ARGUMENT);
  assert_non_null(strstr(error.text, "it takes 288"));
  assert_int_equal(READ("--data", "/d", "--allow-groups", "0", "--quota-mb", "5"), 0);
  assert_true(access_shared(&options.access));
  assert_int_equal(options.quota_mb, 5);
}

static void test_errors_say_where(void **state) {
  (void)state;
  struct options options;
  struct error error;
  static const struct {
    const char *text, *wanted;
  } cases[] = {
      {"threads = 0\n", "line 1"},   {"\n\nthreads = 1x\n", "line 3"}, {"durability = often", "often"},
      {"nonsense = 1\n", "nonsense"}, {"threads\n", "key = value"},      {"data =\n", "empty"},
      {"allow-users = root,,no such user\n", "no such user"}, {"quota-mb = -1\n", "quota-mb"},
      {"threads = -1\n", "line 1"},  {"threads = 99999999999999999999\n", "line 1"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    write_config(cases[i].text, strlen(cases[i].text));
    assert_int_equal(READ("--config", config_path), -ERR_ARGUMENT);
    assert_non_null(strstr(error.text, cases[i].wanted));
    assert_non_null(strstr(error.text, config_path));
  }
}

static void test_files_that_are_no_config(void **state) {
  (void)state;
  struct options options;
  struct error error;
  write_config("data = /a\0b\n", 12);
  assert_int_equal(READ("--config", config_path), -ERR_ARGUMENT);
  size_t size = 65537;
  char *long_text = malloc(size);
  assert_non_null(long_text);
  memset(long_text, '#', size);
  write_config(long_text, size);
  assert_int_equal(READ("--config", config_path), -ERR_ARGUMENT);
  write_config(long_text, size - 1);
  assert_int_equal(READ("--config", config_path), 0);
  free(long_text);
  assert_int_equal(READ("--config", "/nonexistent/file"), -ERR_IO);
}

static int make_directory(void **state) {
  const char *base = getenv("TMPDIR");
  char *dir = malloc(PATH_MAX);
  if (!dir)
    return -1;
  snprintf(dir, PATH_MAX, "%s/coldkv-options-XXXXXX", base ? base : "/tmp");
  if (!mkdtemp(dir))
    return -1;
  snprintf(config_path, sizeof config_path, "%.4000s/conf", dir);
  setenv("XDG_CONFIG_HOME", dir, 1); /* no default file of the user that runs this */
  *state = dir;
  return 0;
}

static int remove_directory(void **state) {
  unlink(config_path);
  int result = rmdir(*state);
  free(*state);
  return result;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_command_line_wins_over_file),
      cmocka_unit_test(test_defaults),
      cmocka_unit_test(test_backend),
      cmocka_unit_test(test_limits),
      cmocka_unit_test(test_errors_say_where),
      cmocka_unit_test(test_files_that_are_no_config),
  };
  return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
