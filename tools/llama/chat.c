// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/llama/chat.h"

#include <llama.h>
#include <stdlib.h>
#include <string.h>

enum { FRAME_BYTES_MAX = 16384 };

/* Stand for what is said while a template is applied. */
static const char said[] = "coldkv-said-8a1f", answered[] = "coldkv-answered-8a1f";

/* What a template puts before and after what the user says. */
struct frame {
  char text[FRAME_BYTES_MAX];
  const char *before, *after;
  size_t before_size, after_size;
};

static int make_frame(const struct chat *chat, bool first, struct frame *frame, struct error *error) {
  const struct llama_chat_message messages[] = {{"user", "?"}, {"assistant", answered}, {"user", said}};
  int32_t size = llama_chat_apply_template(chat->template, first ? messages + 2 : messages, first ? 1 : 3, true,
                                           frame->text, FRAME_BYTES_MAX - 1);
  char *end = NULL, *place = NULL;
  frame->before = frame->text;
  if (size > 0 && size < FRAME_BYTES_MAX) {
    frame->text[size] = 0;
    end = first ? frame->text : strstr(frame->text, answered);
    place = end ? strstr(end, said) : NULL;
  }
  if (!place)
    return error_set(error, ERR_NOT_SUPPORTED, "llama.cpp cannot apply the model's chat template: use --raw");
  frame->before = first ? end : end + strlen(answered);
  frame->before_size = (size_t)(place - frame->before);
  frame->after = place + strlen(said);
  frame->after_size = strlen(frame->after);
  return 0;
}

int chat_init(struct chat *chat, const struct llama_model *model, bool raw, struct error *error) {
  *chat = (struct chat){.model = model, .template = raw ? NULL : llama_model_chat_template(model, NULL)};
  struct frame frame;
  return chat->template ? make_frame(chat, false, &frame, error) : 0;
}

/* Adds the tokens of a text. */
static int add(const struct chat *chat, const char *text, size_t size, bool first, bool special, struct tokens *tokens,
               struct error *error) {
  const struct llama_vocab *vocab = llama_model_get_vocab(chat->model);
  int32_t count = -llama_tokenize(vocab, text, (int32_t)size, NULL, 0, first, special);
  if (count <= 0)
    return 0;
  int32_t *ids = realloc(tokens->ids, (tokens->count + (size_t)count) * sizeof *ids);
  if (!ids)
    return error_set(error, ERR_MEMORY, "out of memory for %zu bytes of text", size);
  tokens->ids = ids;
  count = llama_tokenize(vocab, text, (int32_t)size, ids + tokens->count, count, first, special);
  tokens->count += count > 0 ? (uint32_t)count : 0;
  return 0;
}

int chat_text(const struct chat *chat, const char *text, size_t size, bool first, struct tokens *tokens,
              struct error *error) {
  *tokens = (struct tokens){0};
  if (size > INT32_MAX / 2)
    return error_set(error, ERR_LIMIT, "a text of %zu bytes is too long", size);
  return add(chat, text, size, first, false, tokens, error);
}

int chat_turn(const struct chat *chat, const char *line, bool first, struct tokens *tokens, struct error *error) {
  if (!chat->template)
    return chat_text(chat, line, strlen(line), first, tokens, error);
  *tokens = (struct tokens){0};
  struct frame frame;
  int result = make_frame(chat, first, &frame, error);
  if (!result)
    result = add(chat, frame.before, frame.before_size, first, true, tokens, error);
  if (!result)
    result = add(chat, line, strlen(line), false, false, tokens, error);
  if (!result)
    result = add(chat, frame.after, frame.after_size, false, true, tokens, error);
  return result;
}
