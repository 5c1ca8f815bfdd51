// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "client/hot.h"

#include <stdlib.h>
#include <string.h>

#include "client/coldkv.h"

int hot_init(struct hot *hot, uint32_t layers, uint32_t heads, uint32_t head_dim, struct error *error) {
  *hot = (struct hot){.layers = layers, .heads = heads, .head_dim = head_dim};
  size_t places = (size_t)layers * heads;
  size_t ring = places * HOT_RING * head_dim, sinks = places * COLDKV_SINKS * head_dim;
  /* zeros: places not written yet are read (and masked) when a tile is half full */
  float *memory = calloc(3 * ring + 2 * sinks, sizeof(float));
  if (!memory)
    return error_set(error, ERR_MEMORY, "out of memory for a hot window of %u layers and %u kv heads", layers, heads);
  hot->keys = memory;
  hot->rotated = memory + ring;
  hot->values = memory + 2 * ring;
  hot->sink_keys = memory + 3 * ring;
  hot->sink_values = memory + 3 * ring + sinks;
  hot->bytes = (3 * ring + 2 * sinks) * sizeof(float);
  return 0;
}

void hot_finish(struct hot *hot) {
  free(hot->keys);
  hot->keys = NULL;
}

static size_t place(const struct hot *hot, uint32_t layer, uint32_t head) { return (size_t)layer * hot->heads + head; }

static size_t ring_at(const struct hot *hot, uint32_t layer, uint32_t head, uint64_t token) {
  return (place(hot, layer, head) * HOT_RING + token % HOT_RING) * hot->head_dim;
}

static size_t tile_at(const struct hot *hot, uint32_t layer, uint32_t head, uint64_t token) {
  return ring_at(hot, layer, head, token / HOT_TILE * HOT_TILE);
}

void hot_put(struct hot *hot, uint32_t layer, uint32_t head, uint64_t token, const float *key, const float *rotated,
             const float *value) {
  uint32_t d = hot->head_dim;
  size_t at = ring_at(hot, layer, head, token);
  memcpy(hot->keys + at, key, d * sizeof(float));
  memcpy(hot->values + at, value, d * sizeof(float));
  float *tile = hot->rotated + tile_at(hot, layer, head, token) + token % HOT_TILE;
  for (uint32_t c = 0; c < d; c++)
    tile[(size_t)c * HOT_TILE] = rotated[c];
  if (token < COLDKV_SINKS) {
    size_t sink = (place(hot, layer, head) * COLDKV_SINKS + token) * d;
    memcpy(hot->sink_keys + sink, rotated, d * sizeof(float));
    memcpy(hot->sink_values + sink, value, d * sizeof(float));
  }
}

const float *hot_key(const struct hot *hot, uint32_t layer, uint32_t head, uint64_t token) {
  return hot->keys + ring_at(hot, layer, head, token);
}

const float *hot_value(const struct hot *hot, uint32_t layer, uint32_t head, uint64_t token) {
  return hot->values + ring_at(hot, layer, head, token);
}

const float *hot_tile_keys(const struct hot *hot, uint32_t layer, uint32_t head, uint64_t token) {
  return hot->rotated + tile_at(hot, layer, head, token);
}

const float *hot_tile_values(const struct hot *hot, uint32_t layer, uint32_t head, uint64_t token) {
  return hot->values + tile_at(hot, layer, head, token);
}

const float *hot_sink_keys(const struct hot *hot, uint32_t layer, uint32_t head) {
  return hot->sink_keys + place(hot, layer, head) * COLDKV_SINKS * hot->head_dim;
}

const float *hot_sink_values(const struct hot *hot, uint32_t layer, uint32_t head) {
  return hot->sink_values + place(hot, layer, head) * COLDKV_SINKS * hot->head_dim;
}
