// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// llama.cpp for driver.h. Arguments: model.gguf, the daemon's socket, threads. Opened with [ROWS [K [FLASH]]]: rows of
// a block that retrieves, slots, and 0, 1 or -1 for llama.cpp's own choice of flash attention; plain with [FLASH].
#include <llama.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/coldkv.h"
#include "client/llama/coldkv_llama.h"
#include "tools/quality/driver.h"

enum { ROWS = 8, SLOTS = 64 };

static struct llama_model *model;
static const char *model_path;
static int threads, flash = -1;
static coldkv_client *client;
static coldkv_llama *memory;
static struct llama_context *plain;
static uint64_t plain_tokens;
static uint32_t rows; /* of a block that retrieves */
static uint32_t vocabulary;

static void fail(const char *what) {
  driver_fail(what, *coldkv_llama_error() ? coldkv_llama_error() : coldkv_error());
}

static void close_all(void) {
  coldkv_llama_close(memory);
  memory = NULL;
  if (plain)
    llama_free(plain);
  plain = NULL;
  plain_tokens = 0;
}

static struct llama_context_params parameters(void) {
  struct llama_context_params params = llama_context_default_params();
  params.n_threads = params.n_threads_batch = threads;
  params.flash_attn_type = flash < 0 ? LLAMA_FLASH_ATTN_TYPE_AUTO
                           : flash   ? LLAMA_FLASH_ATTN_TYPE_ENABLED
                                     : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  return params;
}

static void open_memory(const char *name, const char *arguments) {
  struct coldkv_llama_options options = {.rows = ROWS, .k = SLOTS};
  close_all();
  sscanf(arguments, "%u %u %d", &options.rows, &options.k, &flash);
  rows = options.rows;
  struct llama_context_params params = parameters();
  if (coldkv_llama_fingerprint(options.fingerprint, model_path) ||
      coldkv_llama_open(&memory, model, &params, client, name, &options))
    fail("open");
}

static void open_plain(uint32_t cells, const char *arguments) {
  close_all();
  sscanf(arguments, "%d", &flash);
  struct llama_context_params params = parameters();
  params.n_ctx = cells;
  params.n_batch = params.n_ubatch = DRIVER_BLOCK;
  plain = llama_init_from_model(model, params);
  if (!plain)
    driver_fail("plain", "llama.cpp makes no context");
}

static coldkv_conv *conversation(void) { return memory ? coldkv_llama_conversation(memory) : NULL; }

static uint64_t tokens(void) {
  struct coldkv_status status;
  if (!memory)
    return plain_tokens;
  if (coldkv_get_status(conversation(), &status))
    fail("status");
  return status.tokens;
}

static void feed_plain(const int32_t *ids, uint32_t n, bool all) {
  struct llama_batch batch = llama_batch_init((int32_t)n, 0, 1);
  batch.n_tokens = (int32_t)n;
  for (uint32_t i = 0; i < n; i++) {
    batch.token[i] = ids[i];
    batch.pos[i] = (llama_pos)plain_tokens++;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = 0;
    batch.logits[i] = all || i + 1 == n;
  }
  if (!plain || llama_decode(plain, batch))
    driver_fail("llama_decode", "failed");
  llama_batch_free(batch);
}

static void feed(const uint32_t *ids, uint32_t n, uint32_t slots, float *logits, bool all) {
  uint32_t most = memory && slots && all ? rows : memory && !all ? n : DRIVER_BLOCK;
  int flags = (slots ? COLDKV_LLAMA_RETRIEVE : 0) | (all ? COLDKV_LLAMA_ALL_LOGITS : 0);
  for (uint32_t at = 0, size; at < n; at += size) {
    size = n - at < most ? n - at : most;
    const int32_t *block = (const int32_t *)ids + at;
    if (!memory)
      feed_plain(block, size, all);
    else if (coldkv_llama_feed(memory, block, size, flags))
      fail("feed");
    struct llama_context *context = memory ? coldkv_llama_context(memory) : plain;
    for (uint32_t i = 0; all && i < size; i++)
      memcpy(logits + (size_t)(at + i) * vocabulary, llama_get_logits_ith(context, (int32_t)i),
             vocabulary * sizeof *logits);
    if (logits && !all && at + size == n)
      memcpy(logits, llama_get_logits_ith(context, -1), vocabulary * sizeof *logits);
  }
}

static void rewind_to(uint64_t end) {
  if (memory && coldkv_llama_rewind(memory, end))
    fail("rewind");
  if (plain)
    llama_memory_seq_rm(llama_get_memory(plain), 0, (llama_pos)(plain_tokens = end), -1);
}

static void quiet(enum ggml_log_level level, const char *text, void *context) {
  (void)context;
  if (level == GGML_LOG_LEVEL_ERROR)
    fputs(text, stderr);
}

int main(int argc, char **argv) {
  if (argc != 4)
    return 2;
  model_path = argv[1];
  threads = atoi(argv[3]);
  llama_log_set(quiet, NULL);
  llama_backend_init();
  model = llama_model_load_from_file(model_path, llama_model_default_params());
  if (!model)
    driver_fail(model_path, "llama.cpp cannot load it");
  if (coldkv_client_create(&client, argv[2], NULL))
    fail("start");
  vocabulary = (uint32_t)llama_vocab_n_tokens(llama_model_get_vocab(model));
  driver_run(&(struct driver_engine){
      .window = (uint32_t)llama_model_n_ctx_train(model), .vocabulary = vocabulary, .version = llama_version(),
      .open = open_memory, .plain = open_plain, .close = close_all, .conversation = conversation, .tokens = tokens,
      .feed = feed, .rewind = rewind_to});
  coldkv_client_destroy(client);
  llama_model_free(model);
  llama_backend_free();
  return EXIT_SUCCESS;
}
