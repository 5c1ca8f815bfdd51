// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The means of a model's keys and values: computed from the tokens that are held when the first of them has to leave,
// and frozen by the daemon, whose answer counts.
#include <stdlib.h>

#include "client/conversation.h"
#include "client/tuning.h"

/* Mean of [d] over the tokens [first, end) of one layer and head. */
static void mean_of(const struct coldkv_conv *conv, uint32_t layer, uint32_t head, uint64_t first, uint64_t end,
                    const float *(*vector)(const struct hot *, uint32_t, uint32_t, uint64_t), float *mean) {
  double sums[LIMIT_HEAD_DIM_MAX] = {0};
  uint32_t d = conv->model->head_dim;
  for (uint64_t t = first; t < end; t++) {
    const float *x = vector(&conv->hot, layer, head, t);
    for (uint32_t c = 0; c < d; c++)
      sums[c] += (double)x[c];
  }
  for (uint32_t c = 0; c < d; c++)
    mean[c] = (float)(sums[c] / (double)(end - first));
}

struct kept {
  struct coldkv_model *model;
  struct frozen *frozen;
};

static int take_frozen(void *context, const msgpack_object *result, struct error *error) {
  struct kept *kept = context;
  struct msg_model answer;
  int failed = message_unpack(&message_model, result, &answer, error);
  return failed ? failed : model_keep(kept->model, &answer, &kept->frozen, error);
}

/* Sends the means; the daemon may answer those of somebody who came first. */
static int freeze(struct coldkv_conv *conv, const float *means, uint64_t tokens, uint64_t deadline_ms,
                  struct frozen **frozen, struct error *error) {
  struct coldkv_model *model = conv->model;
  struct msg_model wanted;
  message_init(&message_model, &wanted);
  model_geometry(model, &wanted.geometry);
  uint64_t bytes = geometry_mean_bytes(&wanted.geometry);
  wanted.name = span_str(model->name);
  wanted.fingerprint = span_of(model->fingerprint, sizeof model->fingerprint);
  wanted.basis = span_str("hadamard");
  wanted.codec = 1;
  wanted.seed = load_u64(model->fingerprint);
  wanted.tokens = tokens;
  wanted.mean_k = span_of(means, bytes);
  wanted.mean_v = span_of((const uint8_t *)means + bytes, bytes);
  struct kept kept = {.model = model};
  int result =
      client_call(conv->client, METHOD_MODEL_CALIBRATE, &wanted, take_frozen, &kept, deadline_ms, error);
  *frozen = kept.frozen;
  return result;
}

int calibrate_run(struct coldkv_conv *conv, uint64_t deadline_ms, struct error *error) {
  const struct coldkv_model *model = conv->model;
  uint64_t first = conv->held_first > COLDKV_SINKS ? conv->held_first : COLDKV_SINKS, end = conv->tokens;
  if (end < first + CALIBRATE_TOKENS_MIN)
    return error_set(error, ERR_STATE, "means need %u tokens, '%s' holds %llu", CALIBRATE_TOKENS_MIN, conv->name,
                     (unsigned long long)(end > first ? end - first : 0));
  uint32_t d = model->head_dim;
  size_t count = (size_t)model->layers * model->kv_heads * d;
  float *means = malloc(2 * count * sizeof(float));
  if (!means)
    return error_set(error, ERR_MEMORY, "out of memory for the means of '%s'", model->name);
  int result = conv->device ? device_means(conv->device, first, end, means, error) : 0;
  for (uint32_t layer = 0; layer < model->layers && !conv->device; layer++)
    for (uint32_t head = 0; head < model->kv_heads; head++) {
      size_t at = ((size_t)layer * model->kv_heads + head) * d;
      mean_of(conv, layer, head, first, end, hot_key, means + at);
      mean_of(conv, layer, head, first, end, hot_value, means + count + at);
    }
  struct frozen *frozen = NULL;
  if (!result)
    result = freeze(conv, means, end - first, deadline_ms, &frozen, error);
  free(means);
  return result ? result : conversation_bind(conv, frozen, deadline_ms, error);
}
