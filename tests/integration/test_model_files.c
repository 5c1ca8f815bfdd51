// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The demo's loader on good and bad files, its JSON reader, and its documents.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/bytes.h"
#include "tools/demo/document.h"
#include "tools/demo/filler.h"
#include "tools/demo/json.h"
#include "tools/demo/llama.h"
#include "tools/demo/process.h"
#include "tools/demo/safetensors.h"

static char scratch[PATH_MAX], path[PATH_MAX + 32];

static int make_scratch(void **state) {
  (void)state;
  struct error error;
  return scratch_create(scratch, &error);
}

static int drop_scratch(void **state) {
  (void)state;
  scratch_remove(scratch);
  return access(scratch, F_OK) == 0; /* a failure when it is still there */
}

static void write_file(const char *name, const void *data, size_t size) {
  snprintf(path, sizeof path, "%s/%s", scratch, name);
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(data, 1, size, file), size);
  assert_int_equal(fclose(file), 0);
}

/* Writes a safetensors file: header length (that of `header` plus `more`), header, then `size` bytes of data. */
static void write_tensors(const char *header, uint64_t more, const void *data, size_t size) {
  uint8_t bytes[4096];
  size_t header_size = strlen(header);
  assert_true(8 + header_size + size <= sizeof bytes);
  store_u64(bytes, header_size + more);
  memcpy(bytes + 8, header, header_size);
  memcpy(bytes + 8 + header_size, data, size);
  write_file("model.safetensors", bytes, 8 + header_size + size);
}

/* fp16: 1, -2, 0.5, 65504, then a NaN */
static const uint16_t halves[] = {0x3c00, 0xc000, 0x3800, 0x7bff, 0x7e00};

static const char good[] = "{\"__metadata__\": {\"format\": \"pt\", \"x\": [1, {\"y\": null}, []]},"
                           " \"a\": {\"dtype\": \"F16\", \"shape\": [2, 2], \"data_offsets\": [0, 8]},"
                           " \"n\": {\"dtype\": \"F16\", \"shape\": [1], \"data_offsets\": [8, 10]},"
                           " \"b\": {\"dtype\": \"I8\", \"shape\": [10], \"data_offsets\": [0, 10]}}";

static void test_good_tensors(void **state) {
  (void)state;
  struct safetensors *file;
  struct error error = {0};
  float *data;
  uint64_t size;
  write_tensors(good, 0, halves, sizeof halves);
  assert_int_equal(safetensors_open(&file, path, &error), 0);
  assert_int_equal(safetensors_read(file, "a", 2, 2, &data, &error), 0);
  assert_true(data[0] == 1.0f && data[1] == -2.0f && data[2] == 0.5f && data[3] == 65504.0f);
  free(data);
  assert_memory_equal(safetensors_bytes(file, &size), halves, sizeof halves);
  assert_int_equal(size, sizeof halves);

  assert_int_equal(safetensors_read(file, "a", 4, 0, &data, &error), -ERR_CORRUPT); /* another rank */
  assert_null(data);
  assert_int_equal(safetensors_read(file, "a", 1, 4, &data, &error), -ERR_CORRUPT); /* another shape */
  assert_int_equal(safetensors_read(file, "b", 10, 0, &data, &error), -ERR_CORRUPT); /* another type */
  assert_int_equal(safetensors_read(file, "c", 2, 2, &data, &error), -ERR_CORRUPT); /* not there */
  assert_int_equal(safetensors_read(file, "n", 1, 0, &data, &error), -ERR_CORRUPT); /* NaN */
  assert_non_null(strstr(error.text, "not finite"));
  safetensors_close(file);
  safetensors_close(NULL);
}

static void test_bad_tensors(void **state) {
  (void)state;
  static const char *const headers[] = {
      "",
      "[]",
      "{",
      "{\"a\": 1}",
      "{\"a\": {}}",
      "{\"a\": {\"dtype\": \"F16\", \"shape\": [2, 2], \"data_offsets\": [0, 8]}",   /* no end */
      "{\"a\": {\"dtype\": \"F16\", \"shape\": [2, 2], \"data_offsets\": [0, 8]}} x", /* more than an end */
      "{\"a\": {\"dtype\": \"F16\", \"shape\": [2, 2], \"data_offsets\": [0]}}",
      "{\"a\": {\"dtype\": \"F16\", \"shape\": [2, 2], \"data_offsets\": [0, 8, 8]}}",
      "{\"a\": {\"dtype\": \"F16\", \"shape\": [2, 2], \"data_offsets\": [8, 0]}}",
      "{\"a\": {\"dtype\": \"F16\", \"shape\": [2, 2], \"data_offsets\": [4, 12]}}", /* past the end of the file */
      "{\"a\": {\"dtype\": \"F16\", \"shape\": [2, 3], \"data_offsets\": [0, 8]}}",
      "{\"a\": {\"dtype\": \"F32\", \"shape\": [2, 2], \"data_offsets\": [0, 8]}}",
      "{\"a\": {\"dtype\": \"F16\", \"shape\": [2, -2], \"data_offsets\": [0, 8]}}",
      "{\"a\": {\"dtype\": \"F16\", \"shape\": [2.0, 2], \"data_offsets\": [0, 8]}}",
      "{\"a\": {\"dtype\": \"F16\", \"shape\": [9007199254740992, 9007199254740992], \"data_offsets\": [0, 0]}}",
      "{\"a\": {\"dtype\": \"F16\", \"shape\": [1, 1, 1, 1, 4], \"data_offsets\": [0, 8]}}",
      "{\"a\": {\"dtype\": \"a type of which nobody has heard\", \"shape\": [4], \"data_offsets\": [0, 8]}}",
      "{\"a\": [[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]}",
  };
  struct safetensors *file;
  struct error error;
  for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
    write_tensors(headers[i], 0, halves, 8);
    error = (struct error){0};
    int result = safetensors_open(&file, path, &error);
    if (result != -ERR_CORRUPT)
      fail_msg("%s: gives %d", headers[i], result);
    assert_null(file);
    assert_non_null(strstr(error.text, path)); /* the sentence names the file */
  }
  write_tensors(good, 1000, halves, sizeof halves); /* a header longer than the file */
  assert_int_equal(safetensors_open(&file, path, &error), -ERR_CORRUPT);
  write_tensors(good, UINT64_MAX - 200, halves, sizeof halves);
  assert_int_equal(safetensors_open(&file, path, &error), -ERR_CORRUPT);
  write_file("model.safetensors", "short", 5);
  assert_int_equal(safetensors_open(&file, path, &error), -ERR_CORRUPT);
  assert_int_equal(safetensors_open(&file, scratch, &error), -ERR_IO); /* a directory */
  assert_int_equal(safetensors_open(&file, "/nowhere/at/all", &error), -ERR_IO);
}

/* Every cut of a good file is refused, every flipped bit of its header is refused or harmless. */
static void test_damaged_tensors(void **state) {
  (void)state;
  uint8_t bytes[1024], damaged[sizeof bytes];
  size_t size = 8 + strlen(good) + sizeof halves;
  store_u64(bytes, strlen(good));
  memcpy(bytes + 8, good, strlen(good));
  memcpy(bytes + 8 + strlen(good), halves, sizeof halves);
  struct safetensors *file;
  struct error error;
  for (size_t cut = 0; cut < size; cut++) {
    write_file("model.safetensors", bytes, cut);
    assert_int_equal(safetensors_open(&file, path, &error), -ERR_CORRUPT);
  }
  for (size_t bit = 0; bit < 8 * (size - sizeof halves); bit += 3) {
    float *data;
    memcpy(damaged, bytes, size);
    damaged[bit / 8] ^= (uint8_t)(1u << bit % 8);
    write_file("model.safetensors", damaged, size);
    if (safetensors_open(&file, path, &error) == 0 && safetensors_read(file, "a", 2, 2, &data, &error) == 0)
      free(data);
    safetensors_close(file);
  }
}

static void test_json(void **state) {
  (void)state;
  static const char text[] = " {\"a\\n\\u0041\": \"x\\\"y\\/\", \"n\": -1.5e1, \"list\": [1, 20], \"no\": false} ";
  struct json json = {.at = text, .end = text + sizeof text - 1};
  char key[8], value[8];
  json_open(&json, '{');
  assert_true(json_key(&json, key, sizeof key));
  assert_string_equal(key, "a\nA");
  json_string(&json, value, sizeof value);
  assert_string_equal(value, "x\"y/");
  assert_true(json_key(&json, key, sizeof key));
  assert_true(json_number(&json) == -15.0);
  assert_true(json_key(&json, key, sizeof key));
  json_open(&json, '[');
  assert_true(json_element(&json));
  assert_int_equal(json_integer(&json), 1);
  assert_true(json_element(&json));
  assert_int_equal(json_integer(&json), 20);
  assert_false(json_element(&json));
  assert_true(json_key(&json, key, sizeof key));
  assert_false(json_boolean(&json));
  assert_false(json_key(&json, key, sizeof key));
  assert_true(json_finished(&json));

  static const char *const bad[] = {"",       "{",         "[1 2]",    "[1,]",  "{\"a\" 1}",    "{\"a\": 1,}", "[\"a]",
                                    "[\"\\q\"]", "[\"\\u00\"]", "[\"\n\"]", "[tru]", "[1e999]", "[--1]", "[nan]",
                                    "]",      "[1]]",      "[[1]",     "{1: 2}", "{\"a\": \"b}", "\"\\"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    struct json broken = {.at = bad[i], .end = bad[i] + strlen(bad[i])};
    json_skip(&broken);
    if (json_finished(&broken))
      fail_msg("'%s' passes as JSON", bad[i]);
  }
}

static void test_bad_config(void **state) {
  (void)state;
  static const char *const configs[] = {"", "{}", "[1]", "{\"hidden_size\": 0}", "{\"hidden_size\": -1}",
                                        "{\"head_dim\": 1e99}"};
  struct llama *llama;
  struct error error;
  for (size_t i = 0; i < sizeof configs / sizeof *configs; i++) {
    write_file("config.json", configs[i], strlen(configs[i]));
    assert_int_equal(llama_load(&llama, scratch, &error), -ERR_CORRUPT);
    assert_null(llama);
  }
  assert_int_equal(unlink(path), 0);
  assert_int_equal(llama_load(&llama, scratch, &error), -ERR_IO);
}

/* Documents are as long as asked for, have their facts where they say, and are always the same. */
static void test_document(void **state) {
  (void)state;
  static const uint32_t sizes[] = {DOCUMENT_BYTES_MIN, 6144, 16384, 65536};
  struct document document, again;
  struct error error;
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    assert_int_equal(document_write(&document, i + 1, sizes[i], &error), 0);
    assert_int_equal(document.bytes, sizes[i]);
    assert_int_equal(document.text[sizes[i] - 1], '\n');
    for (uint32_t f = 0; f < DOCUMENT_FACTS; f++) {
      const struct fact *fact = &document.facts[f];
      size_t size = strlen(fact->sentence);
      assert_true(fact->at + size <= sizes[i] - DOCUMENT_LAST);
      assert_true(f == 0 || fact->at > document.facts[f - 1].at);
      assert_memory_equal(document.text + fact->at, fact->sentence, size);
      assert_int_equal(strlen(fact->digits), DOCUMENT_DIGITS);
      assert_int_equal(strspn(fact->digits, "0123456789"), DOCUMENT_DIGITS);
      assert_non_null(strstr(fact->sentence, fact->digits));
      assert_non_null(strstr(fact->question, fact->name));
      assert_null(strstr(fact->question, fact->digits));
      for (uint32_t other = 0; other < f; other++)
        assert_string_not_equal(fact->name, document.facts[other].name);
    }
    assert_int_equal(document_write(&again, i + 1, sizes[i], &error), 0);
    assert_memory_equal(document.text, again.text, sizes[i]);
    document_finish(&document);
    document_finish(&again);
  }
  assert_int_equal(document_write(&document, 1, DOCUMENT_BYTES_MIN - 1, &error), -ERR_ARGUMENT);
  assert_int_equal(document_write(&document, 1, DOCUMENT_BYTES_MAX + 1, &error), -ERR_ARGUMENT);
}

static void test_filler(void **state) {
  (void)state;
  char text[4000], guard[4010];
  memset(guard, 0x55, sizeof guard);
  filler_write(7, text, sizeof text);
  filler_write(7, guard + 5, sizeof text);
  assert_memory_equal(text, guard + 5, sizeof text);
  assert_true(guard[4] == 0x55 && guard[4005] == 0x55);
  for (size_t i = 0; i < sizeof text; i++)
    assert_true(text[i] == '\n' || (text[i] >= ' ' && text[i] < 127));
  filler_write(8, text, sizeof text);
  assert_memory_not_equal(text, guard + 5, sizeof text);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_good_tensors), cmocka_unit_test(test_bad_tensors), cmocka_unit_test(test_damaged_tensors),
      cmocka_unit_test(test_json),         cmocka_unit_test(test_bad_config),  cmocka_unit_test(test_document),
      cmocka_unit_test(test_filler),
  };
  return cmocka_run_group_tests(tests, make_scratch, drop_scratch);
}
