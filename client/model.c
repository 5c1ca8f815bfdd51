// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "client/model.h"

#include <math.h>
#include <stdlib.h>

#include "client/coldkv.h"
#include "client/error.h"
#include "client/tuning.h"

/* Rotations worth keeping: of every position inside the trained window, and of every packed one. */
static uint32_t kept_rows(uint32_t window) {
  uint32_t packed = COLDKV_SINKS + LIMIT_K_MAX + HOT_RING;
  uint32_t wanted = window > packed ? window : packed;
  return wanted < ROPE_ROWS_MAX ? wanted : ROPE_ROWS_MAX;
}

void model_geometry(const struct coldkv_model *model, struct msg_geometry *geometry) {
  message_init(&message_geometry, geometry);
  geometry->layers = model->layers;
  geometry->kv_heads = model->kv_heads;
  geometry->group = model->group;
  geometry->head_dim = model->head_dim;
  geometry->window = model->window;
  geometry->rope_layout = model->rope.layout;
  geometry->rope_dims = model->rope.dims;
  geometry->rope_freqs = span_of(model->rope.freqs, model->rope.pairs * sizeof(double));
}

/* Copies the description, RoPE frequencies included, and checks it as the daemon will. */
static int describe(struct coldkv_model *model, const struct coldkv_model_description *d, struct error *error) {
  uint32_t dims = d->rope == COLDKV_ROPE_NONE ? 0 : d->rope_dims ? d->rope_dims : d->head_dim;
  if (d->rope > COLDKV_ROPE_INTERLEAVED)
    return error_set(error, ERR_ARGUMENT, "rope %u is no layout of enum coldkv_rope", d->rope);
  if (dims > LIMIT_HEAD_DIM_MAX || dims % 2)
    return error_set(error, ERR_ARGUMENT, "rope_dims %u: wanted an even number up to head_dim", dims);
  if (!d->layers || d->layers > LIMIT_LAYERS_MAX || !d->kv_heads || d->kv_heads > LIMIT_KV_HEADS_MAX || !d->group ||
      d->group > LIMIT_GROUP_MAX || !d->window || d->window > LIMIT_WINDOW_MAX)
    return error_set(error, ERR_ARGUMENT,
                     "%u layers, %u kv heads, group %u, window %u: wanted 1 to %u, %u, %u and %u", d->layers,
                     d->kv_heads, d->group, d->window, LIMIT_LAYERS_MAX, LIMIT_KV_HEADS_MAX, LIMIT_GROUP_MAX,
                     LIMIT_WINDOW_MAX);
  double freqs[ROPE_PAIRS_MAX];
  for (uint32_t i = 0; i < dims / 2; i++)
    freqs[i] = d->rope_freqs ? d->rope_freqs[i] : pow(d->rope_theta, -2.0 * i / dims);
  if (d->name && strlen(d->name) > LIMIT_NAME_BYTES_MAX)
    return error_set(error, ERR_ARGUMENT, "the model's name is longer than %u bytes", LIMIT_NAME_BYTES_MAX);
  if (d->name)
    memcpy(model->name, d->name, strlen(d->name) + 1);
  memcpy(model->fingerprint, d->fingerprint, sizeof model->fingerprint);
  model->layers = d->layers;
  model->kv_heads = d->kv_heads;
  model->group = d->group;
  model->head_dim = d->head_dim;
  model->window = d->window;
  model->softmax_scale = d->softmax_scale != 0 ? d->softmax_scale : (float)(1 / sqrt(d->head_dim));
  if (!isfinite(model->softmax_scale) || model->softmax_scale < 0 || model->softmax_scale > 1e6f)
    return error_set(error, ERR_ARGUMENT, "softmax_scale %g: wanted a positive number", (double)d->softmax_scale);
  /* geometry first, so that rope_init gets sizes that make sense */
  struct msg_geometry geometry;
  model->rope = (struct rope){.layout = (enum rope_layout)d->rope, .dims = dims, .pairs = dims / 2};
  memcpy(model->rope.freqs, freqs, dims / 2 * sizeof freqs[0]);
  model_geometry(model, &geometry);
  int result = geometry_check(&geometry, error);
  if (result)
    return result;
  return rope_init(&model->rope, model->rope.layout, d->head_dim, dims, freqs, kept_rows(d->window), error);
}

int coldkv_model_create(coldkv_model **model, coldkv_client *client,
                        const struct coldkv_model_description *description) {
  if (!model || !client || !description)
    return api_fail(ERR_ARGUMENT, "coldkv_model_create needs a client and a description");
  *model = NULL;
  struct coldkv_model *made = calloc(1, sizeof *made);
  if (!made)
    return api_fail(ERR_MEMORY, "out of memory for a model");
  made->client = client;
  struct error error = {0};
  int result = describe(made, description, &error);
  if (result) {
    rope_finish(&made->rope);
    free(made);
    return api_result(result, &error);
  }
  client->models++;
  *model = made;
  return 0;
}

void coldkv_model_destroy(coldkv_model *model) {
  if (!model)
    return;
  while (model->frozen) {
    struct frozen *frozen = model->frozen;
    model->frozen = frozen->next;
    free(frozen->mean_k);
    free(frozen);
  }
  rope_finish(&model->rope);
  model->client->models--;
  free(model);
}

/* --- frozen models ------------------------------------------------------------------------------------------------ */

/* Means come from vectors that passed VECTOR_NORM_MAX, wherever they were computed. */
static bool means_valid(const float *mean, uint64_t count, uint32_t head_dim) {
  for (uint64_t i = 0; i < count; i += head_dim) {
    float squares = 0;
    for (uint32_t c = 0; c < head_dim; c++)
      squares += mean[i + c] * mean[i + c];
    if (!(squares <= 1.01f * VECTOR_NORM_MAX * VECTOR_NORM_MAX)) /* NaN is refused too */
      return false;
  }
  return true;
}

static bool text_is(struct span span, const char *text) {
  return span.size == strlen(text) && memcmp(span.data, text, span.size) == 0;
}

static int check_answer(const struct coldkv_model *model, const struct msg_model *answer, struct error *error) {
  struct msg_geometry own;
  model_geometry(model, &own);
  if (answer->id.size != LIMIT_ID_BYTES)
    return error_set(error, ERR_BAD_MESSAGE, "the frozen model has no id");
  if (memcmp(answer->fingerprint.data, model->fingerprint, sizeof model->fingerprint) != 0)
    return error_set(error, ERR_MODEL_MISMATCH, "the frozen model has another fingerprint than the model '%s'",
                     model->name);
  if (!geometry_equal(&answer->geometry, &own))
    return error_set(error, ERR_MODEL_MISMATCH,
                     "the frozen model has the fingerprint of the model '%s', but another geometry or RoPE",
                     model->name);
  if (!text_is(answer->basis, "hadamard") || answer->codec != 1)
    return error_set(error, ERR_NOT_SUPPORTED, "the frozen model uses codec %llu, basis '%.*s': update this library",
                     (unsigned long long)answer->codec, (int)answer->basis.size, (const char *)answer->basis.data);
  uint64_t bytes = geometry_mean_bytes(&own);
  if (answer->mean_k.size != bytes || answer->mean_v.size != bytes)
    return error_set(error, ERR_BAD_MESSAGE, "the frozen model's means have %zu and %zu bytes, wanted %llu",
                     answer->mean_k.size, answer->mean_v.size, (unsigned long long)bytes);
  return 0;
}

int model_keep(struct coldkv_model *model, const struct msg_model *answer, struct frozen **frozen,
               struct error *error) {
  int result = check_answer(model, answer, error);
  if (result)
    return result;
  for (struct frozen *known = model->frozen; known; known = known->next)
    if (memcmp(known->id, answer->id.data, sizeof known->id) == 0) {
      *frozen = known; /* frozen for good, so there is nothing new in the answer */
      return 0;
    }
  uint64_t bytes = answer->mean_k.size, count = bytes / sizeof(float);
  struct frozen *made = calloc(1, sizeof *made);
  float *means = malloc(2 * bytes);
  if (!made || !means) {
    free(made);
    free(means);
    return error_set(error, ERR_MEMORY, "out of memory for the means of the model '%s'", model->name);
  }
  made->mean_k = means;
  made->mean_v = means + count;
  memcpy(made->mean_k, answer->mean_k.data, bytes);
  memcpy(made->mean_v, answer->mean_v.data, bytes);
  memcpy(made->id, answer->id.data, sizeof made->id);
  if (!means_valid(means, 2 * count, model->head_dim))
    result = error_set(error, ERR_BAD_MESSAGE, "the frozen model's means are not finite, or far too long");
  else
    result = codec_init(&made->codec, model->head_dim, answer->seed, error);
  if (result) {
    free(made);
    free(means);
    return result;
  }
  made->next = model->frozen;
  model->frozen = made;
  *frozen = made;
  return 0;
}

struct fetch {
  struct coldkv_model *model;
  const uint8_t *id; /* that was asked for, or NULL */
  struct frozen **frozen;
};

static int take_model(void *context, const msgpack_object *result, struct error *error) {
  struct fetch *fetch = context;
  struct msg_model answer;
  int failed = message_unpack(&message_model, result, &answer, error);
  if (failed)
    return failed;
  if (fetch->id && (answer.id.size != LIMIT_ID_BYTES || memcmp(answer.id.data, fetch->id, LIMIT_ID_BYTES) != 0))
    return error_set(error, ERR_BAD_MESSAGE, "model.get answered another model than was asked for");
  return model_keep(fetch->model, &answer, fetch->frozen, error);
}

int model_fetch(struct coldkv_model *model, const uint8_t *id, uint64_t deadline_ms, struct frozen **frozen,
                struct error *error) {
  if (id)
    for (struct frozen *known = model->frozen; known; known = known->next)
      if (memcmp(known->id, id, sizeof known->id) == 0) {
        *frozen = known;
        return 0;
      }
  struct msg_model_get get = {0};
  if (id)
    get.id = span_of(id, LIMIT_ID_BYTES);
  else
    get.fingerprint = span_of(model->fingerprint, sizeof model->fingerprint);
  struct fetch fetch = {.model = model, .id = id, .frozen = frozen};
  return client_call(model->client, METHOD_MODEL_GET, &get, take_model, &fetch, deadline_ms, error);
}

const float *model_expected(struct coldkv_model *model, uint64_t tokens) {
  uint64_t end = 2 * COLDKV_HOT;
  while (end < tokens && end < model->window)
    end *= 2;
  if (end > model->window && model->window >= 2 * COLDKV_HOT)
    end = model->window;
  if (model->expected_end != end) {
    rope_mean(&model->rope, COLDKV_HOT, end, model->expected);
    model->expected_end = end;
  }
  return model->expected;
}
