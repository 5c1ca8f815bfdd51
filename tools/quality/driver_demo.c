// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The demo's own forward pass, in f32 and with coldkv's own attention, for driver.h. Arguments: folder of the model,
// the daemon's socket, threads. Opened with [MODEL.gguf], whose fingerprint the model then has, so that records are
// encoded in the same basis as llama.cpp's.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tools/demo/exact.h"
#include "tools/demo/memory.h"
#include "tools/quality/driver.h"

static struct llama *llama;
static const char *socket_path;
static struct memory memory;
static struct exact *plain;
static uint64_t plain_tokens;

static void close_all(void) {
  memory_close(&memory);
  exact_destroy(plain);
  plain = NULL;
  plain_tokens = 0;
}

/* As coldkv_llama_fingerprint and coldkv_llama_open make it. */
static void hash(uint8_t fingerprint[32], const char *path, const struct llama_config *config) {
  static char piece[1 << 20];
  double freqs[64];
  FILE *file = fopen(path, "rb");
  for (size_t size; file && (size = fread(piece, 1, sizeof piece, file)) > 0;)
    coldkv_fingerprint(fingerprint, piece, size);
  for (uint32_t i = 0; i < config->head_dim / 2; i++)
    freqs[i] = pow(config->rope_theta, -2.0 * i / config->head_dim);
  coldkv_fingerprint(fingerprint, freqs, config->head_dim / 2 * sizeof *freqs);
  if (file)
    fclose(file);
}

/* As memory_open, with another fingerprint. The conversation is new. */
static int open_as(const char *name, const char *gguf) {
  struct coldkv_model_description description = memory_describe(llama);
  hash(description.fingerprint, gguf, llama_config(llama));
  memory = (struct memory){.llama = llama};
  int result = coldkv_client_create(&memory.client, socket_path, NULL);
  if (!result)
    result = coldkv_model_create(&memory.model, memory.client, &description);
  return result ? result : coldkv_open(&memory.conv, memory.model, name, NULL);
}

static void open_memory(const char *name, const char *arguments) {
  char gguf[256];
  close_all();
  int result = sscanf(arguments, "%255s", gguf) == 1 ? open_as(name, gguf)
                                                     : memory_open(&memory, llama, socket_path, name, 0);
  if (result)
    driver_fail("open", coldkv_error());
}

static void open_plain(uint32_t cells, const char *arguments) {
  (void)arguments;
  struct error error;
  close_all();
  if (exact_create(&plain, llama_config(llama), cells, &error))
    driver_fail("plain", error.text);
}

static coldkv_conv *conversation(void) { return memory.conv; }

static uint64_t tokens(void) {
  struct coldkv_status status;
  if (!memory.conv)
    return plain_tokens;
  if (coldkv_get_status(memory.conv, &status))
    driver_fail("status", coldkv_error());
  return status.tokens;
}

static void feed_plain(const uint32_t *ids, uint32_t n, float *logits, bool all) {
  struct error error = {0};
  for (uint32_t at = 0, size; at < n; at += size) {
    size = n - at < DRIVER_BLOCK ? n - at : DRIVER_BLOCK;
    if (!plain || exact_feed(plain, llama, ids + at, size, logits, all ? size : logits != NULL, &error))
      driver_fail("feed", error.text);
    plain_tokens += size;
  }
}

static int attend(void *context, uint32_t layer, uint32_t n, const float *q, const float *k, const float *v,
                  float *out) {
  (void)context;
  (void)n;
  return coldkv_attend(memory.conv, layer, q, k, v, out);
}

static int feed_all_logits(const uint32_t *ids, uint32_t n, uint32_t slots, float *logits) {
  int result = coldkv_set_slots(memory.conv, slots);
  if (!result)
    result = coldkv_begin(memory.conv, ids, n);
  if (!result)
    result = llama_forward(llama, ids, n, attend, NULL, logits, n);
  return result ? result : coldkv_end(memory.conv);
}

static void feed(const uint32_t *ids, uint32_t n, uint32_t slots, float *logits, bool all) {
  if (!memory.conv) {
    feed_plain(ids, n, logits, all);
    return;
  }
  if (all ? feed_all_logits(ids, n, slots, logits) : memory_feed(&memory, ids, n, slots, logits))
    driver_fail("feed", coldkv_error());
}

static void rewind_to(uint64_t end) {
  if (memory.conv && coldkv_rewind(memory.conv, end))
    driver_fail("rewind", coldkv_error());
  if (plain)
    exact_rewind(plain, (uint32_t)(plain_tokens = end));
}

int main(int argc, char **argv) {
  struct error error = {0};
  if (argc != 4)
    return 2;
  socket_path = argv[2];
  llama_set_threads(atoi(argv[3]));
  if (llama_load(&llama, argv[1], &error))
    driver_fail(argv[1], error.text);
  driver_run(&(struct driver_engine){
      .window = llama_config(llama)->window, .vocabulary = llama_config(llama)->vocab, .version = coldkv_version(),
      .open = open_memory, .plain = open_plain, .close = close_all, .conversation = conversation, .tokens = tokens,
      .feed = feed, .rewind = rewind_to});
  llama_free(llama);
  return EXIT_SUCCESS;
}
