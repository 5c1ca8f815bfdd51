// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Asking a model for a fact, whatever attention it runs on.
#ifndef COLDKV_TOOLS_DEMO_QUESTION_H
#define COLDKV_TOOLS_DEMO_QUESTION_H

#include <stdint.h>

#include "tools/demo/document.h"

/* Runs n tokens through the model; logits [vocab] gets those after the last one. Nonzero is a failure. */
typedef int question_feed_fn(void *context, const uint32_t *ids, uint32_t n, float *logits);

/* Longest question in tokens, answer included. */
enum { QUESTION_TOKENS_MAX = 64 };

/* Feeds the question of `fact` and then, one by one, the likeliest next byte, DOCUMENT_DIGITS times. Writes what came
 * as a string, '?' for what is not printable. `logits` is room for [vocab]. Returns 0 or what `feed` returned. */
int question_ask(const struct fact *fact, question_feed_fn *feed, void *context, float *logits, uint32_t vocab,
                 char answer[DOCUMENT_DIGITS + 1]);

/* Bytes as token ids: this model's tokens are bytes. */
void question_ids(const char *text, uint32_t n, uint32_t *ids);

#endif
