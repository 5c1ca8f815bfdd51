// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A document that states facts between lines of filler, and the questions that ask for them, in the sentences that
// the tiny model was trained on.
#ifndef COLDKV_TOOLS_DEMO_DOCUMENT_H
#define COLDKV_TOOLS_DEMO_DOCUMENT_H

#include <stdint.h>

#include "proto/error.h"

enum {
  DOCUMENT_FACTS = 12,
  DOCUMENT_DIGITS = 5,
  DOCUMENT_LAST = 2048, /* bytes at the end that state no fact: more than the model's window holds of the rest */
  DOCUMENT_BYTES_MIN = 4096,
  DOCUMENT_BYTES_MAX = 1 << 20,
};

struct fact {
  char name[16];
  char digits[DOCUMENT_DIGITS + 1];
  char sentence[64];
  char question[48]; /* the model goes on with the digits */
  uint32_t at;       /* byte of the document where the sentence begins */
};

struct document {
  char *text;
  uint32_t bytes;
  struct fact facts[DOCUMENT_FACTS]; /* in the order of the text */
};

/* Writes a document of exactly `bytes` bytes (DOCUMENT_BYTES_MIN to _MAX) whose facts are spread evenly from near its
 * beginning to just before its last DOCUMENT_LAST bytes; ends in a newline. The same seed gives the same document
 * everywhere. The caller frees it with document_finish. */
int document_write(struct document *document, uint64_t seed, uint32_t bytes, struct error *error);
void document_finish(struct document *document);

#endif
