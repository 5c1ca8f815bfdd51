// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Handover: tokens that leave the hot window are encoded, all layers and heads, and put in the backlog.
#include <stdlib.h>

#include "client/clock.h"
#include "client/conversation.h"
#include "client/tuning.h"

/* Tokens of one append: 64, or fewer where a token is so large that the message would be. */
static uint32_t frame_tokens(const struct coldkv_conv *conv) {
  const struct connection *c = &conv->client->connection;
  uint64_t message = c->made ? c->message_bytes_max : LIMIT_MESSAGE_BYTES_MAX;
  uint64_t fit = (message - FRAME_OVERHEAD_BYTES) / (model_token_bytes(conv->model) + sizeof(uint32_t));
  uint64_t most = c->made && c->append_tokens_max < FRAME_TOKENS_MAX ? c->append_tokens_max : FRAME_TOKENS_MAX;
  if (fit < most)
    most = fit;
  return most ? (uint32_t)most : 1;
}

static int encode(const struct coldkv_conv *conv, struct frame *frame, struct error *error) {
  const struct coldkv_model *model = conv->model;
  const struct frozen *frozen = conv->frozen;
  uint8_t *record = frame->records;
  for (uint32_t i = 0; i < frame->count; i++) {
    uint64_t token = frame->first + i;
    frame->ids[i] = conv->hot.ids[token % HOT_RING];
    for (uint32_t layer = 0; layer < model->layers; layer++)
      for (uint32_t head = 0; head < model->kv_heads; head++, record += RECORD_BYTES) {
        size_t mean = ((size_t)layer * model->kv_heads + head) * model->head_dim;
        int result = codec_encode(&frozen->codec, hot_key(&conv->hot, layer, head, token),
                                  hot_value(&conv->hot, layer, head, token), frozen->mean_k + mean,
                                  frozen->mean_v + mean, layer, head, token, record);
        if (result)
          return error_set(error, -result, "token %llu of '%s' cannot be encoded in layer %u, kv head %u",
                           (unsigned long long)token, conv->name, layer, head);
      }
  }
  return 0;
}

/* --- on a device -------------------------------------------------------------------------------------------------- */

uint64_t handover_end(const struct coldkv_conv *conv) {
  return conv->handed + (conv->encoding ? conv->encoding->count : 0);
}

/* Lets the device encode the frame, the only one that it does at a time. */
static int encode_on_device(struct coldkv_conv *conv, struct frame *frame, struct error *error) {
  int result = handover_settle(conv, error);
  if (!result && !conv->device_frozen)
    result = device_freeze(conv->device, &conv->frozen->codec, conv->frozen->mean_k, conv->frozen->mean_v, error);
  if (result)
    return result;
  conv->device_frozen = true;
  frame->first = conv->handed;
  for (uint32_t i = 0; i < frame->count; i++)
    frame->ids[i] = conv->hot.ids[(frame->first + i) % HOT_RING];
  result = device_encode_start(conv->device, frame->first, frame->count, error);
  if (!result)
    conv->encoding = frame;
  return result;
}

int handover_settle(struct coldkv_conv *conv, struct error *error) {
  struct frame *frame = conv->encoding;
  if (!frame)
    return 0;
  conv->encoding = NULL;
  int result = device_encode_wait(conv->device, frame->records, error);
  if (result) {
    free(frame);
    return error_prefix(error, "tokens of '%s' from %llu on", conv->name, (unsigned long long)conv->handed);
  }
  backlog_push(&conv->backlog, frame);
  conv->handed += frame->count;
  return 0;
}

int handover_poll(struct coldkv_conv *conv, struct error *error) {
  return conv->encoding && device_encode_ready(conv->device) ? handover_settle(conv, error) : 0;
}

void handover_drop(struct coldkv_conv *conv) {
  if (!conv->encoding)
    return;
  device_encode_wait(conv->device, conv->encoding->records, NULL);
  free(conv->encoding);
  conv->encoding = NULL;
}

/* --- room and means ----------------------------------------------------------------------------------------------- */

/* True when so many bytes more fit. One frame always fits while the daemon is there to take it. */
static bool fits(const struct coldkv_conv *conv, uint64_t bytes) {
  return conv->backlog.bytes + bytes <= conv->client->backlog_bytes || (conv->backlog.bytes == 0 && link_ready(conv));
}

/* Waits for acknowledgements to make room, as long as the daemon is there. */
static int make_room(struct coldkv_conv *conv, uint64_t bytes, struct error *error) {
  uint64_t began = clock_ms(), deadline = patience_deadline(conv);
  bool in_time = true;
  if (!fits(conv, bytes) && !conv->sync.wanted)
    conv->sync = (struct sync){.wanted = true}; /* a daemon that syncs now and then keeps the backlog otherwise */
  while (!fits(conv, bytes) && in_time && link_ready(conv) && clock_ms() >= conv->backlog.retry_at_ms)
    in_time = client_turn_until(conv->client, deadline);
  if (conv->sync.wanted) {
    sync_lost(conv);
    conv->sync = (struct sync){.wanted = false};
  }
  patience_waited(conv, began, PATIENCE_OTHERWISE);
  if (fits(conv, bytes))
    return 0;
  const char *why = !link_ready(conv)             ? link_trouble(conv)->text
                    : conv->backlog.trouble.code ? conv->backlog.trouble.text
                                                 : "the daemon is slower than the conversation";
  return error_set(error, ERR_BACKLOG,
                   "'%s' holds %llu bytes of unacknowledged records, and backlog_bytes allows no more: %s", conv->name,
                   (unsigned long long)conv->backlog.bytes, why);
}

/* Without means nothing can be encoded; the ring holds the tokens a while longer. A conversation whose daemon did not
 * answer a moment ago does not wait for it at every block. Returns 1 when there are none yet. */
static int get_means(struct coldkv_conv *conv, struct error *error) {
  if (!patience_left(conv)) {
    error_set(error, ERR_TIMEOUT, "the daemon at %s did not answer a moment ago", conv->client->connection.path);
    return 1;
  }
  uint64_t began = clock_ms();
  int result = calibrate_run(conv, patience_deadline(conv), error);
  if (result)
    conv->last = *error;
  patience_waited(conv, began, result == -ERR_TIMEOUT ? PATIENCE_IN_VAIN : result ? PATIENCE_OTHERWISE
                                                                                  : PATIENCE_ANSWERED);
  if (result == -ERR_UNREACHABLE || result == -ERR_TIMEOUT || append_error_passes(-result))
    return 1;
  return result;
}

int handover_run(struct coldkv_conv *conv, uint64_t end, struct error *error) {
  uint64_t token_bytes = model_token_bytes(conv->model);
  int result = handover_settle(conv, error);
  if (!result && !conv->frozen)
    result = get_means(conv, error);
  if (result)
    return result;
  uint32_t most = frame_tokens(conv);
  uint64_t from = conv->handed, count = end - from, frames = (count + most - 1) / most;
  result = make_room(conv, frames * frame_bytes(0, 0) + count * (token_bytes + sizeof(uint32_t)), error);
  while (!result && from < end) {
    uint64_t left = end - from;
    struct frame *frame = frame_create(from, left < most ? (uint32_t)left : most, token_bytes);
    if (!frame)
      return error_set(error, ERR_MEMORY, "out of memory for the records of '%s'", conv->name);
    result = conv->device ? encode_on_device(conv, frame, error) : encode(conv, frame, error);
    if (result) {
      free(frame);
      return result;
    }
    from += frame->count;
    if (conv->device)
      continue;
    backlog_push(&conv->backlog, frame);
    conv->handed += frame->count;
  }
  if (!result)
    client_turn(conv->client, 0); /* on its way while the engine computes */
  return result;
}
