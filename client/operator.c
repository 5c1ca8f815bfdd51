// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The public calls inside a block: attend, push, retrieve. They check what the engine gives, undo its RoPE if it comes
// with one, and put keys and values in the hot window.
#include <stdlib.h>

#include "client/attend.h"
#include "client/conversation.h"
#include "client/error.h"
#include "client/kernels/attend.h"
#include "client/operator.h"
#include "client/tuning.h"

/* Vectors [count][d] before RoPE: the caller's own, or copies that have to be freed. */
struct plain {
  const float *vectors;
  float *copy;
};

int operator_check_layer(const coldkv_conv *conv, uint32_t layer, const char *call, struct error *error) {
  if (!conv->block.open)
    return error_set(error, ERR_STATE, "%s outside a block of '%s': call coldkv_begin first", call, conv->name);
  if (layer >= conv->model->layers)
    return error_set(error, ERR_RANGE, "layer %u of a model of %u layers", layer, conv->model->layers);
  return 0;
}

int operator_check_keys(const coldkv_conv *conv, uint32_t layer, const char *call, struct error *error) {
  int result = operator_check_layer(conv, layer, call, error);
  if (!result && conv->block.done[layer])
    return error_set(error, ERR_STATE, "%s: layer %u of this block has its keys and values already", call, layer);
  return result;
}

/* NaN, infinities and overflow all make the comparison fail. */
static int check_vectors(const coldkv_conv *conv, const float *x, uint32_t per_row, float norm_max, const char *what,
                         struct error *error) {
  return operator_check_vectors(conv, x, conv->block.count, per_row, norm_max, what, error);
}

int operator_check_vectors(const coldkv_conv *conv, const float *x, uint32_t rows, uint32_t per_row, float norm_max,
                           const char *what, struct error *error) {
  const struct attend_kernels *kernels = attend_kernels();
  uint32_t d = conv->model->head_dim;
  for (uint32_t i = 0; i < rows * per_row; i++) {
    float squares;
    kernels->dots(x + (size_t)i * d, x + (size_t)i * d, 1, d, &squares);
    if (!(squares <= norm_max * norm_max))
      return error_set(error, ERR_NOT_FINITE, "%s of row %u, head %u is not finite, or longer than %g", what,
                       i / per_row, i % per_row, (double)norm_max);
  }
  return 0;
}

/* Undoes the engine's RoPE, if there is one. */
static int make_plain(const coldkv_conv *conv, const float *x, uint32_t per_row, struct plain *plain,
                      struct error *error) {
  uint32_t d = conv->model->head_dim;
  *plain = (struct plain){.vectors = x};
  if (!conv->block.rotated)
    return 0;
  plain->copy = malloc((size_t)conv->block.count * per_row * d * sizeof(float));
  if (!plain->copy)
    return error_set(error, ERR_MEMORY, "out of memory to undo RoPE");
  plain->vectors = plain->copy;
  for (uint32_t i = 0; i < conv->block.count * per_row; i++)
    rope_apply(&conv->model->rope, conv->block.unrotate[i / per_row], -1, 1, x + (size_t)i * d,
               plain->copy + (size_t)i * d);
  return 0;
}

static int check_keys(const coldkv_conv *conv, const float *k, const float *v, struct error *error) {
  int result = check_vectors(conv, k, conv->model->kv_heads, VECTOR_NORM_MAX, "k", error);
  return result ? result : check_vectors(conv, v, conv->model->kv_heads, VECTOR_NORM_MAX, "v", error);
}

/* Puts the block's keys (before RoPE) and values in the hot window. */
static void put(coldkv_conv *conv, uint32_t layer, const float *k, const float *v) {
  const struct coldkv_model *model = conv->model;
  float rotated[LIMIT_HEAD_DIM_MAX];
  for (uint32_t row = 0; row < conv->block.count; row++)
    for (uint32_t head = 0; head < model->kv_heads; head++) {
      size_t at = ((size_t)row * model->kv_heads + head) * model->head_dim;
      rope_apply(&model->rope, conv->block.rows[row], 1, 1, k + at, rotated);
      hot_put(&conv->hot, layer, head, conv->block.first + row, k + at, rotated, v + at);
    }
  conv->block.done[layer] = 1;
}

/* Attention with keys, values and queries before RoPE. */
static int attend_plain(coldkv_conv *conv, uint32_t layer, const float *q, const float *k, const float *v, float *out,
                        struct error *error) {
  int result = retrieve_run(conv, layer, &(struct query_source){.q = q}, error);
  if (result)
    return result;
  put(conv, layer, k, v);
  result = attend_run(conv, layer, q, out, error);
  if (result)
    conv->block.done[layer] = 0;
  return result;
}

int coldkv_attend(coldkv_conv *conv, uint32_t layer, const float *q, const float *k, const float *v, float *out) {
  if (!conv || !q || !k || !v || !out)
    return api_fail(ERR_ARGUMENT, "coldkv_attend needs a conversation, q, k, v and out");
  struct error error = {0};
  uint32_t heads = conv->model->kv_heads, query_heads = heads * conv->model->group;
  struct plain plain_q = {0}, plain_k = {0};
  int result = operator_check_keys(conv, layer, "coldkv_attend", &error);
  if (!result)
    result = check_vectors(conv, q, query_heads, QUERY_NORM_MAX, "q", &error);
  if (!result)
    result = check_keys(conv, k, v, &error);
  if (!result)
    result = make_plain(conv, q, query_heads, &plain_q, &error);
  if (!result && conv->device)
    result = operator_attend_copies(conv, layer, plain_q.vectors, q, k, v, out, &error);
  if (!result && !conv->device)
    result = make_plain(conv, k, heads, &plain_k, &error);
  if (!result && !conv->device)
    result = attend_plain(conv, layer, plain_q.vectors, plain_k.vectors, v, out, &error);
  free(plain_q.copy);
  free(plain_k.copy);
  return api_result(result, &error);
}

int coldkv_push(coldkv_conv *conv, uint32_t layer, const float *k, const float *v) {
  if (!conv || !k || !v)
    return api_fail(ERR_ARGUMENT, "coldkv_push needs a conversation, k and v");
  struct error error = {0};
  struct plain plain_k = {0};
  int result = operator_check_keys(conv, layer, "coldkv_push", &error);
  if (!result)
    result = check_keys(conv, k, v, &error);
  if (!result && conv->device)
    return api_result(operator_push_copies(conv, layer, k, v, &error), &error);
  if (!result)
    result = make_plain(conv, k, conv->model->kv_heads, &plain_k, &error);
  if (!result)
    put(conv, layer, plain_k.vectors, v);
  free(plain_k.copy);
  return api_result(result, &error);
}

int coldkv_retrieve(coldkv_conv *conv, uint32_t layer, const float *q, struct coldkv_slots *slots) {
  if (!conv || !q || !slots)
    return api_fail(ERR_ARGUMENT, "coldkv_retrieve needs a conversation, q and a place for the slots");
  struct error error = {0};
  uint32_t query_heads = conv->model->kv_heads * conv->model->group;
  struct plain plain_q = {0};
  int result = operator_check_layer(conv, layer, "coldkv_retrieve", &error);
  if (!result)
    result = check_vectors(conv, q, query_heads, QUERY_NORM_MAX, "q", &error);
  if (!result)
    result = make_plain(conv, q, query_heads, &plain_q, &error);
  if (!result)
    result = retrieve_run(conv, layer, &(struct query_source){.q = plain_q.vectors}, &error);
  free(plain_q.copy);
  if (result)
    return api_result(result, &error);
  operator_slots(conv, slots);
  return 0;
}

void operator_slots(const coldkv_conv *conv, struct coldkv_slots *slots) {
  const struct retrieved *found = &conv->retrieved;
  *slots = (struct coldkv_slots){
      .rows = found->rows,
      .kv_heads = found->heads,
      .k = found->k,
      .hot_first = conv->block.hot_start,
      .packed = conv->block.packed,
      .count = found->counts,
      .tokens = found->tokens,
      .keys = found->keys,
      .values = found->values,
      .index = found->index,
  };
}
