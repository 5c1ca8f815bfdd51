// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Retrieved tokens into the slots' cells of one layer, each key rotated to the position where its row looks for it.
#include <ggml-backend.h>
#include <ggml.h>
#include <string.h>

#include "client/llama/memory.h"
#include "client/llama/neutral.h"

/* Where one slot of one kv head goes. */
static void put(struct coldkv_llama *memory, const struct layer *layer, uint32_t cell, uint32_t cells, uint32_t head,
                const float *key, const float *value) {
  uint32_t d = memory->head_dim;
  size_t row = ((size_t)cell * memory->kv_heads + head) * d;
  ggml_fp32_to_fp16_row(key, memory->k_half + row, d);
  if (!layer->v_transposed) {
    ggml_fp32_to_fp16_row(value, memory->v_half + row, d);
    return;
  }
  ggml_fp16_t half[LIMIT_HEAD_DIM_MAX];
  ggml_fp32_to_fp16_row(value, half, d);
  for (uint32_t c = 0; c < d; c++)
    memory->v_half[((size_t)head * d + c) * cells + cell] = half[c];
}

/* The slots of one row and kv head. Past the window they stand in token order right after the sinks, inside it each at
 * its own index. */
static void fill(struct coldkv_llama *memory, const struct layer *layer, const struct coldkv_slots *slots, uint32_t row,
                 uint32_t head, uint32_t cells, const float *queries) {
  static const float nothing[LIMIT_HEAD_DIM_MAX];
  const uint32_t *index = slots->index + ((size_t)row * slots->kv_heads + head) * slots->k;
  float key[LIMIT_HEAD_DIM_MAX], angles[ROPE_ROW_MAX];
  bool neutral = false;
  for (uint32_t s = 0; s < memory->k; s++) {
    uint32_t place = s < slots->k && slots->count[head] ? index[s] : UINT32_MAX, cell = row * memory->k + s;
    if (place == UINT32_MAX) {
      if (!neutral)
        neutral_key(queries, memory->group, memory->head_dim, memory->scratch, key);
      neutral = true; /* no slots follow */
      put(memory, layer, cell, cells, head, key, nothing);
      continue;
    }
    uint64_t position = memory->packed ? COLDKV_SINKS + s : slots->tokens[head][place];
    const float *turn = rope_row(&memory->rope, position, angles);
    rope_apply(&memory->rope, turn, 1, 1, slots->keys[head] + (size_t)place * memory->head_dim, key);
    put(memory, layer, cell, cells, head, key, slots->values[head] + (size_t)place * memory->head_dim);
  }
}

void slots_write(struct coldkv_llama *memory, uint32_t at, const struct coldkv_slots *slots, const float *q,
                 uint32_t rows) {
  const struct layer *layer = &memory->layer[at];
  uint32_t cells = rows * memory->k;
  size_t group_size = (size_t)memory->group * memory->head_dim;
  for (uint32_t row = 0; row < rows; row++)
    for (uint32_t head = 0; head < memory->kv_heads; head++)
      fill(memory, layer, slots, row, head, cells, q + ((size_t)row * memory->kv_heads + head) * group_size);
  size_t channels = (size_t)memory->kv_heads * memory->head_dim, row_bytes = channels * sizeof(ggml_fp16_t);
  ggml_backend_tensor_set(layer->k_cache, memory->k_half, memory->slot_cell * row_bytes, cells * row_bytes);
  if (!layer->v_transposed) {
    ggml_backend_tensor_set(layer->v_cache, memory->v_half, memory->slot_cell * row_bytes, cells * row_bytes);
    return;
  }
  size_t channel_bytes = (size_t)layer->v_cache->ne[1] * sizeof(ggml_fp16_t), bytes = cells * sizeof(ggml_fp16_t);
  ggml_backend_tensor_set_2d(layer->v_cache, memory->v_half, memory->slot_cell * sizeof(ggml_fp16_t), bytes, channels,
                             channel_bytes, bytes);
}
