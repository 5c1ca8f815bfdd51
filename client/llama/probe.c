// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What the model's graph looks like, found out while the slots' cells are made: where each layer's cache is, that the
// queries, keys and values which the callback reads are those that attention uses, and that RoPE is understood. For the
// latter the tokens that make the cells are all the same one: in layer 0 their keys differ by rotation alone.
#include <ggml-backend.h>
#include <ggml.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/llama/memory.h"

/* Largest difference of un-rotated keys that rounding explains, against the length of a key. */
static const double rotation_error_max = 2e-3;

/* The node whose data a view, reshape or copy of them shows. */
static const struct ggml_tensor *origin(const struct ggml_tensor *node) {
  while (node && node->src[0] && (node->op == GGML_OP_VIEW || node->op == GGML_OP_RESHAPE ||
                                  node->op == GGML_OP_PERMUTE || node->op == GGML_OP_TRANSPOSE ||
                                  node->op == GGML_OP_CONT || node->op == GGML_OP_CPY))
    node = node->src[0];
  return node;
}

/* Checks what is the same in every layer; a layer with another shape cannot be kept by coldkv. */
static int check_shape(struct coldkv_llama *memory, const struct ggml_tensor *cache) {
  struct error *error = &memory->watch.error;
  const char *name = ggml_get_name(cache);
  if (cache->type != GGML_TYPE_F16)
    return error_set(error, ERR_ARGUMENT, "%s is %s: coldkv fills caches of type f16 only", name,
                     ggml_type_name(cache->type));
  if (cache->ne[0] != (int64_t)memory->kv_heads * memory->head_dim || cache->ne[2] != 1)
    return error_set(error, ERR_ARGUMENT, "%s has %lld numbers a token, not %u kv heads of %u: layers must be alike",
                     name, (long long)cache->ne[0], memory->kv_heads, memory->head_dim);
  return 0;
}

/* The first rotated keys tell the shape of the heads. */
static int take_geometry(struct coldkv_llama *memory, const struct ggml_tensor *keys) {
  const struct ggml_tensor *queries = memory->watch.nodes.q;
  struct error *error = &memory->watch.error;
  if (!queries || queries->ne[0] != keys->ne[0] || keys->ne[1] < 1 || queries->ne[1] % keys->ne[1])
    return error_set(error, ERR_ARGUMENT, "%s does not follow queries of its shape", ggml_get_name(keys));
  memory->head_dim = (uint32_t)keys->ne[0];
  memory->kv_heads = (uint32_t)keys->ne[1];
  memory->group = (uint32_t)(queries->ne[1] / keys->ne[1]);
  if (memory->head_dim < 64 || memory->head_dim > LIMIT_HEAD_DIM_MAX || memory->head_dim % 8)
    return error_set(error, ERR_ARGUMENT, "head_dim %u: coldkv takes multiples of 8 from 64 to %u", memory->head_dim,
                     LIMIT_HEAD_DIM_MAX);
  return 0;
}

/* A write into the cache: what the callback reads must be what is written. */
static int take_write(struct coldkv_llama *memory, const struct ggml_tensor *node) {
  const struct watch *watch = &memory->watch;
  struct ggml_tensor *cache = node->view_src;
  unsigned at;
  char kind, rest;
  if (sscanf(ggml_get_name(cache), "cache_%c_l%u%c", &kind, &at, &rest) != 2 || at >= memory->layers)
    return 0;
  struct layer *layer = &memory->layer[at];
  const struct ggml_tensor *source = origin(node->src[0]);
  bool keys = kind == 'k';
  const struct ggml_tensor *read = keys ? watch->key_node : origin(watch->nodes.v);
  if (!read || source != read || watch->nodes.q_layer != at || watch->nodes.v_layer != at)
    return error_set(&memory->watch.error, ERR_ARGUMENT,
                     "layer %u keeps other %s than llama.cpp computes right after RoPE: coldkv cannot serve this model",
                     at, keys ? "keys" : "values");
  if (keys) {
    layer->k_cache = cache;
  } else {
    layer->v_cache = cache;
    layer->v_transposed = node->ne[0] == 1;
  }
  layer->checked = layer->k_cache && layer->v_cache;
  return check_shape(memory, cache);
}

bool probe_wants(struct coldkv_llama *memory, struct ggml_tensor *node) {
  struct watch *watch = &memory->watch;
  bool first_keys = node == watch->key_node && strcmp(ggml_get_name(node), "Kcur-0") == 0;
  if (first_keys && !memory->kv_heads && take_geometry(memory, node))
    return false;
  if (node->op == GGML_OP_SET_ROWS && node->view_src && take_write(memory, node))
    return false;
  bool first_write = node->op == GGML_OP_SET_ROWS && node->view_src && node->view_src == memory->layer[0].k_cache;
  return first_keys || first_write;
}

/* The keys of layer 0, un-rotated, must all be the same. */
static int check_rotation(struct coldkv_llama *memory, const struct ggml_tensor *node) {
  struct watch *watch = &memory->watch;
  uint32_t row_size = memory->kv_heads * memory->head_dim;
  bool first = !memory->first_key;
  if (first && turn_read(memory, node))
    return -watch->error.code;
  float *rows = malloc(ggml_nbytes(node)), row[ROPE_ROW_MAX], key[LIMIT_HEAD_DIM_MAX];
  if (first)
    memory->first_key = malloc(row_size * sizeof(float));
  if (!rows || !memory->first_key || ggml_nbytes(node) != (size_t)watch->rows * row_size * sizeof(float)) {
    free(rows);
    return error_set(&watch->error, ERR_MEMORY, "no memory for the keys of layer 0");
  }
  ggml_backend_tensor_get(node, rows, 0, ggml_nbytes(node));
  double worst = 0, length = 0;
  for (uint32_t i = 0; i < watch->rows; i++) {
    rope_angles(&memory->rope, watch->first + i, row);
    for (uint32_t head = 0; head < memory->kv_heads; head++) {
      size_t at = (size_t)head * memory->head_dim;
      rope_apply(&memory->rope, row, -1, 1, rows + (size_t)i * row_size + at, key);
      if (first && i == 0)
        memcpy(memory->first_key + at, key, sizeof(float) * memory->head_dim);
      for (uint32_t c = 0; c < memory->head_dim; c++) {
        worst = fmax(worst, fabs((double)(key[c] - memory->first_key[at + c])));
        length = fmax(length, fabs((double)key[c]));
      }
    }
  }
  free(rows);
  if (worst <= rotation_error_max * length) /* also false for NaN */
    return 0;
  return error_set(&watch->error, ERR_ARGUMENT, "the model's RoPE is not understood: keys differ by %.3g of %.3g",
                   worst, length);
}

/* The cells that llama.cpp chose for the slots: one after the other. */
static int check_cells(struct coldkv_llama *memory, const struct ggml_tensor *write) {
  struct watch *watch = &memory->watch;
  const struct ggml_tensor *indices = write->src[1];
  int64_t cells[COLDKV_BLOCK_MAX];
  if (!indices || indices->type != GGML_TYPE_I64 || indices->ne[0] != watch->rows)
    return error_set(&watch->error, ERR_VERSION, "llama.cpp places cells in another way than the tested versions");
  ggml_backend_tensor_get(indices, cells, 0, watch->rows * sizeof(int64_t));
  if (!watch->seen)
    memory->slot_cell = (uint32_t)cells[0];
  for (uint32_t i = 0; i < watch->rows; i++)
    if (cells[i] != (int64_t)memory->slot_cell + watch->seen + i)
      return error_set(&watch->error, ERR_VERSION, "llama.cpp does not place cells one after the other");
  watch->seen += watch->rows;
  return 0;
}

int probe_takes(struct coldkv_llama *memory, struct ggml_tensor *node) {
  return node->op == GGML_OP_ROPE ? check_rotation(memory, node) : check_cells(memory, node);
}

int probe_check(struct coldkv_llama *memory) {
  struct error *error = &memory->watch.error;
  for (uint32_t i = 0; i < memory->layers && !error->code; i++)
    if (!memory->layer[i].checked)
      error_set(error, ERR_ARGUMENT,
                "layer %u has no keys after RoPE and values in a cache of its own: coldkv cannot serve this model", i);
  return -error->code;
}
