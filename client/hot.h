// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The hot window: a ring of the newest HOT_RING tokens of every layer and kv head, and the sinks. Token t stands at
// place t mod HOT_RING; the ring is cut into tiles of HOT_TILE tokens, so that token t is in tile (t / HOT_TILE) mod
// HOT_TILES.
#ifndef COLDKV_CLIENT_HOT_H
#define COLDKV_CLIENT_HOT_H

#include <stddef.h>
#include <stdint.h>

#include "client/tuning.h"
#include "proto/error.h"

struct hot {
  uint32_t layers, heads, head_dim;
  float *keys;        /* before RoPE: [layer][head][HOT_RING][d] */
  float *rotated;     /* rotated to their own index: [layer][head][HOT_TILES][d][HOT_TILE] */
  float *values;      /* [layer][head][HOT_RING][d] */
  float *sink_keys;   /* rotated: [layer][head][COLDKV_SINKS][d] */
  float *sink_values; /* [layer][head][COLDKV_SINKS][d] */
  size_t bytes;
  uint32_t ids[HOT_RING];
};

/* -ERR_MEMORY. */
int hot_init(struct hot *hot, uint32_t layers, uint32_t heads, uint32_t head_dim, struct error *error);
void hot_finish(struct hot *hot);

/* Puts one token [d] in its place, among the sinks too if it is one. */
void hot_put(struct hot *hot, uint32_t layer, uint32_t head, uint64_t token, const float *key, const float *rotated,
             const float *value);

/* Key before RoPE and value of a token that the ring holds. */
const float *hot_key(const struct hot *hot, uint32_t layer, uint32_t head, uint64_t token);
const float *hot_value(const struct hot *hot, uint32_t layer, uint32_t head, uint64_t token);

/* Rotated keys [d][HOT_TILE] and values [HOT_TILE][d] of the tile that holds `token`. */
const float *hot_tile_keys(const struct hot *hot, uint32_t layer, uint32_t head, uint64_t token);
const float *hot_tile_values(const struct hot *hot, uint32_t layer, uint32_t head, uint64_t token);

/* Rotated keys and values of the sinks, [COLDKV_SINKS][d]. */
const float *hot_sink_keys(const struct hot *hot, uint32_t layer, uint32_t head);
const float *hot_sink_values(const struct hot *hot, uint32_t layer, uint32_t head);

#endif
