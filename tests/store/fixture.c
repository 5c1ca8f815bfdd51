// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/store/fixture.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

unsigned test_log_lines;
char test_log_last[1024];

char *test_directory_make(void) {
  const char *base = getenv("TMPDIR");
  char *path = malloc(1024);
  assert_non_null(path);
  snprintf(path, 1024, "%s/coldkv-store-XXXXXX", base && base[0] ? base : "/tmp");
  assert_non_null(mkdtemp(path));
  return path;
}

void test_directory_remove(char *path) {
  test_tree_remove(path);
  free(path);
}

const char *test_path(const char *directory, const char *name) {
  static char buffers[8][4096];
  static unsigned turn;
  char *buffer = buffers[turn++ % 8];
  snprintf(buffer, sizeof buffers[0], "%s/%s", directory, name);
  return buffer;
}

static bool dots(const char *name) { return strcmp(name, ".") == 0 || strcmp(name, "..") == 0; }

void test_tree_remove(const char *path) {
  DIR *dir = opendir(path);
  if (dir) {
    const struct dirent *entry;
    while ((entry = readdir(dir)))
      if (!dots(entry->d_name)) {
        char child[4096];
        snprintf(child, sizeof child, "%s/%s", path, entry->d_name);
        test_tree_remove(child);
      }
    closedir(dir);
    rmdir(path);
  } else {
    unlink(path);
  }
}

static void copy_file(const char *from, const char *to) {
  static char bytes[1 << 16];
  int in = open(from, O_RDONLY | O_CLOEXEC), out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  assert_true(in >= 0 && out >= 0);
  ssize_t got;
  while ((got = read(in, bytes, sizeof bytes)) > 0)
    assert_int_equal(write(out, bytes, (size_t)got), got);
  assert_int_equal(got, 0);
  close(in);
  close(out);
}

void test_tree_copy(const char *from, const char *to) {
  struct stat status;
  assert_int_equal(stat(from, &status), 0);
  if (!S_ISDIR(status.st_mode)) {
    copy_file(from, to);
    return;
  }
  assert_int_equal(mkdir(to, 0700), 0);
  DIR *dir = opendir(from);
  assert_non_null(dir);
  const struct dirent *entry;
  while ((entry = readdir(dir)))
    if (!dots(entry->d_name)) {
      char a[4096], b[4096];
      snprintf(a, sizeof a, "%s/%s", from, entry->d_name);
      snprintf(b, sizeof b, "%s/%s", to, entry->d_name);
      test_tree_copy(a, b);
    }
  closedir(dir);
}

unsigned test_count_entries(const char *directory, const char *prefix) {
  unsigned count = 0;
  DIR *dir = opendir(directory);
  if (!dir)
    return 0;
  const struct dirent *entry;
  while ((entry = readdir(dir)))
    count += !dots(entry->d_name) && strncmp(entry->d_name, prefix, strlen(prefix)) == 0;
  closedir(dir);
  return count;
}

const char *test_find(const char *directory, const char *prefix) {
  const char *found = NULL;
  assert_int_equal(test_count_entries(directory, prefix), 1);
  DIR *dir = opendir(directory);
  assert_non_null(dir);
  const struct dirent *entry;
  while ((entry = readdir(dir)))
    if (!dots(entry->d_name) && strncmp(entry->d_name, prefix, strlen(prefix)) == 0)
      found = test_path(directory, entry->d_name);
  closedir(dir);
  return found;
}

void test_flip_bit(const char *path, uint64_t bit) {
  uint8_t byte;
  int fd = open(path, O_RDWR | O_CLOEXEC);
  assert_true(fd >= 0);
  assert_int_equal(pread(fd, &byte, 1, (off_t)(bit / 8)), 1);
  byte ^= (uint8_t)(1u << bit % 8);
  assert_int_equal(pwrite(fd, &byte, 1, (off_t)(bit / 8)), 1);
  close(fd);
}

uint64_t test_file_size(const char *path) {
  struct stat status;
  assert_int_equal(stat(path, &status), 0);
  return (uint64_t)status.st_size;
}

static uint64_t mix(uint64_t x) { /* splitmix64 */
  x += UINT64_C(0x9e3779b97f4a7c15);
  x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
  return x ^ x >> 31;
}

void test_record(uint8_t *record, uint32_t layer, uint32_t head, uint64_t token, uint64_t salt) {
  uint64_t state = mix(salt ^ mix(token << 20 | (uint64_t)layer << 10 | head));
  for (int i = 0; i < RECORD_CRC; i += 4) {
    state = mix(state);
    store_u32(record + i, (uint32_t)state);
  }
  store_u16(record + RECORD_K_SCALE, load_u16(record + RECORD_K_SCALE) % 0x7c00);
  store_u16(record + RECORD_V_SCALE, load_u16(record + RECORD_V_SCALE) % 0x7c00);
  record_seal(record, layer, head, token);
}

uint32_t test_token_id(uint64_t token, uint64_t salt) { return (uint32_t)mix(salt * 31 + token); }

void test_append_make(struct test_append *append, uint64_t first, uint32_t count, uint32_t ahead, uint64_t salt) {
  size_t ids = 4 * (size_t)count, more = 4 * (size_t)ahead, records = (size_t)count * TINY_BLOCKS * RECORD_BYTES;
  uint8_t *bytes = malloc(ids + more + records + 1);
  assert_non_null(bytes);
  for (uint32_t i = 0; i < count + ahead; i++)
    store_u32(bytes + 4 * (size_t)i, test_token_id(first + i, salt));
  for (uint32_t i = 0; i < count; i++)
    for (uint32_t b = 0; b < TINY_BLOCKS; b++)
      test_record(bytes + ids + more + ((size_t)i * TINY_BLOCKS + b) * RECORD_BYTES, b / TINY_HEADS, b % TINY_HEADS,
                  first + i, salt);
  append->bytes = bytes;
  append->message = (struct msg_append){.first = first,
                                        .ids = span_of(bytes, ids),
                                        .ahead = span_of(bytes + ids, more),
                                        .records = span_of(bytes + ids + more, records)};
}

void test_append_free(struct test_append *append) { free(append->bytes); }

int test_append(struct conversation *conversation, uint64_t first, uint32_t count, uint32_t ahead, uint64_t salt,
                bool *wrote, struct error *error) {
  struct test_append append;
  test_append_make(&append, first, count, ahead, salt);
  int result = conversation_append(conversation, &append.message, wrote, error);
  test_append_free(&append);
  return result;
}

void test_fill(struct conversation *conversation, uint64_t end, uint64_t salt) {
  struct error error;
  bool wrote;
  while (conversation_count(conversation) < end) {
    uint64_t at = conversation_count(conversation), left = end - at;
    assert_ok(test_append(conversation, at, left < 256 ? (uint32_t)left : 256, 3, salt, &wrote, &error), &error);
    assert_true(wrote);
  }
}

void test_check(struct conversation *conversation, uint64_t count, uint64_t salt) {
  struct error error = {0};
  struct view *view;
  assert_int_equal(conversation_count(conversation), count);
  assert_ok(conversation_load(conversation, &error), &error);
  assert_ok(view_acquire(conversation, &view, &error), &error);
  assert_int_equal(view_count(view), count);
  uint32_t *ids = malloc(4 * (size_t)count + 4);
  uint8_t *records = malloc((size_t)count * RECORD_BYTES + 1), wanted[RECORD_BYTES];
  assert_true(ids && records);
  assert_ok(view_tokens(view, 0, count, ids, &error), &error);
  for (uint64_t i = 0; i < count; i++)
    assert_int_equal(ids[i], test_token_id(i, salt));
  for (uint32_t b = 0; b < TINY_BLOCKS; b++) {
    uint32_t layer = b / TINY_HEADS, head = b % TINY_HEADS;
    assert_ok(view_records(view, layer, head, 0, count, records, &error), &error);
    for (uint64_t i = 0; i < count; i++) {
      test_record(wanted, layer, head, i, salt);
      assert_memory_equal(records + i * RECORD_BYTES, wanted, RECORD_BYTES);
    }
  }
  free(ids);
  free(records);
  view_release(view);
}

void test_geometry(struct msg_geometry *geometry) {
  static uint8_t frequencies[8 * TINY_HEAD_DIM / 2];
  *geometry = (struct msg_geometry){.layers = TINY_LAYERS,
                                    .kv_heads = TINY_HEADS,
                                    .group = 2,
                                    .head_dim = TINY_HEAD_DIM,
                                    .window = 2048,
                                    .rope_layout = ROPE_HALF,
                                    .rope_dims = TINY_HEAD_DIM,
                                    .rope_freqs = span_of(frequencies, sizeof frequencies)};
  for (unsigned i = 0; i < TINY_HEAD_DIM / 2; i++) {
    double frequency = 1.0 / (1 + i);
    memcpy(frequencies + 8 * (size_t)i, &frequency, sizeof frequency);
  }
}

int test_model_freeze(struct archive *archive, uint8_t mark, struct model **model, struct error *error) {
  static float means[TINY_BLOCKS * TINY_HEAD_DIM];
  uint8_t fingerprint[LIMIT_FINGERPRINT_BYTES];
  memset(fingerprint, mark, sizeof fingerprint);
  for (unsigned i = 0; i < TINY_BLOCKS * TINY_HEAD_DIM; i++)
    means[i] = (float)i / 8;
  struct msg_model wanted = {.name = span_str("tiny"),
                             .fingerprint = span_of(fingerprint, sizeof fingerprint),
                             .basis = span_str("hadamard"),
                             .codec = 1,
                             .seed = 42,
                             .tokens = 192,
                             .mean_k = span_of(means, sizeof means),
                             .mean_v = span_of(means, sizeof means)};
  test_geometry(&wanted.geometry);
  return model_freeze(archive, TEST_UID, &wanted, model, error);
}

struct model *test_model(struct archive *archive, uint8_t mark) {
  struct error error;
  struct model *model;
  assert_ok(test_model_freeze(archive, mark, &model, &error), &error);
  return model;
}

int test_open(struct archive *archive, const char *name, struct model *model, bool create,
              struct conversation **conversation, struct error *error) {
  uint8_t fingerprint[LIMIT_FINGERPRINT_BYTES];
  bool created;
  memset(fingerprint, 1, sizeof fingerprint);
  struct msg_open wanted = {
      .name = span_str(name), .fingerprint = span_of(fingerprint, sizeof fingerprint), .create = create, .write = 1};
  test_geometry(&wanted.geometry);
  if (model) {
    wanted.model = model_description(model)->id;
    wanted.fingerprint = model_description(model)->fingerprint;
  }
  return conversation_open(archive, TEST_UID, &wanted, conversation, &created, error);
}

static void keep_line(void *context, const char *line) {
  (void)context;
  test_log_lines++;
  snprintf(test_log_last, sizeof test_log_last, "%s", line);
  if (getenv("COLDKV_TEST_VERBOSE"))
    print_message("%s\n", line);
}

struct archive *test_archive(const char *dir, const struct io *io) {
  struct archive_options options = {.io = io, .log = keep_line, .catalog_map_bytes = 64 << 20};
  struct archive *archive;
  struct error error;
  assert_ok(archive_open(&archive, dir, &options, &error), &error);
  return archive;
}
