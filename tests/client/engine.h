// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A toy inference engine for tests: queries, keys and values are drawn from token index, id, layer and head, so that
// whoever knows those can compute the right answer. Plus attention in double, as plain as it can be.
#ifndef COLDKV_TESTS_CLIENT_ENGINE_H
#define COLDKV_TESTS_CLIENT_ENGINE_H

#include <stdbool.h>

#include "client/coldkv.h"
#include "tests/client/fake_daemon.h"

struct engine {
  char directory[64], socket[96];
  struct fake_daemon *fake; /* NULL: none */
  coldkv_client *client;
  coldkv_model *model;
  coldkv_conv *conv;
  struct coldkv_model_description description;
  uint64_t position; /* of the next token */
  uint32_t salt;     /* ids from token salt_from on differ by it */
  uint64_t salt_from;
  uint64_t call_ms_max, block_ms_max; /* longest call of engine_forward, longest calls of one block together */
};

enum engine_vector { ENGINE_Q, ENGINE_K, ENGINE_V };

/* Makes a directory, a fake daemon, a client and a model: 2 layers, 2 kv heads, group 2, head_dim 64. The caller may
 * change engine->description before. `options` may be NULL. */
void engine_describe(struct engine *engine);
void engine_start(struct engine *engine, const struct coldkv_client_options *options);
void engine_finish(struct engine *engine);

/* A client and a model of their own, of the daemon at `socket`, in place of those there are. */
void engine_connect(struct engine *engine, const char *socket, const struct coldkv_client_options *options);

/* Opens the conversation "toy" (and forgets the position). */
int engine_open(struct engine *engine, const struct coldkv_conv_options *options);

/* Vector [d] of a token; head is a query head for ENGINE_Q. */
void engine_vector(const struct engine *engine, enum engine_vector what, uint32_t layer, uint32_t head, uint64_t token,
                   uint32_t id, float *x);

/* Id that the engine gives a token. */
uint32_t engine_id(const struct engine *engine, uint64_t token);

/* The arrays of one layer of a block at `token`; malloc'd [n][heads][d]. */
float *engine_block(const struct engine *engine, enum engine_vector what, uint32_t layer, uint64_t token,
                    const uint32_t *ids, uint32_t n);

/* Runs one block through the conversation. out (may be NULL) [layers][n][query heads][d]. Returns the first error;
 * after one inside the block it is aborted. */
int engine_forward(struct engine *engine, const uint32_t *ids, uint32_t n, float *out);

/* Feeds tokens up to `end`, in blocks of `block`, ids by engine_id. Returns the first error. */
int engine_feed_to(struct engine *engine, uint64_t end, uint32_t block);

/* Feeds all that coldkv_resume asks for; returns how many tokens, or an error. */
int engine_resume(struct engine *engine);

struct coldkv_status engine_status(const struct engine *engine);

/* One key of a reference attention. */
struct engine_key {
  const float *key, *value; /* before RoPE */
  double position;
};

/* out [d]: softmax attention of q (before RoPE, at `position`) over the keys, in double, RoPE as described. */
void engine_attention(const struct engine *engine, const float *q, double position, const struct engine_key *keys,
                      uint32_t count, double *out);

/* Dot product of x and y after RoPE at two positions, in double. */
double engine_score(const struct engine *engine, const float *x, double at, const float *y, double to);

/* Asserts that the fake holds exactly tokens 0 .. count - 1 of the engine, every record as the codec makes it. */
void engine_check_stored(struct engine *engine, uint64_t count);

/* Decodes one record that the fake holds. */
void engine_decode(struct engine *engine, uint32_t layer, uint32_t head, uint64_t token, float *key, float *value);

#endif
