// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Does with a conversation under llama.cpp what standard input says, a line each, and answers every line with one line:
//   open NAME ROWS K FLASH   a conversation; FLASH 0 or 1         -> tokens
//   plain CELLS FLASH        llama.cpp alone instead              -> 0
//   feed FILE FROM COUNT RETRIEVE                                 -> tokens
//   ask DIGITS RETRIEVE FILE FROM COUNT   feeds a question, generates greedily, goes back  -> text
//   logits OUT FILE FROM COUNT RETRIEVE   appends each token's logits, f32, to OUT         -> tokens
//   write FILE SEED BYTES   filler, into a new file                                        -> 0
//   rewind END                                                                            -> tokens
//   sync | close | memory (resident KiB) | status
// Arguments: model.gguf, the daemon's socket, threads. Bytes are tokens.
#include <llama.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "client/coldkv.h"
#include "client/llama/coldkv_llama.h"
#include "tools/demo/filler.h"

enum { TEXT_BYTES_MAX = 1 << 21, PLAIN_BLOCK = 64 };

static struct llama_model *model;
static const char *model_path;
static int threads;
static coldkv_client *client;
static coldkv_llama *memory;
static struct llama_context *plain;
static uint64_t plain_tokens;
static uint32_t rows = 8; /* of a block that retrieves */
static int32_t ids[TEXT_BYTES_MAX];

static void fail(const char *what) {
  printf("failed: %s: %s\n", what, *coldkv_llama_error() ? coldkv_llama_error() : coldkv_error());
  exit(EXIT_FAILURE);
}

static struct llama_context *context(void) { return memory ? coldkv_llama_context(memory) : plain; }

static uint64_t tokens(void) {
  struct coldkv_status status;
  if (!memory)
    return plain_tokens;
  if (coldkv_get_status(coldkv_llama_conversation(memory), &status))
    fail("status");
  return status.tokens;
}

static struct llama_context_params parameters(int flash) {
  struct llama_context_params params = llama_context_default_params();
  params.n_threads = params.n_threads_batch = threads;
  params.flash_attn_type = flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  return params;
}

static void open_memory(const char *arguments) {
  char name[64];
  struct coldkv_llama_options options = {0};
  int flash;
  if (sscanf(arguments, "%63s %u %u %d", name, &options.rows, &options.k, &flash) != 4 ||
      coldkv_llama_fingerprint(options.fingerprint, model_path))
    fail("open");
  if (options.rows)
    rows = options.rows;
  struct llama_context_params params = parameters(flash);
  if (coldkv_llama_open(&memory, model, &params, client, name, &options))
    fail("open");
}

static void open_plain(const char *arguments) {
  unsigned cells;
  int flash;
  if (sscanf(arguments, "%u %d", &cells, &flash) != 2)
    fail("plain");
  struct llama_context_params params = parameters(flash);
  params.n_ctx = cells;
  params.n_batch = params.n_ubatch = PLAIN_BLOCK;
  plain = llama_init_from_model(model, params);
  plain_tokens = 0;
  if (!plain)
    fail("plain");
}

static void load(const char *path, unsigned from, unsigned count) {
  static unsigned char text[TEXT_BYTES_MAX];
  FILE *file = fopen(path, "rb");
  if (!file || count > TEXT_BYTES_MAX || fseek(file, from, SEEK_SET) || fread(text, 1, count, file) != count)
    fail(path);
  fclose(file);
  for (unsigned i = 0; i < count; i++)
    ids[i] = text[i];
}

/* Feeds ids[0 .. n); all_logits: one block. */
static void feed(int32_t *from, uint32_t n, bool retrieve, bool all_logits) {
  if (memory) {
    int flags = (retrieve ? COLDKV_LLAMA_RETRIEVE : 0) | (all_logits ? COLDKV_LLAMA_ALL_LOGITS : 0);
    if (coldkv_llama_feed(memory, from, n, flags))
      fail("feed");
    return;
  }
  for (uint32_t at = 0, size; at < n; at += size) {
    size = n - at < PLAIN_BLOCK ? n - at : PLAIN_BLOCK;
    struct llama_batch batch = llama_batch_init((int32_t)size, 0, 1);
    batch.n_tokens = (int32_t)size;
    for (uint32_t i = 0; i < size; i++) {
      batch.token[i] = from[at + i];
      batch.pos[i] = (llama_pos)plain_tokens++;
      batch.n_seq_id[i] = 1;
      batch.seq_id[i][0] = 0;
      batch.logits[i] = all_logits || at + i + 1 == n;
    }
    if (llama_decode(plain, batch))
      fail("llama_decode");
    llama_batch_free(batch);
  }
}

static int32_t vocabulary(void) { return llama_vocab_n_tokens(llama_model_get_vocab(model)); }

static int32_t best(void) {
  const float *logits = llama_get_logits_ith(context(), -1);
  int32_t found = 0;
  for (int32_t i = 1; i < vocabulary(); i++)
    if (logits[i] > logits[found])
      found = i;
  return found;
}

static void ask(const char *arguments) {
  unsigned digits, from, count;
  int retrieve;
  char path[256];
  uint64_t end = tokens();
  if (sscanf(arguments, "%u %d %255s %u %u", &digits, &retrieve, path, &from, &count) != 5)
    fail("ask");
  load(path, from, count);
  feed(ids, count, retrieve, false);
  for (unsigned i = 0; i < digits; i++) {
    int32_t id = best();
    putchar(id > ' ' && id < 127 ? id : '?');
    if (i + 1 < digits)
      feed(&id, 1, retrieve, false);
  }
  putchar('\n');
  if (memory && coldkv_llama_rewind(memory, end))
    fail("rewind");
  if (!memory)
    llama_memory_seq_rm(llama_get_memory(plain), 0, (llama_pos)(plain_tokens = end), -1);
}

static void write_logits(const char *arguments) {
  char out[256], path[256];
  unsigned from, count;
  int retrieve;
  if (sscanf(arguments, "%255s %255s %u %u %d", out, path, &from, &count, &retrieve) != 5)
    fail("logits");
  FILE *file = fopen(out, "ab");
  if (!file)
    fail(out);
  load(path, from, count);
  unsigned block = retrieve ? rows : PLAIN_BLOCK;
  for (unsigned at = 0, size; at < count; at += size) {
    size = count - at < block ? count - at : block;
    feed(ids + at, size, retrieve, true);
    for (unsigned i = 0; i < size; i++)
      fwrite(llama_get_logits_ith(context(), (int32_t)i), sizeof(float), (size_t)vocabulary(), file);
  }
  fclose(file);
}

static void write_filler(const char *arguments) {
  static char text[TEXT_BYTES_MAX];
  char path[256];
  unsigned seed, bytes;
  if (sscanf(arguments, "%255s %u %u", path, &seed, &bytes) != 3 || bytes > TEXT_BYTES_MAX)
    fail("write");
  filler_write(seed, text, bytes);
  FILE *file = fopen(path, "wb");
  if (!file || fwrite(text, 1, bytes, file) != bytes || fclose(file))
    fail(path);
}

static unsigned long resident_kib(void) {
  unsigned long pages = 0;
  FILE *file = fopen("/proc/self/statm", "r");
  if (!file || fscanf(file, "%*u %lu", &pages) != 1)
    fail("statm");
  fclose(file);
  return pages * (unsigned long)sysconf(_SC_PAGESIZE) / 1024;
}

static void show_status(void) {
  struct coldkv_status status;
  if (!memory || coldkv_get_status(coldkv_llama_conversation(memory), &status))
    fail("status");
  printf("tokens %llu lookups %llu missed %llu\n", (unsigned long long)status.tokens,
         (unsigned long long)status.lookups, (unsigned long long)status.lookups_missed);
}

static void finish(void) {
  coldkv_llama_close(memory);
  memory = NULL;
  if (plain)
    llama_free(plain);
  plain = NULL;
}

/* One line; whether it has been answered. */
static bool obey(const char *verb, const char *arguments) {
  char path[256];
  unsigned from, count;
  int retrieve;
  bool is_feed = strcmp(verb, "feed") == 0;
  if (strcmp(verb, "open") == 0) {
    open_memory(arguments);
  } else if (strcmp(verb, "plain") == 0) {
    open_plain(arguments);
  } else if (is_feed && sscanf(arguments, "%255s %u %u %d", path, &from, &count, &retrieve) == 4) {
    load(path, from, count);
    feed(ids, count, retrieve, false);
  } else if (strcmp(verb, "ask") == 0) {
    return ask(arguments), true;
  } else if (strcmp(verb, "write") == 0) {
    write_filler(arguments);
  } else if (strcmp(verb, "logits") == 0) {
    write_logits(arguments);
  } else if (strcmp(verb, "rewind") == 0) {
    if (coldkv_llama_rewind(memory, strtoull(arguments, NULL, 10)))
      fail("rewind");
  } else if (strcmp(verb, "sync") == 0) {
    if (coldkv_sync(coldkv_llama_conversation(memory)))
      fail("sync");
  } else if (strcmp(verb, "close") == 0) {
    return finish(), puts("closed"), true;
  } else if (strcmp(verb, "memory") == 0) {
    return printf("%lu\n", resident_kib()), true;
  } else if (strcmp(verb, "status") == 0) {
    return show_status(), true;
  } else {
    fail(verb);
  }
  return false;
}

static void quiet(enum ggml_log_level level, const char *text, void *context_) {
  (void)context_;
  if (level >= GGML_LOG_LEVEL_WARN && level != GGML_LOG_LEVEL_CONT)
    fputs(text, stderr);
}

int main(int argc, char **argv) {
  char line[1024], verb[16];
  int at;
  if (argc != 4)
    return 2;
  model_path = argv[1];
  threads = atoi(argv[3]);
  llama_log_set(quiet, NULL);
  llama_backend_init();
  struct llama_model_params params = llama_model_default_params();
  model = llama_model_load_from_file(model_path, params);
  if (!model || coldkv_client_create(&client, argv[2], NULL))
    fail("start");
  while (fgets(line, sizeof line, stdin) && sscanf(line, "%15s%n", verb, &at) == 1) {
    if (!obey(verb, line + at))
      printf("%llu\n", (unsigned long long)tokens());
    fflush(stdout);
  }
  finish();
  coldkv_client_destroy(client);
  llama_model_free(model);
  llama_backend_free();
  return EXIT_SUCCESS;
}
