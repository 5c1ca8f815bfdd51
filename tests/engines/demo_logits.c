// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What an engine should compute: feeds a file's bytes to the demo's model, in f32 and with coldkv's own attention, and
// writes the logits of the last COUNT of them, f32. Has the fingerprint of the model in GGUF, so that records are
// encoded in the same basis as llama.cpp's.
// Arguments: folder of the model, the daemon's socket, model.gguf, FILE, BYTES, COUNT, OUT.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tools/demo/memory.h"
#include "tools/demo/question.h"

enum { TEXT_BYTES_MAX = 1 << 16, SLOTS = 64, VOCABULARY_MAX = 1024 };

static int fail(const char *what, const char *why) {
  fprintf(stderr, "%s: %s\n", what, why);
  return EXIT_FAILURE;
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

static int open_memory(struct memory *memory, struct llama *llama, const char *socket, const char *gguf) {
  const struct llama_config *config = llama_config(llama);
  struct coldkv_model_description description = {
      .layers = config->layers,
      .kv_heads = config->kv_heads,
      .group = config->heads / config->kv_heads,
      .head_dim = config->head_dim,
      .window = config->window,
      .rope = COLDKV_ROPE_HALF,
      .rope_theta = config->rope_theta,
  };
  hash(description.fingerprint, gguf, config);
  *memory = (struct memory){.llama = llama};
  int result = coldkv_client_create(&memory->client, socket, NULL);
  if (!result)
    result = coldkv_model_create(&memory->model, memory->client, &description);
  return result ? result : coldkv_open(&memory->conv, memory->model, "operator", NULL);
}

/* 0, or the code of libcoldkv. */
static int run(struct memory *memory, const uint32_t *ids, uint32_t bytes, uint32_t count, float *logits, FILE *out) {
  uint32_t vocabulary = llama_config(memory->llama)->vocab;
  int result = memory_feed(memory, ids, bytes - count, SLOTS, NULL);
  for (uint32_t i = bytes - count; i < bytes && !result; i++) {
    result = memory_feed(memory, ids + i, 1, SLOTS, logits);
    fwrite(logits, sizeof *logits, vocabulary, out);
  }
  return result;
}

int main(int argc, char **argv) {
  static char text[TEXT_BYTES_MAX];
  static uint32_t ids[TEXT_BYTES_MAX];
  static float logits[VOCABULARY_MAX];
  struct error error = {0};
  struct llama *llama = NULL;
  struct memory memory;
  if (argc != 8)
    return 2;
  uint32_t bytes = (uint32_t)atoi(argv[5]), count = (uint32_t)atoi(argv[6]);
  FILE *in = fopen(argv[4], "rb"), *out = fopen(argv[7], "wb");
  if (!in || !out || bytes > TEXT_BYTES_MAX || count > bytes || fread(text, 1, bytes, in) != bytes)
    return fail("demo_logits", "cannot read the text or write the logits");
  question_ids(text, bytes, ids);
  llama_set_threads(1);
  if (llama_load(&llama, argv[1], &error))
    return fail(argv[1], error.text);
  if (llama_config(llama)->vocab > VOCABULARY_MAX || open_memory(&memory, llama, argv[2], argv[3]) ||
      run(&memory, ids, bytes, count, logits, out))
    return fail("demo_logits", coldkv_error());
  memory_close(&memory);
  llama_free(llama);
  fclose(in);
  return fclose(out) ? EXIT_FAILURE : EXIT_SUCCESS;
}
