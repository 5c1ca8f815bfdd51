// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// coldkv-bench recall: how much of the attention that exact keys would get is found by lookups, with real queries and
// keys: the tiny model reads a document far past its window, through coldkv, and is asked for every fact in it.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "retrieval/lookup.h"
#include "tools/bench/far.h"
#include "tools/bench/measure.h"
#include "tools/demo/document.h"
#include "tools/demo/memory.h"
#include "tools/demo/process.h"
#include "tools/demo/question.h"

enum {
  SLOTS = 64,
  LAST_BLOCKS = 2, /* of the text, measured too, and read with retrieval */
  QUESTIONS_QUICK = 3,
  LENGTHS = 2,
};

static const uint32_t lengths[LENGTHS] = {16384, 65536}, lengths_quick[1] = {4096};

/* The queries of one block. */
struct block {
  uint32_t first, n;
  float *q; /* [layers][n][heads][head_dim], malloc'd */
};

struct reading {
  struct llama *llama;
  struct memory memory;
  struct far *far;
  struct document document;
  struct block blocks[LAST_BLOCKS + DOCUMENT_FACTS];
  uint32_t block_count;
  struct block *capture; /* NULL: this block's queries are not wanted */
  uint32_t first;        /* of the block under way */
  bool keep;             /* its keys are wanted */
  bool quick;
};

/* The llama_attend_fn: coldkv's attention; keys and queries are kept on the way. */
static int attend(void *context, uint32_t layer, uint32_t n, const float *q, const float *k, const float *v,
                  float *out) {
  struct reading *reading = context;
  const struct llama_config *config = llama_config(reading->llama);
  size_t size = (size_t)n * config->heads * config->head_dim;
  if (reading->keep)
    far_keep(reading->far, layer, reading->first, n, k);
  if (reading->capture)
    memcpy(reading->capture->q + layer * size, q, size * sizeof *q);
  return coldkv_attend(reading->memory.conv, layer, q, k, v, out);
}

/* Room for the queries of the block that comes next; NULL: none left. */
static struct block *add_block(struct reading *reading, uint32_t n) {
  const struct llama_config *config = llama_config(reading->llama);
  float *q = malloc((size_t)config->layers * n * config->heads * config->head_dim * sizeof(float));
  if (!q || reading->block_count == LAST_BLOCKS + DOCUMENT_FACTS) {
    free(q);
    return NULL;
  }
  reading->blocks[reading->block_count] = (struct block){.first = reading->first, .n = n, .q = q};
  return &reading->blocks[reading->block_count++];
}

/* Reads a block; with `wanted` its queries are kept, and retrieval takes part. */
static int read_block(struct reading *reading, const char *text, uint32_t n, bool wanted, struct error *error) {
  uint32_t ids[LLAMA_BLOCK_MAX];
  reading->capture = wanted ? add_block(reading, n) : NULL;
  if (wanted && !reading->capture)
    return error_set(error, ERR_MEMORY, "no memory for queries");
  question_ids(text, n, ids);
  int failed = coldkv_set_slots(reading->memory.conv, wanted ? SLOTS : 0);
  if (!failed)
    failed = coldkv_begin(reading->memory.conv, ids, n);
  if (!failed)
    failed = llama_forward(reading->llama, ids, n, attend, reading, NULL, 0);
  if (!failed)
    failed = coldkv_end(reading->memory.conv);
  return failed ? error_set(error, -failed, "%s", coldkv_error()) : 0;
}

/* The document, then every question from the same state. */
static int read_all(struct reading *reading, struct error *error) {
  uint32_t bytes = reading->document.bytes;
  int result = 0;
  const int questions = reading->quick ? QUESTIONS_QUICK : DOCUMENT_FACTS;
  const uint32_t last = (reading->quick ? 1 : LAST_BLOCKS) * LLAMA_BLOCK_MAX;
  reading->keep = true;
  for (reading->first = 0; reading->first < bytes && !result; reading->first += LLAMA_BLOCK_MAX)
    result = read_block(reading, reading->document.text + reading->first, LLAMA_BLOCK_MAX,
                        reading->first + last >= bytes, error);
  reading->keep = false;
  for (int i = 0; i < questions && !result; i++) {
    const char *question = reading->document.facts[i].question;
    reading->first = bytes;
    result = read_block(reading, question, (uint32_t)strlen(question), true, error);
    int failed = result ? 0 : coldkv_rewind(reading->memory.conv, bytes);
    if (failed)
      result = error_set(error, -failed, "%s", coldkv_error());
  }
  return result;
}

/* So that the figures are not those of something else. */
static int check_status(struct reading *reading, struct error *error) {
  struct coldkv_status status;
  int failed = coldkv_get_status(reading->memory.conv, &status);
  if (failed)
    return error_set(error, -failed, "%s", coldkv_error());
  if (status.lookups_missed || status.bad_records)
    return error_set(error, ERR_INTERNAL, "%llu lookups were not answered, %llu records were bad",
                     (unsigned long long)status.lookups_missed, (unsigned long long)status.bad_records);
  return 0;
}

static int measure_all(struct reading *reading, struct error *error) {
  const struct llama_config *config = llama_config(reading->llama);
  int result = far_encode(reading->far, error);
  for (uint32_t b = 0; b < reading->block_count; b++)
    for (uint32_t layer = 0; layer < config->layers && !result; layer++) {
      const struct block *block = &reading->blocks[b];
      size_t size = (size_t)block->n * config->heads * config->head_dim;
      result = far_measure(reading->far, layer, block->first, block->n, block->q + layer * size, error);
    }
  return result;
}

static void print(const struct reading *reading, struct bench_output *output) {
  static const char *const modes[FAR_MODES] = {"weighted", "hamming"};
  struct far_result result = far_result(reading->far);
  uint32_t tokens = reading->document.bytes;
  char name[64], what[128];
  snprintf(name, sizeof name, "recall_%u_rows", tokens);
  bench_integer(output, name, result.rows, "queries: rows x kv heads x layers");
  snprintf(name, sizeof name, "recall_%u_top64", tokens);
  bench_figure(output, name, result.best, "of all cold attention mass is in the exact best 64");
  for (int mode = 0; mode < FAR_MODES; mode++)
    for (int budget = 0; budget < FAR_BUDGETS; budget++) {
      uint32_t c = far_budgets[budget] ? far_budgets[budget] : lookup_default_candidates(tokens - COLDKV_HOT);
      const char *wanted = budget || mode ? "" : "; wanted: at least 0.97";
      if (budget)
        snprintf(name, sizeof name, "recall_%u_%s_c%u", tokens, modes[mode], c);
      else
        snprintf(name, sizeof name, "recall_%u%s", tokens, mode ? "_hamming" : "");
      snprintf(what, sizeof what, "%s, C = %u%s (%.4f of the best that any 64 hold)%s", modes[mode], c,
               budget ? "" : ", the default", result.mass[mode][budget], wanted);
      bench_figure(output, name, result.score[mode][budget], what);
      snprintf(name + strlen(name), sizeof name - strlen(name), "_mass");
      if (bench_is_json(output))
        bench_figure(output, name, result.mass[mode][budget], what);
    }
}

/* One document of that many bytes. */
static int run_length(struct reading *reading, const char *socket, uint32_t bytes, struct bench_output *output,
                      struct error *error) {
  char name[32];
  snprintf(name, sizeof name, "recall-%u", bytes);
  reading->block_count = 0;
  int result = document_write(&reading->document, 1, bytes, error);
  if (result)
    return result;
  result = far_create(&reading->far, llama_config(reading->llama), bytes, error);
  if (!result) {
    int failed = memory_open(&reading->memory, reading->llama, socket, name, 0);
    result = failed ? error_set(error, -failed, "%s", coldkv_error()) : read_all(reading, error);
    if (!result)
      result = check_status(reading, error);
    memory_close(&reading->memory);
  }
  if (!result)
    result = measure_all(reading, error);
  if (!result)
    print(reading, output);
  for (uint32_t b = 0; b < reading->block_count; b++)
    free(reading->blocks[b].q);
  far_destroy(reading->far);
  document_finish(&reading->document);
  return result;
}

int bench_recall(const struct bench_options *options, struct bench_output *output, struct error *error) {
  struct reading reading = {.quick = options->quick};
  struct service service = {0};
  char scratch[PATH_MAX] = "", model[PATH_MAX] = "";
  const uint32_t *all = options->quick ? lengths_quick : lengths, count = options->quick ? 1 : LENGTHS;
  llama_set_threads(options->threads);
  bench_machine(output, "recall", "attention mass that lookups find, of what exact keys would give");
  bench_text(output, "kernel", lookup_kernel_name(), "kernels in use");
  bench_integer(output, "slots", SLOTS, "k");
  int result = options->model ? 0 : process_beside(model, "../demo/model", error);
  if (!result)
    result = llama_load(&reading.llama, options->model ? options->model : model, error);
  if (!result)
    result = scratch_create(scratch, error);
  if (!result)
    result = service_init(&service, options->coldkvd, scratch, NULL, error);
  if (!result)
    result = service_start(&service, error);
  for (uint32_t i = 0; i < count && !result; i++)
    result = run_length(&reading, service.socket, all[i], output, error);
  if (!result)
    result = service_stop(&service, error);
  service_kill(&service);
  scratch_remove(scratch);
  llama_free(reading.llama);
  return result;
}
