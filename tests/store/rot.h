// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// An archive for the tests of rot: small, with every kind of file in it, kept in memory as well, so that whatever a
// test does to it (and whatever opening it does) can be undone, and everything it answers be compared with the truth.
#ifndef COLDKV_TESTS_STORE_ROT_H
#define COLDKV_TESTS_STORE_ROT_H

#include "tests/store/fixture.h"

enum { ROT_CONVERSATIONS = 3, ROT_FILES_MAX = 32 };

/* Tokens of 'a' and 'b', of one model: a segment, a closed log, an open log of several frames. 'c', of another model,
 * has an open log alone. */
enum { ROT_TOKENS = 8400, ROT_SHORT_TOKENS = 300, ROT_AHEAD = 7 };

enum rot_kind { ROT_SEGMENT, ROT_CLOSED, ROT_OPEN, ROT_META, ROT_MODEL, ROT_CATALOG, ROT_OTHER };

struct rot_file {
  enum rot_kind kind;
  int conversation; /* whose; of models: 0 the model of 'a' and 'b', 2 that of 'c' */
  char *path;
  uint8_t *bytes;
  size_t size;
};

struct rot {
  char *dir;
  struct rot_file files[ROT_FILES_MAX], old[ROT_FILES_MAX]; /* old: before some tokens were appended and sealed */
  unsigned count, old_count;
};

void rot_make(struct rot *rot);
void rot_finish(struct rot *rot);

/* Puts everything back as it was made. */
void rot_restore(struct rot *rot);
void rot_write(const char *path, const uint8_t *bytes, size_t size);

/* The file of that kind; `old` may be NULL where there is none. */
struct rot_file *rot_file(struct rot *rot, enum rot_kind kind, int conversation);
struct rot_file *rot_old(struct rot *rot, enum rot_kind kind, int conversation);

const char *rot_name(int conversation);
uint64_t rot_tokens(int conversation);
uint64_t rot_salt(int conversation);

/* What an archive answered, compared with the truth. */
struct rot_answers {
  unsigned wrong;   /* answers that were not the truth and not an error either */
  unsigned refused; /* conversations that could not be opened */
  unsigned errors;  /* reads answered with an error, parts left out of lookups */
  unsigned reads;
  char first[512];  /* the first wrong one */
  char reason[512]; /* why a conversation was refused */
};

/* Opens the archive and every conversation, reads every id and record, looks some up, and closes it again. Tokens that
 * are marked missing count as errors. */
void rot_ask(struct rot *rot, struct rot_answers *answers);

#endif
