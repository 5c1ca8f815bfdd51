// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What the files of this folder share: one conversation in one llama.cpp context.
#ifndef COLDKV_CLIENT_LLAMA_MEMORY_H
#define COLDKV_CLIENT_LLAMA_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/coldkv.h"
#include "client/llama/coldkv_llama.h"
#include "client/rope.h"
#include "proto/error.h"

struct ggml_tensor;

enum {
  ROWS_DEFAULT = 8,
  SLOTS_DEFAULT = 64,
  LAYERS_MAX = 512,
  WINDOW_MIN = 512,        /* sinks, slots, hot window and a block fit into it */
  HOT_CELLS_MAX = 256 + 63 + COLDKV_BLOCK_MAX,
};

/* Nodes of the graph under way whose data the callback reads, in the order in which llama.cpp computes them. */
struct nodes {
  struct ggml_tensor *q, *v;
  uint32_t q_layer, v_layer;
};

/* A layer's cache, found by the probe. The tensors live as long as the context. */
struct layer {
  struct ggml_tensor *k_cache, *v_cache;
  bool v_transposed; /* [channel][cell] rather than [cell][channel] */
  bool checked;      /* what goes into the caches is what the callback reads */
};

enum watch_mode { WATCH_NOTHING, WATCH_PROBE, WATCH_BLOCK };

/* What the callback does during one llama_decode, and what came of it. */
struct watch {
  enum watch_mode mode;
  struct nodes nodes;
  uint32_t rows, seen;     /* tokens of the batch; layers dealt with, or cells while probing */
  uint32_t attended;       /* layers whose mask shows the slots */
  const struct ggml_tensor *mask; /* the last one that does */
  bool retrieve;
  int64_t first;           /* probe: position of the first row */
  const struct ggml_tensor *key_node; /* probe: the rotated keys of the layer being looked at */
  struct error error;
};

struct coldkv_llama {
  struct llama_context *ctx;
  coldkv_model *model;
  coldkv_conv *conv;

  uint32_t layers, kv_heads, group, head_dim;
  uint32_t k, rows, window;
  struct layer *layer; /* [layers] */
  struct rope rope;
  float *first_key;    /* probe: of layer 0, un-rotated, [kv_heads * head_dim] */
  bool has_rope;

  uint32_t slot_cell;  /* the first slot's cell; row r has k cells from slot_cell + r k on */
  uint64_t tokens;     /* in the conversation; the next one has this index */
  uint64_t hot_first;  /* first token whose cell is kept beside the sinks */
  bool packed;         /* positions follow the slots rather than the index */

  struct watch watch;
  float *q, *key, *value;   /* of a block: [COLDKV_BLOCK_MAX][heads][head_dim] */
  uint16_t *k_half, *v_half; /* slots of a block, as they lie in the caches */
  double *scratch;          /* [group][group + 1], see neutral.h */
};

/* --- graph.c: the evaluation callback ----------------------------------------------------------------------------- */

/* ggml_backend_sched_eval_callback; context is the struct coldkv_llama. */
bool graph_callback(struct ggml_tensor *node, bool ask, void *context);

/* --- probe.c: what the model's graph looks like ------------------------------------------------------------------- */

/* Looks at a node while the slots' cells are made; returns whether its data are wanted. */
bool probe_wants(struct coldkv_llama *memory, struct ggml_tensor *node);
/* Gets those data. */
int probe_takes(struct coldkv_llama *memory, struct ggml_tensor *node);
/* After the probe: says what is missing. */
int probe_check(struct coldkv_llama *memory);

/* --- turn.c: the model's RoPE ------------------------------------------------------------------------------------- */

/* Reads frequencies and layout from a node that rotates. */
int turn_read(struct coldkv_llama *memory, const struct ggml_tensor *node);

/* --- slots.c: retrieved tokens into the cache --------------------------------------------------------------------- */

/* Writes the slots of `rows` rows into their cells of one layer. q is [rows][kv_heads * group][head_dim]. */
void slots_write(struct coldkv_llama *memory, uint32_t layer, const struct coldkv_slots *slots, const float *q,
                 uint32_t rows);

/* --- cells.c: cells and positions --------------------------------------------------------------------------------- */

/* Sequences that a context needs. */
enum { CELLS_SEQUENCES = 2 };

/* Cells that it needs. */
uint32_t cells_count(const struct coldkv_llama *memory);

/* Makes the slots' cells by running tokens through the model, while the probe looks on. */
int cells_reserve(struct coldkv_llama *memory);

/* Position of token t, which is a sink, in the hot window or next. */
int32_t cells_position(const struct coldkv_llama *memory, uint64_t token);

/* Lets cells before hot_first go and moves the others to their new positions. */
void cells_advance(struct coldkv_llama *memory, uint64_t hot_first, bool packed);

/* Runs a block: rows see their slots when `retrieve`. The callback's error, or llama.cpp's. */
int cells_decode(struct coldkv_llama *memory, const int32_t *ids, uint32_t n, int32_t position, bool retrieve,
                 bool all_logits);

/* Lets go of all cells from this position on. */
void cells_forget(struct coldkv_llama *memory, int32_t position);

/* Moves the only cells beside the sinks from one position to another. */
void cells_move(struct coldkv_llama *memory, int32_t from, int32_t to);

#endif
