// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Blocks of new tokens: begin, end, abort, and going back.
#include <stdlib.h>

#include "client/conversation.h"
#include "client/error.h"
#include "client/tuning.h"

_Static_assert(COLDKV_HOT + (HOT_TILE - 1) + COLDKV_BLOCK_MAX + COLDKV_REWIND_EXACT < HOT_RING,
               "the ring holds the largest hot window, a block and what an exact rewind needs");

uint64_t conversation_hot_first(uint64_t first) {
  return first < COLDKV_HOT ? 0 : (first - COLDKV_HOT) / HOT_TILE * HOT_TILE;
}

/* While the past is rebuilt, a block has to bring what coldkv_resume said. */
static int check_resumed(const struct coldkv_conv *conv, const uint32_t *ids, uint32_t n, struct error *error) {
  if (!resume_left(conv))
    return 0;
  uint64_t end = resume_range_end(conv);
  if (conv->tokens + n > end)
    return error_set(error, ERR_STATE, "'%s' has a past: feed what coldkv_resume says first, %llu tokens now",
                     conv->name, (unsigned long long)(end - conv->tokens));
  for (uint32_t i = 0; i < n; i++)
    if (ids[i] != resume_id(conv, conv->tokens + i))
      return error_set(error, ERR_STATE, "token %llu of '%s' has id %u, not %u: feed what coldkv_resume says first",
                       (unsigned long long)(conv->tokens + i), conv->name, resume_id(conv, conv->tokens + i), ids[i]);
  return 0;
}

static int check_begin(const struct coldkv_conv *conv, const uint32_t *ids, uint32_t n, struct error *error) {
  if (!n || n > COLDKV_BLOCK_MAX)
    return error_set(error, ERR_ARGUMENT, "a block of %u tokens: wanted 1 to %d", n, COLDKV_BLOCK_MAX);
  if (conv->block.open)
    return error_set(error, ERR_STATE, "a block of '%s' is open already: call coldkv_end or coldkv_abort", conv->name);
  if (conv->tokens + n > LIMIT_TOKEN_INDEX_MAX)
    return error_set(error, ERR_LIMIT, "'%s' is at its last token", conv->name);
  return check_resumed(conv, ids, n, error);
}

/* What a device has found, of this block or one before. */
static int check_found(const struct coldkv_conv *conv, struct error *error) {
  uint64_t token;
  if (!conv->device || !device_check(conv->device, &token))
    return 0;
  return error_set(error, ERR_NOT_FINITE, "q, k or v of the block of '%s' that begins at token %llu is not finite, or "
                   "too long", conv->name, (unsigned long long)token);
}

/* Hands over what leaves the hot window. The block may not push a token out of the ring that was not encoded. */
static int hand_over(struct coldkv_conv *conv, uint32_t n, struct error *error) {
  client_turn(conv->client, 0);
  if (conv->fatal.code) {
    *error = conv->fatal;
    return -error->code;
  }
  uint64_t hot_first = conversation_hot_first(conv->tokens);
  int result = check_found(conv, error);
  if (!result)
    result = conv->tokens + n > conv->handed + HOT_RING ? handover_settle(conv, error) : handover_poll(conv, error);
  if (!result && hot_first > handover_end(conv))
    result = handover_run(conv, hot_first, error);
  if (result < 0)
    return result;
  if (conv->tokens + n > conv->handed + HOT_RING)
    return error_set(error, ERR_BACKLOG, "'%s' cannot go on before the daemon has frozen its model's means: %s",
                     conv->name, result ? error->text : "it has not yet");
  return 0;
}

static void open_block(struct coldkv_conv *conv, const uint32_t *ids, uint32_t n, const int64_t *positions) {
  struct block *block = &conv->block;
  uint64_t first = conv->tokens;
  if (first + n > conv->held_first + HOT_RING)
    conv->held_first = first + n - HOT_RING;
  uint64_t hot_first = conversation_hot_first(first);
  block->first = first;
  block->count = n;
  block->hot_start = hot_first > conv->held_first ? hot_first : conv->held_first;
  if (block->hot_start && block->hot_start < COLDKV_SINKS) /* after a long way back: the sinks count once */
    block->hot_start = COLDKV_SINKS;
  block->packed = first + n > conv->model->window;
  block->rotated = positions != NULL;
  for (uint32_t i = 0; i < n; i++) {
    conv->hot.ids[(first + i) % HOT_RING] = ids[i];
    rope_angles(&conv->model->rope, (int64_t)(first + i), block->rows[i]);
    if (positions)
      rope_angles(&conv->model->rope, positions[i], block->unrotate[i]);
  }
  memset(block->done, 0, 2 * (size_t)conv->model->layers); /* `prefetched` is behind it */
  block->open = true;
}

static int open_on_device(struct coldkv_conv *conv, const int64_t *positions, struct error *error) {
  const struct block *block = &conv->block;
  struct device_block opened = {.first = block->first, .hot_start = block->hot_start, .count = block->count,
                                .packed = block->packed, .rotated = block->rotated};
  if (positions)
    memcpy(opened.positions, positions, block->count * sizeof *positions);
  return device_begin(conv->device, &opened, conv->k, error);
}

static int begin(coldkv_conv *conv, const uint32_t *ids, uint32_t n, const int64_t *positions) {
  if (!conv || !ids)
    return api_fail(ERR_ARGUMENT, "a block needs a conversation and ids");
  struct error error = {0};
  int result = check_begin(conv, ids, n, &error);
  patience_block(conv);
  if (!result)
    result = hand_over(conv, n, &error);
  if (result)
    return api_result(result, &error);
  open_block(conv, ids, n, positions);
  if (conv->device)
    result = open_on_device(conv, positions, &error);
  conv->block.open = result == 0;
  return api_result(result, &error);
}

int coldkv_begin(coldkv_conv *conv, const uint32_t *ids, uint32_t n) { return begin(conv, ids, n, NULL); }

int coldkv_begin_rotated(coldkv_conv *conv, const uint32_t *ids, uint32_t n, const int64_t *positions) {
  return positions ? begin(conv, ids, n, positions)
                   : api_fail(ERR_ARGUMENT, "coldkv_begin_rotated needs the positions");
}

int coldkv_end(coldkv_conv *conv) {
  if (!conv || !conv->block.open)
    return api_fail(ERR_STATE, "coldkv_end without a block: call coldkv_begin first");
  for (uint32_t layer = 0; layer < conv->model->layers; layer++)
    if (!conv->block.done[layer])
      return api_fail(ERR_STATE, "coldkv_end before layer %u of the block was attended or pushed", layer);
  struct error error = {0};
  if (check_found(conv, &error) || handover_poll(conv, &error))
    return api_result(-error.code, &error);
  conv->block.open = false;
  conv->tokens += conv->block.count;
  resume_step(conv);
  client_turn(conv->client, 0); /* a large append goes out bit by bit, as the socket takes it */
  return 0;
}

/* What was found at token `end` or later is gone. */
static void forget_found(struct coldkv_conv *conv, uint64_t end) {
  uint64_t token;
  if (conv->device && device_check(conv->device, &token) && token >= end)
    device_forget(conv->device);
}

int coldkv_abort(coldkv_conv *conv) {
  if (!conv || !conv->block.open)
    return api_fail(ERR_STATE, "coldkv_abort without a block");
  conv->block.open = false;
  forget_found(conv, conv->block.first);
  return 0;
}

int coldkv_rewind(coldkv_conv *conv, uint64_t end) {
  if (!conv)
    return api_fail(ERR_ARGUMENT, "coldkv_rewind needs a conversation");
  if (conv->block.open)
    return api_fail(ERR_STATE, "coldkv_rewind inside a block of '%s': call coldkv_end or coldkv_abort first",
                    conv->name);
  if (end > conversation_end(conv))
    return api_fail(ERR_RANGE, "cannot go back to token %llu of '%s', which has %llu", (unsigned long long)end,
                    conv->name, (unsigned long long)conversation_end(conv));
  if (end < conv->handed)
    return api_fail(ERR_RANGE, "cannot go back to token %llu of '%s': tokens before %llu are handed over",
                    (unsigned long long)end, conv->name, (unsigned long long)conv->handed);
  if (end < handover_end(conv))
    handover_drop(conv);
  forget_found(conv, end);
  if (conv->plan.end > end)
    conv->plan.end = end;
  if (conv->tokens > end)
    conv->tokens = end;
  return 0;
}
