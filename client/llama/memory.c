// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// One conversation in one context: opening, feeding, going back.
#include <errno.h>
#include <ggml.h>
#include <llama.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/llama/memory.h"

/* As llama_version() names them. The layout of the structs in llama.h changes between versions, and with it what a
 * program compiled against another one would do. */
static const char tested_versions[] = "0.5.0-dev";

static _Thread_local struct error last;

const char *coldkv_llama_error(void) { return last.text; }
const char *coldkv_llama_tested(void) { return tested_versions; }
struct llama_context *coldkv_llama_context(coldkv_llama *memory) { return memory->ctx; }
coldkv_conv *coldkv_llama_conversation(coldkv_llama *memory) { return memory->conv; }

/* Passes on what a call of libcoldkv answered. */
static int check(int result) { return result < 0 ? error_set(&last, -result, "%s", coldkv_error()) : result; }

int coldkv_llama_fingerprint(uint8_t fingerprint[32], const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file)
    return error_set_errno(&last, errno, "cannot read %s", path);
  enum { PIECE_BYTES = 1 << 20 };
  void *piece = malloc(PIECE_BYTES);
  int result = piece ? 0 : error_set(&last, ERR_MEMORY, "out of memory to read %s", path);
  for (size_t size; !result && (size = fread(piece, 1, PIECE_BYTES, file)) > 0;)
    coldkv_fingerprint(fingerprint, piece, size);
  if (!result && ferror(file))
    result = error_set_errno(&last, errno, "cannot read %s", path);
  free(piece);
  fclose(file);
  return result;
}

/* --- opening ------------------------------------------------------------------------------------------------------ */

static int check_version(bool any) {
  const char *version = llama_version();
  size_t size = strlen(version);
  for (const char *at = tested_versions; (at = strstr(at, version)); at += size)
    if ((at == tested_versions || at[-1] == ' ') && (at[size] == ' ' || !at[size]))
      return 0;
  return any ? 0
             : error_set(&last, ERR_VERSION,
                         "llama.cpp %s (ggml %s): only %s was tested. Its graphs are looked into: another version may "
                         "give wrong answers", version, ggml_version(), tested_versions);
}

static int check_model(const struct llama_model *model) {
  const char *what = NULL;
  if (llama_model_is_recurrent(model) || llama_model_is_hybrid(model))
    what = "recurrent layers";
  else if (llama_model_has_encoder(model) || !llama_model_has_decoder(model) || llama_model_is_diffusion(model))
    what = "more than a decoder";
  else if (llama_model_n_swa(model) > 0)
    what = "layers with a sliding window";
  else if (llama_model_n_layer(model) < 1 || llama_model_n_layer(model) > LAYERS_MAX)
    what = "too many layers";
  return what ? error_set(&last, ERR_ARGUMENT, "the model has %s: coldkv cannot serve it under llama.cpp", what) : 0;
}

static int make_context(struct coldkv_llama *memory, struct llama_model *model,
                        const struct llama_context_params *given) {
  struct llama_context_params params = *given;
  if (params.type_k != GGML_TYPE_F16 || params.type_v != GGML_TYPE_F16)
    return error_set(&last, ERR_ARGUMENT, "a cache of %s keys and %s values: coldkv fills caches of type f16 only",
                     ggml_type_name(params.type_k), ggml_type_name(params.type_v));
  enum { PAD = 256 }; /* llama.cpp rounds up to that itself */
  params.n_ctx = (cells_count(memory) + PAD - 1) / PAD * PAD;
  params.n_batch = params.n_ubatch = COLDKV_BLOCK_MAX;
  params.n_seq_max = CELLS_SEQUENCES;
  params.kv_unified = true;
  params.cb_eval = graph_callback;
  params.cb_eval_user_data = memory;
  memory->ctx = llama_init_from_model(model, params);
  if (!memory->ctx)
    return error_set(&last, ERR_ARGUMENT, "llama.cpp makes no context of %u cells and %u sequences", params.n_ctx,
                     params.n_seq_max);
  if (llama_n_ctx(memory->ctx) < cells_count(memory) || !llama_memory_can_shift(llama_get_memory(memory->ctx)))
    return error_set(&last, ERR_ARGUMENT, "the model's cache cannot be shifted: coldkv cannot serve it");
  return 0;
}

static bool make_buffers(struct coldkv_llama *memory) {
  size_t row = (size_t)memory->kv_heads * memory->head_dim, slots = row * memory->rows * memory->k;
  memory->q = malloc(COLDKV_BLOCK_MAX * row * memory->group * sizeof(float));
  memory->key = malloc(COLDKV_BLOCK_MAX * row * sizeof(float));
  memory->value = malloc(COLDKV_BLOCK_MAX * row * sizeof(float));
  memory->k_half = malloc(slots * sizeof(uint16_t));
  memory->v_half = malloc(slots * sizeof(uint16_t));
  memory->scratch = malloc((size_t)memory->group * (memory->group + 1) * sizeof(double));
  return memory->q && memory->key && memory->value && memory->k_half && memory->v_half && memory->scratch;
}

/* Registers the model under the shape that the probe found. */
static int make_model(struct coldkv_llama *memory, coldkv_client *client, const uint8_t fingerprint[32]) {
  char name[128] = "";
  llama_model_desc(llama_get_model(memory->ctx), name, sizeof name);
  struct coldkv_model_description description = {
      .name = name,
      .layers = memory->layers,
      .kv_heads = memory->kv_heads,
      .group = memory->group,
      .head_dim = memory->head_dim,
      .window = memory->window,
      .rope = memory->rope.layout,
      .rope_dims = memory->rope.dims,
      .rope_freqs = memory->rope.freqs,
  };
  memcpy(description.fingerprint, fingerprint, sizeof description.fingerprint);
  coldkv_fingerprint(description.fingerprint, memory->rope.freqs, memory->rope.pairs * sizeof(double));
  return check(coldkv_model_create(&memory->model, client, &description));
}

static int start(struct coldkv_llama *memory, struct llama_model *model, const struct llama_context_params *params) {
  memory->layers = (uint32_t)llama_model_n_layer(model);
  memory->layer = calloc(memory->layers, sizeof *memory->layer);
  if (!memory->layer)
    return error_set(&last, ERR_MEMORY, "out of memory for %u layers", memory->layers);
  int result = make_context(memory, model, params);
  if (!result && (result = cells_reserve(memory)) != 0)
    last = memory->watch.error;
  if (!result && !make_buffers(memory))
    result = error_set(&last, ERR_MEMORY, "out of memory for a block of %u rows", memory->rows);
  return result;
}

/* Takes the options, with what 0 stands for. */
static int configure(struct coldkv_llama *memory, const struct coldkv_llama_options *options, uint32_t window) {
  memory->k = options->k ? options->k : SLOTS_DEFAULT;
  memory->rows = options->rows ? options->rows : ROWS_DEFAULT;
  memory->window = options->window ? options->window : window;
  if (memory->rows > COLDKV_BLOCK_MAX || memory->k > LIMIT_K_MAX)
    return error_set(&last, ERR_ARGUMENT, "%u rows of %u slots: at most %d and %u", memory->rows, memory->k,
                     COLDKV_BLOCK_MAX, LIMIT_K_MAX);
  if (memory->window < WINDOW_MIN)
    return error_set(&last, ERR_ARGUMENT, "a trained window of %u tokens: at least %d", memory->window, WINDOW_MIN);
  return 0;
}

/* --- feeding ------------------------------------------------------------------------------------------------------ */

/* Index of the next token: while the past is rebuilt, less than there are, with a leap after the sinks. */
static int find_next(struct coldkv_llama *memory, struct coldkv_status *status) {
  int result = check(coldkv_get_status(memory->conv, status));
  if (!result && memory->tokens >= COLDKV_SINKS)
    memory->tokens = status->tokens - status->resume_left;
  return result;
}

/* One block that fits a decode. `alone`: a resumed conversation's first token after the sinks. llama.cpp wants it right
 * behind them, so it is computed there and moved; what it sees differs a little from what it saw the first time. */
static int feed_block(struct coldkv_llama *memory, const int32_t *ids, uint32_t n, int flags) {
  struct coldkv_status status;
  int result = find_next(memory, &status);
  if (result)
    return result;
  if (status.hot_first < memory->hot_first)
    return error_set(&last, ERR_STATE, "the hot window was moved back by another than coldkv_llama_rewind");
  uint64_t first = memory->tokens;
  bool alone = first > COLDKV_SINKS && status.hot_first == first;
  memory->tokens = alone ? COLDKV_SINKS : first; /* as far as cells are concerned */
  cells_advance(memory, status.hot_first, first + n > memory->window);
  memory->tokens = first;
  int32_t position = alone ? COLDKV_SINKS : cells_position(memory, first);
  int64_t positions[COLDKV_BLOCK_MAX];
  for (uint32_t i = 0; i < n; i++)
    positions[i] = position + (int64_t)i;
  result = check(coldkv_begin_rotated(memory->conv, (const uint32_t *)ids, n, positions));
  if (result)
    return result;
  bool retrieve = flags & COLDKV_LLAMA_RETRIEVE && status.hot_first > COLDKV_SINKS && !alone;
  result = cells_decode(memory, ids, n, position, retrieve, flags & COLDKV_LLAMA_ALL_LOGITS);
  if (result) {
    last = memory->watch.error;
    cells_forget(memory, position);
    coldkv_abort(memory->conv);
    return result;
  }
  if (alone)
    cells_move(memory, position, cells_position(memory, first));
  memory->tokens += n;
  return check(coldkv_end(memory->conv));
}

/* Tokens of the next block. */
static uint32_t block_size(const struct coldkv_llama *memory, uint32_t n, int flags) {
  uint32_t most = flags & COLDKV_LLAMA_RETRIEVE ? memory->rows : COLDKV_BLOCK_MAX;
  return n < most ? n : most;
}

int coldkv_llama_feed(coldkv_llama *memory, const int32_t *ids, uint32_t n, int flags) {
  if (!memory || !ids || !n)
    return error_set(&last, ERR_ARGUMENT, "coldkv_llama_feed needs a conversation and tokens");
  if (flags & COLDKV_LLAMA_ALL_LOGITS && n > block_size(memory, n, flags))
    return error_set(&last, ERR_ARGUMENT, "logits of %u tokens: at most %u at a time", n, block_size(memory, n, flags));
  int result = 0;
  while (n && !result) {
    uint32_t size = block_size(memory, n, flags);
    result = feed_block(memory, ids, size, flags);
    ids += size;
    n -= size;
  }
  return result;
}

/* Feeds what coldkv asks for, in blocks that retrieve. */
static int resume(struct coldkv_llama *memory) {
  uint32_t ids[COLDKV_BLOCK_MAX];
  int n, result = 0;
  while (!result && (n = coldkv_resume(memory->conv, ids)) != 0) {
    if (n < 0)
      return check(n);
    struct coldkv_status status;
    result = find_next(memory, &status);
    uint32_t size = block_size(memory, (uint32_t)n, COLDKV_LLAMA_RETRIEVE);
    if (memory->tokens > COLDKV_SINKS && status.hot_first == memory->tokens)
      size = 1;
    if (!result)
      result = feed_block(memory, (const int32_t *)ids, size, COLDKV_LLAMA_RETRIEVE);
  }
  if (!result) {
    struct coldkv_status status;
    result = find_next(memory, &status);
  }
  return result;
}

int coldkv_llama_open(coldkv_llama **memory, struct llama_model *model, const struct llama_context_params *params,
                      coldkv_client *client, const char *conversation, const struct coldkv_llama_options *options) {
  if (!memory || !model || !params || !client || !conversation || !options)
    return error_set(&last, ERR_ARGUMENT, "coldkv_llama_open needs a model, parameters, a client, a name and options");
  *memory = NULL;
  int result = check_version(options->any_version);
  if (!result)
    result = check_model(model);
  if (result)
    return result;
  struct coldkv_llama *made = calloc(1, sizeof *made);
  if (!made)
    return error_set(&last, ERR_MEMORY, "out of memory for a conversation");
  result = configure(made, options, (uint32_t)llama_model_n_ctx_train(model));
  if (!result)
    result = start(made, model, params);
  if (!result)
    result = make_model(made, client, options->fingerprint);
  struct coldkv_conv_options conv_options = {.k = made->k};
  if (!result)
    result = check(coldkv_open(&made->conv, made->model, conversation, &conv_options));
  if (!result)
    result = resume(made);
  if (result) {
    coldkv_llama_close(made);
    return result;
  }
  *memory = made;
  return 0;
}

void coldkv_llama_close(coldkv_llama *memory) {
  if (!memory)
    return;
  coldkv_close(memory->conv);
  coldkv_model_destroy(memory->model);
  if (memory->ctx)
    llama_free(memory->ctx);
  if (memory->has_rope)
    rope_finish(&memory->rope);
  free(memory->layer);
  free(memory->first_key);
  free(memory->q);
  free(memory->key);
  free(memory->value);
  free(memory->k_half);
  free(memory->v_half);
  free(memory->scratch);
  free(memory);
}

int coldkv_llama_rewind(coldkv_llama *memory, uint64_t end) {
  uint64_t first = end < COLDKV_HOT ? 0 : (end - COLDKV_HOT) / COLDKV_BLOCK_MAX * COLDKV_BLOCK_MAX;
  uint64_t possible = memory->hot_first ? memory->hot_first + COLDKV_HOT : 0;
  if (end > memory->tokens)
    return error_set(&last, ERR_RANGE, "cannot go back to token %llu of %llu", (unsigned long long)end,
                     (unsigned long long)memory->tokens);
  if (first < memory->hot_first)
    return error_set(&last, ERR_RANGE, "cannot go back to token %llu: the hot window has moved since; %llu is possible",
                     (unsigned long long)end, (unsigned long long)possible);
  int result = check(coldkv_rewind(memory->conv, end));
  if (result)
    return result;
  cells_forget(memory, cells_position(memory, end));
  memory->tokens = end;
  return 0;
}
