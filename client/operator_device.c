// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The calls inside a block of a conversation that a device keeps. Their order in the stream: the queries of the lookup,
// which the host waits for; keys and values into the hot window, while the daemon looks up; the slots; attention.
#include "client/error.h"
#include "client/operator.h"
#include "client/tuning.h"

/* What the calls with GPU memory have to be given. */
static int check_place(const coldkv_conv *conv, const void *a, const void *b, int type, const char *call,
                       struct error *error) {
  if (!conv || !a || !b)
    return error_set(error, ERR_ARGUMENT, "%s needs a conversation and its arrays", call);
  if (!conv->device)
    return error_set(error, ERR_STATE, "%s: '%s' was opened without a device", call, conv->name);
  if (type < COLDKV_F32 || type > COLDKV_BF16)
    return error_set(error, ERR_ARGUMENT, "%s: type %d is none of enum coldkv_type", call, type);
  return 0;
}

/* What the GPU has found so far. */
static int check_found(const coldkv_conv *conv, struct error *error) {
  uint64_t token;
  if (!device_check(conv->device, &token))
    return 0;
  return error_set(error, ERR_NOT_FINITE, "q, k or v of the block of '%s' that begins at token %llu is not finite, or "
                   "too long", conv->name, (unsigned long long)token);
}

/* Gives the device the means, once there are any: it makes queries with their rotation. */
static int freeze(coldkv_conv *conv, struct error *error) {
  if (conv->device_frozen || !conv->frozen)
    return 0;
  int result = device_freeze(conv->device, &conv->frozen->codec, conv->frozen->mean_k, conv->frozen->mean_v, error);
  conv->device_frozen = result == 0;
  return result;
}

static int start_queries(coldkv_conv *conv, const void *q, uint32_t rows, const struct device_place *place,
                         struct error *error) {
  int result = freeze(conv, error);
  uint64_t tokens = conv->block.first + conv->block.count;
  return result ? result : device_query_start(conv->device, q, rows, model_expected(conv->model, tokens), place, error);
}

/* plain_q: host queries before RoPE, or NULL where the device makes them from q. */
static int attend(coldkv_conv *conv, uint32_t layer, const float *plain_q, const void *q, const void *k, const void *v,
                  void *out, const struct device_place *place, struct error *error) {
  bool lookup = retrieve_wanted(conv);
  struct query_source source = {.q = plain_q, .keep_records = true};
  int result = freeze(conv, error);
  if (!result && lookup && !plain_q)
    result = start_queries(conv, q, conv->block.count, place, error);
  if (!result)
    result = device_put(conv->device, layer, k, v, place, error);
  if (!result)
    result = retrieve_run(conv, layer, &source, error);
  if (!result)
    result = check_found(conv, error);
  if (!result)
    result = device_take(conv->device, layer, &conv->retrieved, place, error);
  if (!result)
    result = device_attend(conv->device, layer, q, out, place, error);
  conv->block.done[layer] = result == 0;
  return result;
}

int operator_attend_copies(coldkv_conv *conv, uint32_t layer, const float *plain_q, const float *q, const float *k,
                           const float *v, float *out, struct error *error) {
  struct device_copies copies;
  int result = device_upload(conv->device, q, k, v, conv->block.count, &copies, error);
  if (!result)
    result = attend(conv, layer, plain_q, copies.q, copies.k, copies.v, copies.out, &copies.place, error);
  return result ? result : device_download(conv->device, out, error);
}

int operator_push_copies(coldkv_conv *conv, uint32_t layer, const float *k, const float *v, struct error *error) {
  struct device_copies copies;
  int result = device_upload(conv->device, NULL, k, v, conv->block.count, &copies, error);
  if (!result)
    result = device_put(conv->device, layer, copies.k, copies.v, &copies.place, error);
  conv->block.done[layer] = result == 0;
  return result;
}

int coldkv_attend_device(coldkv_conv *conv, uint32_t layer, const void *q, const void *k, const void *v, void *out,
                         int type, void *stream) {
  struct error error = {0};
  struct device_place place = {.type = type, .stream = stream};
  int result = check_place(conv, q, k, type, "coldkv_attend_device", &error);
  if (!result && (!v || !out))
    result = error_set(&error, ERR_ARGUMENT, "coldkv_attend_device needs v and out");
  if (!result)
    result = operator_check_keys(conv, layer, "coldkv_attend_device", &error);
  if (!result)
    result = check_found(conv, &error);
  if (!result)
    result = attend(conv, layer, NULL, q, k, v, out, &place, &error);
  return api_result(result, &error);
}

int coldkv_push_device(coldkv_conv *conv, uint32_t layer, const void *k, const void *v, int type, void *stream) {
  struct error error = {0};
  struct device_place place = {.type = type, .stream = stream};
  int result = check_place(conv, k, v, type, "coldkv_push_device", &error);
  if (!result)
    result = operator_check_keys(conv, layer, "coldkv_push_device", &error);
  if (!result)
    result = check_found(conv, &error);
  if (result)
    return api_result(result, &error);
  result = device_put(conv->device, layer, k, v, &place, &error);
  conv->block.done[layer] = result == 0;
  return api_result(result, &error);
}

int coldkv_retrieve_device(coldkv_conv *conv, uint32_t layer, const void *q, int type, void *stream,
                           struct coldkv_slots *slots) {
  struct error error = {0};
  struct device_place place = {.type = type, .stream = stream};
  struct query_source source = {.q = NULL};
  int result = check_place(conv, q, slots, type, "coldkv_retrieve_device", &error);
  if (!result)
    result = operator_check_layer(conv, layer, "coldkv_retrieve_device", &error);
  if (!result && retrieve_wanted(conv))
    result = start_queries(conv, q, conv->block.count, &place, &error);
  if (!result)
    result = retrieve_run(conv, layer, &source, &error);
  if (!result)
    result = check_found(conv, &error);
  if (!result)
    operator_slots(conv, slots);
  return api_result(result, &error);
}

int coldkv_prefetch_device(coldkv_conv *conv, uint32_t layer, const void *q, int type, void *stream) {
  struct error error = {0};
  struct device_place place = {.type = type, .stream = stream};
  const float *queries = NULL;
  int result = check_place(conv, q, q, type, "coldkv_prefetch_device", &error);
  if (!result)
    result = operator_check_layer(conv, layer, "coldkv_prefetch_device", &error);
  if (result || !retrieve_wanted(conv))
    return api_result(result, &error);
  result = start_queries(conv, q, 1, &place, &error);
  if (!result)
    result = device_query_wait(conv->device, &queries, &error);
  if (!result)
    retrieve_ahead(conv, layer, queries);
  return api_result(result, &error);
}
