// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What the tests of the store share: a directory of their own, a tiny model, and tokens whose ids and records follow
// from their index, so that whatever is read back can be checked without remembering what was written.
#ifndef COLDKV_TESTS_STORE_FIXTURE_H
#define COLDKV_TESTS_STORE_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "store/archive.h"

#ifndef TEST_LAYERS
#define TEST_LAYERS 2 /* a program that is compiled with its own copy of fixture.c may want fewer */
#endif
enum {
  TINY_LAYERS = TEST_LAYERS,
  TINY_HEADS = 1,
  TINY_BLOCKS = TINY_LAYERS * TINY_HEADS,
  TINY_HEAD_DIM = 64,
  TEST_UID = 1000,
};

/* Makes a fresh directory and returns its path, malloc'd; test_directory_remove removes it with all that is in it. */
char *test_directory_make(void);
void test_directory_remove(char *path);

/* Removes what is in a directory, and it too; copies a directory tree. */
void test_tree_remove(const char *path);
void test_tree_copy(const char *from, const char *to);

/* "<directory>/<name>" in one of a few buffers that are used in turn. */
const char *test_path(const char *directory, const char *name);

/* Finds the one entry in `directory` whose name begins with `prefix`; fails the test when there is not exactly one. */
const char *test_find(const char *directory, const char *prefix);
unsigned test_count_entries(const char *directory, const char *prefix);

void test_flip_bit(const char *path, uint64_t bit);
uint64_t test_file_size(const char *path);

/* Asserts that `result` is 0, showing the error's sentence when it is not. */
#define assert_ok(result, error)                                                                                      \
  do {                                                                                                                 \
    int ok_ = (result);                                                                                                \
    if (ok_)                                                                                                           \
      fail_msg("%s: %d, %s", #result, ok_, (error)->text);                                                             \
  } while (0)

/* Asserts that a call failed with `wanted` and said something. */
#define assert_error(result, wanted, error)                                                                            \
  do {                                                                                                                 \
    int got_ = (result);                                                                                               \
    if (got_ != -(wanted) || (error)->code != (wanted) || !(error)->text[0])                                           \
      fail_msg("%s: %d (%s), wanted %d", #result, got_, (error)->text, -(wanted));                                     \
  } while (0)

/* Fills a record of token (layer, head) with bytes that follow from its place and `salt`, and seals it. */
void test_record(uint8_t *record, uint32_t layer, uint32_t head, uint64_t token, uint64_t salt);
uint32_t test_token_id(uint64_t token, uint64_t salt);

/* An append of tokens first .. first + count - 1 with `ahead` ids ahead; the bytes are the struct's. */
struct test_append {
  struct msg_append message;
  uint8_t *bytes;
};
void test_append_make(struct test_append *append, uint64_t first, uint32_t count, uint32_t ahead, uint64_t salt);
void test_append_free(struct test_append *append);

/* Makes and appends; returns conversation_append's result. */
int test_append(struct conversation *conversation, uint64_t first, uint32_t count, uint32_t ahead, uint64_t salt,
                bool *wrote, struct error *error);

/* Appends up to `end` in frames of at most 256 tokens, without sync. */
void test_fill(struct conversation *conversation, uint64_t end, uint64_t salt);

/* Checks count, ids and every record of a conversation. */
void test_check(struct conversation *conversation, uint64_t count, uint64_t salt);

void test_geometry(struct msg_geometry *geometry);

/* Freezes the tiny model (fingerprint all `mark`); test_model fails the test when it cannot. */
int test_model_freeze(struct archive *archive, uint8_t mark, struct model **model, struct error *error);
struct model *test_model(struct archive *archive, uint8_t mark);

/* Opens a conversation with that model; makes it when `create`. */
int test_open(struct archive *archive, const char *name, struct model *model, bool create,
              struct conversation **conversation, struct error *error);

/* archive_open with `io` (NULL: the system's); lines that the archive logs are counted, and the last one is kept. */
struct archive *test_archive(const char *dir, const struct io *io);
extern unsigned test_log_lines;
extern char test_log_last[1024];

#endif
