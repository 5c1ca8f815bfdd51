// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Lookups ahead of time: sent for their effect on the daemon's pages, their answers dropped.
#include <stdlib.h>

#include "client/error.h"
#include "client/operator.h"
#include "client/tuning.h"

int coldkv_prefetch(coldkv_conv *conv, uint32_t layer, const float *q) {
  if (!conv || !q)
    return api_fail(ERR_ARGUMENT, "coldkv_prefetch needs a conversation and q");
  struct error error = {0};
  const struct coldkv_model *model = conv->model;
  uint32_t d = model->head_dim, query_heads = model->kv_heads * model->group;
  int result = operator_check_layer(conv, layer, "coldkv_prefetch", &error);
  if (!result)
    result = operator_check_vectors(conv, q, 1, query_heads, QUERY_NORM_MAX, "q", &error);
  if (result || !retrieve_wanted(conv))
    return api_result(result, &error);
  size_t made = (size_t)model->kv_heads * RECORD_SIGNATURE_BITS, given = (size_t)query_heads * d;
  float *queries = malloc((made + given) * sizeof *queries), *plain = queries + made;
  if (!queries)
    return api_fail(ERR_MEMORY, "out of memory for the queries of a lookup");
  memcpy(plain, q, given * sizeof *plain);
  for (uint32_t head = 0; head < query_heads && conv->block.rotated; head++)
    rope_apply(&model->rope, conv->block.unrotate[0], -1, 1, q + (size_t)head * d, plain + (size_t)head * d);
  const float *expected = model_expected(conv->model, conv->block.first + conv->block.count);
  for (uint32_t head = 0; head < model->kv_heads && !result; head++)
    result = retrieve_query(conv, expected, plain + (size_t)head * model->group * d,
                            queries + (size_t)head * RECORD_SIGNATURE_BITS);
  if (!result)
    retrieve_ahead(conv, layer, queries);
  else
    error_set(&error, ERR_NOT_FINITE, "the lookup query of a prefetch is not finite");
  free(queries);
  return api_result(result, &error);
}
