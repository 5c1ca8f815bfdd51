// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What coldkv costs in quality: the tiny model reads the beginning of the demo's texts, as much as its trained window
// holds, once with full attention and once with coldkv behind a real daemon. Whatever differs is coldkv's doing.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench/bench.h"
#include "tools/bench/recall.h"
#include "tools/demo/document.h"
#include "tools/demo/exact.h"
#include "tools/demo/memory.h"
#include "tools/demo/process.h"
#include "tools/demo/question.h"

enum {
  TOKENS = 2048,
  FIRST = 320, /* of the first block that does not see everything exactly */
  SLOTS = 64,
  DOCUMENTS = 4,
  DOCUMENTS_QUICK = 1,
  DOCUMENT_BYTES = 16384,
  RECALL_EVERY = 4, /* every fourth block is looked at closely */
};

struct quality {
  struct llama *llama;
  struct memory memory;
  struct exact *exact;
  struct recall *recall;
  struct document document;
  uint32_t vocab, first; /* first: token at which the block under way begins */
  float *full, *cold;    /* logits: [TOKENS][vocab] with full attention, [LLAMA_BLOCK_MAX][vocab] with coldkv */
  double *divergence;    /* [documents][TOKENS - FIRST] */
  size_t positions, agreed;
};

/* --- the two readings ----------------------------------------------------------------------------------------------
 * */

static int read_full(struct quality *quality, struct error *error) {
  int result = 0;
  exact_rewind(quality->exact, 0);
  for (uint32_t first = 0; first < TOKENS && !result; first += LLAMA_BLOCK_MAX) {
    uint32_t ids[LLAMA_BLOCK_MAX];
    question_ids(quality->document.text + first, LLAMA_BLOCK_MAX, ids);
    result = exact_feed(quality->exact, quality->llama, ids, LLAMA_BLOCK_MAX,
                        quality->full + (size_t)first * quality->vocab, LLAMA_BLOCK_MAX, error);
  }
  return result;
}

/* The llama_attend_fn: coldkv's attention, and now and then a look at what it retrieves. */
static int attend(void *context, uint32_t layer, uint32_t n, const float *q, const float *k, const float *v,
                  float *out) {
  struct quality *quality = context;
  recall_keep(quality->recall, layer, quality->first, n, k, v);
  if (quality->first >= FIRST && quality->first / LLAMA_BLOCK_MAX % RECALL_EVERY == 0) {
    struct coldkv_slots slots;
    int result = coldkv_retrieve(quality->memory.conv, layer, q, &slots);
    if (result)
      return result;
    recall_measure(quality->recall, layer, quality->first, q, &slots);
  }
  return coldkv_attend(quality->memory.conv, layer, q, k, v, out);
}

static int read_block(struct quality *quality) {
  uint32_t ids[LLAMA_BLOCK_MAX];
  question_ids(quality->document.text + quality->first, LLAMA_BLOCK_MAX, ids);
  int result = coldkv_begin(quality->memory.conv, ids, LLAMA_BLOCK_MAX);
  if (!result)
    result = llama_forward(quality->llama, ids, LLAMA_BLOCK_MAX, attend, quality, quality->cold, LLAMA_BLOCK_MAX);
  return result ? result : coldkv_end(quality->memory.conv);
}

/* --- the comparison ------------------------------------------------------------------------------------------------
 * */

static uint32_t best_of(const float *logits, uint32_t vocab) {
  uint32_t best = 0;
  for (uint32_t i = 1; i < vocab; i++)
    if (logits[i] > logits[best])
      best = i;
  return best;
}

/* Logarithm of the sum of exponentials. */
static double log_sum(const float *logits, uint32_t vocab) {
  double largest = logits[best_of(logits, vocab)], sum = 0;
  for (uint32_t i = 0; i < vocab; i++)
    sum += exp(logits[i] - largest);
  return largest + log(sum);
}

/* KL(p || q) in nats of two rows of logits. */
static double divergence(const float *p, const float *q, uint32_t vocab) {
  double p_sum = log_sum(p, vocab), q_sum = log_sum(q, vocab), total = 0;
  for (uint32_t i = 0; i < vocab; i++)
    total += exp(p[i] - p_sum) * ((p[i] - p_sum) - (q[i] - q_sum));
  return total;
}

static void compare_block(struct quality *quality) {
  const uint32_t vocab = quality->vocab;
  for (uint32_t row = 0; row < LLAMA_BLOCK_MAX; row++) {
    const float *full = quality->full + (size_t)(quality->first + row) * vocab;
    const float *cold = quality->cold + (size_t)row * vocab;
    quality->divergence[quality->positions++] = divergence(full, cold, vocab);
    quality->agreed += best_of(full, vocab) == best_of(cold, vocab);
  }
}

/* One document, both ways. All of them are conversations of one model, so the means are those of the first. */
static int measure(struct quality *quality, uint32_t number, const char *socket, struct error *error) {
  char name[32];
  snprintf(name, sizeof name, "quality-%u", number);
  int result = document_write(&quality->document, number, DOCUMENT_BYTES, error);
  if (!result)
    result = read_full(quality, error);
  if (!result) {
    recall_restart(quality->recall);
    int failed = memory_open(&quality->memory, quality->llama, socket, name, 0);
    if (!failed)
      failed = coldkv_set_slots(quality->memory.conv, SLOTS);
    for (quality->first = 0; quality->first < TOKENS && !failed; quality->first += LLAMA_BLOCK_MAX) {
      failed = read_block(quality);
      if (!failed && quality->first >= FIRST)
        compare_block(quality);
    }
    struct coldkv_status status = {0};
    if (!failed)
      failed = coldkv_get_status(quality->memory.conv, &status);
    if (failed)
      result = error_set(error, -failed, "%s", coldkv_error());
    else if (status.lookups_missed || status.bad_records) /* or the figures would be those of something else */
      result = error_set(error, ERR_INTERNAL, "%llu lookups were not answered, %llu records were bad",
                         (unsigned long long)status.lookups_missed, (unsigned long long)status.bad_records);
    memory_close(&quality->memory);
  }
  document_finish(&quality->document);
  return result;
}

/* --- the result ----------------------------------------------------------------------------------------------------
 * */

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void print(struct quality *quality, uint32_t documents, struct bench_output *output) {
  size_t n = quality->positions;
  double sum = 0;
  for (size_t i = 0; i < n; i++)
    sum += quality->divergence[i];
  qsort(quality->divergence, n, sizeof *quality->divergence, ascending);
  struct recall_result recall = recall_result(quality->recall);
  bench_text(output, "command", "quality", "attention with coldkv against full attention");
  bench_integer(output, "documents", documents, "of 2048 tokens: the beginnings of the demo's texts, seeds 1, 2, ...");
  bench_integer(output, "slots", SLOTS, "retrieved tokens per row, layer and kv head");
  bench_integer(output, "first", FIRST, "first token of a document that is compared");
  bench_integer(output, "positions", n, "tokens compared");
  bench_figure(output, "kl_median", (quality->divergence[(n - 1) / 2] + quality->divergence[n / 2]) / 2,
               "nats, KL(full || coldkv) of the next token");
  bench_figure(output, "kl_mean", sum / (double)n, "nats");
  bench_figure(output, "top1", (double)quality->agreed / (double)n, "share of tokens with the same likeliest next one");
  bench_figure(output, "recall_mass", recall.mass, "attention mass of what came back, over that of the exact best");
  bench_integer(output, "recall_rows", recall.rows, "queries that is the mean of");
  bench_figure(output, "cos_k", recall.cos_k, "mean cosine of decoded and real keys");
  bench_figure(output, "cos_v", recall.cos_v, "mean cosine of decoded and real values");
  bench_integer(output, "cos_records", recall.records, "records these are the means of");
}

static int allocate(struct quality *quality, uint32_t documents, struct error *error) {
  const struct llama_config *config = llama_config(quality->llama);
  if (config->window < TOKENS)
    return error_set(error, ERR_NOT_SUPPORTED, "the model was trained for fewer than %d tokens", TOKENS);
  quality->vocab = config->vocab;
  quality->full = malloc((size_t)TOKENS * config->vocab * sizeof(float));
  quality->cold = malloc((size_t)LLAMA_BLOCK_MAX * config->vocab * sizeof(float));
  quality->divergence = malloc((size_t)documents * TOKENS * sizeof(double));
  if (!quality->full || !quality->cold || !quality->divergence)
    return error_set(error, ERR_MEMORY, "no memory to compare what the model says");
  int result = exact_create(&quality->exact, config, TOKENS, error);
  return result ? result : recall_create(&quality->recall, config, TOKENS, error);
}

int bench_quality(const struct bench_options *options, struct bench_output *output, struct error *error) {
  const uint32_t documents = options->quick ? DOCUMENTS_QUICK : DOCUMENTS;
  struct quality quality = {0};
  struct service service = {0};
  char scratch[PATH_MAX] = "", model[PATH_MAX] = "";
  llama_set_threads(options->threads);
  int result = options->model ? 0 : process_beside(model, "../demo/model", error);
  if (!result)
    result = llama_load(&quality.llama, options->model ? options->model : model, error);
  if (!result)
    result = allocate(&quality, documents, error);
  if (!result)
    result = scratch_create(scratch, error);
  if (!result)
    result = service_init(&service, options->coldkvd, scratch, NULL, error);
  if (!result)
    result = service_start(&service, error);
  for (uint32_t i = 1; i <= documents && !result; i++)
    result = measure(&quality, i, service.socket, error);
  if (!result)
    result = service_stop(&service, error);
  if (!result)
    print(&quality, documents, output);
  service_kill(&service);
  scratch_remove(scratch);
  recall_destroy(quality.recall);
  exact_destroy(quality.exact);
  llama_free(quality.llama);
  free(quality.full);
  free(quality.cold);
  free(quality.divergence);
  return result;
}
