// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Turns of a conversation as tokens. A model with a chat template gets each turn in the template's words; the end of an
// answer is written when the next turn begins, so that a conversation can stop anywhere.
#ifndef COLDKV_TOOLS_LLAMA_CHAT_H
#define COLDKV_TOOLS_LLAMA_CHAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/error.h"

struct llama_model;

struct chat {
  const struct llama_model *model;
  const char *template; /* NULL: text goes to the model as it is, and a line is an answer */
};

/* Tokens; free(ids). */
struct tokens {
  int32_t *ids;
  uint32_t count;
};

/* Takes the model's template unless `raw`. Fails when llama.cpp does not know the template. */
int chat_init(struct chat *chat, const struct llama_model *model, bool raw, struct error *error);

/* Text as it is. `first`: at the beginning of a conversation, where some models want a token of their own. */
int chat_text(const struct chat *chat, const char *text, size_t size, bool first, struct tokens *tokens,
              struct error *error);

/* What the user says, with all that belongs between the last answer and the next. What the user types stands for
 * itself, even if it looks like a special token. */
int chat_turn(const struct chat *chat, const char *line, bool first, struct tokens *tokens, struct error *error);

#endif
