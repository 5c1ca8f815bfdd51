// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The evaluation callback. llama.cpp asks about every node of a graph, in the order of computation, and computes up to
// each wanted one. Of each layer it computes queries, then values, then keys, and only then writes the cache and reads
// it in attention: so one wanted node a layer, the rotated keys, is the place to read all three and to fill the slots'
// cells.
//
// Which token sees which cell is in the mask, an input that is complete before the graph begins. llama.cpp's own has
// the sinks and the hot window; each row's slots are added when it asks about the first node that reads the mask, for
// by then all before it was computed and it was not.
#include <ggml-backend.h>
#include <ggml.h>
#include <stdlib.h>
#include <string.h>

#include "client/llama/memory.h"

/* The layer of a node named "<what>-<layer>", or -1. */
static long layer_of(const struct ggml_tensor *node, const char *what) {
  const char *name = ggml_get_name(node);
  size_t size = strlen(what);
  if (strncmp(name, what, size) != 0 || name[size] != '-')
    return -1;
  char *end;
  long layer = strtol(name + size + 1, &end, 10);
  return *end || layer < 0 || layer >= LAYERS_MAX ? -1 : layer;
}

/* Takes note of queries and values; true when these are the rotated keys of a layer. */
static bool note(struct watch *watch, struct ggml_tensor *node, uint32_t *layer) {
  long at;
  if (node->op == GGML_OP_ROPE && (at = layer_of(node, "Qcur")) >= 0) {
    watch->nodes.q = node;
    watch->nodes.q_layer = (uint32_t)at;
  } else if ((at = layer_of(node, "Vcur")) >= 0) { /* several: the last is what goes on */
    watch->nodes.v = node;
    watch->nodes.v_layer = (uint32_t)at;
  } else if (node->op == GGML_OP_ROPE && (at = layer_of(node, "Kcur")) >= 0) {
    *layer = (uint32_t)at;
    return true;
  }
  return false;
}

/* Copies a node of the graph, f32 [rows][heads][head_dim], to out. */
static int read_rows(struct coldkv_llama *memory, const struct ggml_tensor *node, uint32_t heads, float *out) {
  uint32_t rows = memory->watch.rows;
  size_t head_bytes = memory->head_dim * sizeof(float), row_bytes = heads * head_bytes;
  if (node->type != GGML_TYPE_F32 || node->ne[0] != memory->head_dim || node->ne[1] != heads ||
      node->ne[2] != rows || node->ne[3] != 1 || node->nb[0] != sizeof(float) || node->nb[1] != head_bytes)
    return error_set(&memory->watch.error, ERR_VERSION,
                     "%s is not f32 of %u rows, %u heads and %u coordinates: another graph than that of the tested "
                     "llama.cpp", ggml_get_name(node), rows, heads, memory->head_dim);
  for (uint32_t row = 0; row < rows; row++) {
    if (node->nb[2] == row_bytes) {
      ggml_backend_tensor_get(node, out, 0, rows * row_bytes);
      break;
    }
    ggml_backend_tensor_get(node, out + (size_t)row * heads * memory->head_dim, row * node->nb[2], row_bytes);
  }
  return 0;
}

/* Hands a layer of the block to coldkv and fills its slots. */
static int take_layer(struct coldkv_llama *memory, const struct ggml_tensor *keys, uint32_t layer) {
  struct watch *watch = &memory->watch;
  const struct nodes *nodes = &watch->nodes;
  if (!nodes->q || !nodes->v || nodes->q_layer != layer || nodes->v_layer != layer || layer != watch->seen)
    return error_set(&watch->error, ERR_VERSION,
                     "llama.cpp computed the keys of layer %u before its queries and values: not as those tested",
                     layer);
  int result = read_rows(memory, nodes->q, memory->kv_heads * memory->group, memory->q);
  if (!result)
    result = read_rows(memory, keys, memory->kv_heads, memory->key);
  if (!result)
    result = read_rows(memory, nodes->v, memory->kv_heads, memory->value);
  if (result)
    return result;
  result = coldkv_push(memory->conv, layer, memory->key, memory->value);
  struct coldkv_slots slots;
  if (!result && watch->retrieve)
    result = coldkv_retrieve(memory->conv, layer, memory->q, &slots);
  if (result)
    return error_set(&watch->error, -result, "%s", coldkv_error());
  if (watch->retrieve)
    slots_write(memory, layer, &slots, memory->q, watch->rows);
  watch->seen++;
  return 0;
}

/* The mask that an attention node reads, or NULL. */
static struct ggml_tensor *mask_of(const struct ggml_tensor *node) {
  struct ggml_tensor *mask = node->op == GGML_OP_SOFT_MAX        ? node->src[1]
                             : node->op == GGML_OP_FLASH_ATTN_EXT ? node->src[3]
                                                                  : NULL;
  return mask && strstr(ggml_get_name(mask), "kq_mask") ? mask : NULL;
}

/* Lets every row see its own slots, for which the mask has to hold 0 in f32 or f16. Layers share a mask, but layers on
 * another device have a copy of it. */
static void show_slots(struct coldkv_llama *memory, struct ggml_tensor *mask) {
  struct watch *watch = &memory->watch;
  size_t size = ggml_type_size(mask->type);
  watch->attended++;
  if (mask == watch->mask)
    return;
  watch->mask = mask;
  if ((mask->type != GGML_TYPE_F32 && mask->type != GGML_TYPE_F16) || mask->nb[0] != size || mask->op != GGML_OP_NONE ||
      mask->ne[1] < watch->rows || mask->ne[2] != 1 ||
      mask->ne[0] < (int64_t)memory->slot_cell + (int64_t)watch->rows * memory->k) {
    error_set(&watch->error, ERR_VERSION, "the mask of attention is not what the tested versions of llama.cpp make");
    return;
  }
  for (uint32_t row = 0; row < watch->rows; row++)
    ggml_backend_tensor_memset(mask, 0, row * mask->nb[1] + (memory->slot_cell + row * memory->k) * size,
                               memory->k * size);
}

bool graph_callback(struct ggml_tensor *node, bool ask, void *context) {
  struct coldkv_llama *memory = context;
  struct watch *watch = &memory->watch;
  uint32_t layer = 0;
  if (watch->mode == WATCH_NOTHING || watch->error.code)
    return !ask; /* false to "ask": not wanted */
  if (watch->mode == WATCH_PROBE) {
    if (!ask)
      return probe_takes(memory, node) == 0;
    if (note(watch, node, &layer))
      watch->key_node = node;
    return probe_wants(memory, node);
  }
  struct ggml_tensor *mask = ask && watch->retrieve ? mask_of(node) : NULL;
  if (mask)
    show_slots(memory, mask);
  bool keys = note(watch, node, &layer);
  if (ask)
    return keys && !watch->error.code;
  return take_layer(memory, node, layer) == 0;
}
