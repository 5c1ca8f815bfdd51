// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A model: what its engine said about it, and what a daemon froze for it.
#ifndef COLDKV_CLIENT_MODEL_H
#define COLDKV_CLIENT_MODEL_H

#include "client/client.h"
#include "client/codec.h"
#include "client/rope.h"

/* A frozen model: id, rotation and means. Lives as long as the coldkv_model. */
struct frozen {
  struct frozen *next;
  uint8_t id[LIMIT_ID_BYTES];
  struct codec codec;
  float *mean_k, *mean_v; /* [layers][kv_heads][d] */
};

struct coldkv_model {
  struct coldkv_client *client;
  uint32_t conversations; /* open ones */
  char name[LIMIT_NAME_BYTES_MAX + 1];
  uint8_t fingerprint[LIMIT_FINGERPRINT_BYTES];
  uint32_t layers, kv_heads, group, head_dim, window;
  float softmax_scale;
  struct rope rope;
  struct frozen *frozen; /* every one seen; conversations say which is theirs */

  uint64_t expected_end; /* U that `expected` was computed for */
  float expected[ROPE_ROW_MAX];
};

/* Bytes of the records of one token. */
static inline uint64_t model_token_bytes(const struct coldkv_model *model) {
  return (uint64_t)model->layers * model->kv_heads * RECORD_BYTES;
}

/* Geometry as messages carry it; spans point into the model. */
void model_geometry(const struct coldkv_model *model, struct msg_geometry *geometry);

/* Keeps the frozen model of an answer (or finds it, if it is known): checks geometry, fingerprint, codec and means.
 * -ERR_BAD_MESSAGE when the answer makes no sense, -ERR_MODEL_MISMATCH, -ERR_NOT_SUPPORTED, -ERR_MEMORY. */
int model_keep(struct coldkv_model *model, const struct msg_model *answer, struct frozen **frozen,
               struct error *error);

/* Gets the frozen model of that id (NULL: the newest of the model's fingerprint) from the daemon. -ERR_NO_MODEL. */
int model_fetch(struct coldkv_model *model, const uint8_t *id, uint64_t deadline_ms, struct frozen **frozen,
                struct error *error);

/* The row for a query of a conversation with so many tokens: the mean rotation over D in [256, U). */
const float *model_expected(struct coldkv_model *model, uint64_t tokens);

#endif
