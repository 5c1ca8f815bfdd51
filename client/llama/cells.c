// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Cells of the cache and their positions. Sequence 0 is the conversation: sinks and hot window. Sequence 1 holds the
// slots' cells, k for each row of a block; llama.cpp shows them to nobody, see graph.c. Positions: a token's own index
// while blocks end inside the trained window; past it 0 to 3 for the sinks and 4 + k for the first token of the hot
// window.
#include <llama.h>

#include "client/llama/memory.h"

enum { TALK = 0, SLOTS = 1 };

uint32_t cells_count(const struct coldkv_llama *memory) {
  return memory->rows * memory->k + COLDKV_SINKS + HOT_CELLS_MAX;
}

static llama_memory_t cache_of(const struct coldkv_llama *memory) { return llama_get_memory(memory->ctx); }

/* First token that is in the hot window and no sink. */
static uint64_t after_sinks(uint64_t hot_first) { return hot_first > COLDKV_SINKS ? hot_first : COLDKV_SINKS; }

static int32_t place(const struct coldkv_llama *memory, uint64_t token, uint64_t hot_first, bool packed) {
  if (!packed || token < COLDKV_SINKS)
    return (int32_t)token;
  return (int32_t)(COLDKV_SINKS + memory->k + (token - after_sinks(hot_first)));
}

int32_t cells_position(const struct coldkv_llama *memory, uint64_t token) {
  return place(memory, token, memory->hot_first, memory->packed);
}

void cells_forget(struct coldkv_llama *memory, int32_t position) {
  llama_memory_seq_rm(cache_of(memory), TALK, position, -1);
}

void cells_move(struct coldkv_llama *memory, int32_t from, int32_t to) {
  llama_memory_seq_add(cache_of(memory), TALK, from, -1, to - from);
}

void cells_advance(struct coldkv_llama *memory, uint64_t hot_first, bool packed) {
  uint64_t first = after_sinks(memory->hot_first), kept = after_sinks(hot_first);
  if (memory->tokens > first) {
    if (kept > first)
      llama_memory_seq_rm(cache_of(memory), TALK, cells_position(memory, first), cells_position(memory, kept));
    int32_t from = cells_position(memory, kept), to = place(memory, kept, hot_first, packed);
    if (memory->tokens > kept && to != from)
      cells_move(memory, from, to);
  }
  memory->hot_first = hot_first;
  memory->packed = packed;
}

/* llama.cpp's answer, or what went wrong in the callback: after that the rest of the graph is of no use. */
static int decode(struct coldkv_llama *memory, struct llama_batch batch) {
  struct watch *watch = &memory->watch;
  int32_t result = llama_decode(memory->ctx, batch);
  watch->mode = WATCH_NOTHING;
  if (!watch->error.code && result)
    error_set(&watch->error, ERR_INTERNAL, "llama_decode of %d tokens answered %d", batch.n_tokens, result);
  return -watch->error.code;
}

/* Adds a token to a batch. */
static void add(struct llama_batch *batch, llama_token id, llama_pos position, llama_seq_id sequence, bool logits) {
  int32_t i = batch->n_tokens++;
  batch->token[i] = id;
  batch->pos[i] = position;
  batch->n_seq_id[i] = 1;
  batch->seq_id[i][0] = sequence;
  batch->logits[i] = logits;
}

int cells_decode(struct coldkv_llama *memory, const int32_t *ids, uint32_t n, int32_t position, bool retrieve,
                 bool all_logits) {
  struct watch *watch = &memory->watch;
  struct llama_batch batch = llama_batch_init((int32_t)n, 0, 1);
  for (uint32_t i = 0; i < n; i++)
    add(&batch, ids[i], position + (int32_t)i, TALK, all_logits || i + 1 == n);
  *watch = (struct watch){.mode = WATCH_BLOCK, .rows = n, .retrieve = retrieve};
  int result = decode(memory, batch);
  llama_batch_free(batch);
  if (!result && (watch->seen != memory->layers || (retrieve && watch->attended != memory->layers)))
    result = error_set(&watch->error, ERR_VERSION,
                       "of %u layers, the keys of %u and the masks of %u were seen: not as the tested llama.cpp",
                       memory->layers, watch->seen, watch->attended);
  return result;
}

/* A token of the vocabulary that stands for nothing in particular. */
static llama_token filler_token(const struct coldkv_llama *memory) {
  const struct llama_vocab *vocab = llama_model_get_vocab(llama_get_model(memory->ctx));
  llama_token bos = llama_vocab_bos(vocab);
  return bos >= 0 && bos < llama_vocab_n_tokens(vocab) ? bos : 0;
}

int cells_reserve(struct coldkv_llama *memory) {
  struct llama_batch batch = llama_batch_init(COLDKV_BLOCK_MAX, 0, 1);
  uint32_t wanted = memory->rows * memory->k, made = 0;
  int result = 0;
  while (made < wanted && !result) {
    uint32_t n = wanted - made < COLDKV_BLOCK_MAX ? wanted - made : COLDKV_BLOCK_MAX;
    batch.n_tokens = 0;
    for (uint32_t i = 0; i < n; i++)
      add(&batch, filler_token(memory), (llama_pos)(made + i), SLOTS, i + 1 == n);
    memory->watch = (struct watch){.mode = WATCH_PROBE, .rows = n, .seen = made, .first = made};
    result = decode(memory, batch);
    if (!result && memory->watch.seen != made + n)
      result = error_set(&memory->watch.error, ERR_VERSION, "llama.cpp made %u cells, not %u", memory->watch.seen,
                         made + n);
    made += n;
  }
  llama_batch_free(batch);
  return result ? result : probe_check(memory);
}
