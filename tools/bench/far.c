// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/bench/far.h"

#include <cblas.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "client/codec.h"
#include "client/coldkv.h"
#include "retrieval/lookup.h"
#include "tools/bench/expected.h"

enum {
  ROWS = LLAMA_BLOCK_MAX,
  MEANS_END = 320, /* means are those of the tokens that a client holds when the first one leaves its hot window */
  SEED = 1,
};

const uint32_t far_budgets[FAR_BUDGETS] = {0, 256, 512, 1024, 2048, 4096};

struct far {
  struct llama_config config;
  uint32_t tokens, group;
  float *keys;                     /* [layers][kv_heads][tokens][head_dim] */
  uint8_t *bytes;                  /* of all columns */
  struct record_columns *columns;  /* [layers][kv_heads] */
  struct lookup_scratch *scratch;
  struct expected expected;
  struct codec codec;
  float *single;                   /* [ROWS][group][head_dim]: queries of every query head at their expected distance */
  float *wire;                     /* [ROWS][128]: their sums, as lookups take them */
  float *scores;                   /* [ROWS][group][tokens] */
  float *sums, *mass;              /* [tokens] of one row: scores and masses added up over the group */
  float *weights;                  /* [tokens] of one query head */
  double best_score[ROWS], best_mass[ROWS]; /* what the best 64 of a row hold */
  struct far_result total;         /* sums, not means */
};

int far_create(struct far **out, const struct llama_config *config, uint32_t tokens, struct error *error) {
  size_t blocks = (size_t)config->layers * config->kv_heads, d = config->head_dim;
  struct far *far = calloc(1, sizeof *far);
  *out = far;
  if (!far)
    return error_set(error, ERR_MEMORY, "no memory for keys");
  far->config = *config;
  far->tokens = tokens;
  far->group = config->heads / config->kv_heads;
  far->keys = malloc(blocks * tokens * d * sizeof(float));
  far->bytes = malloc(blocks * tokens * RECORD_BYTES);
  far->columns = calloc(blocks, sizeof *far->columns);
  far->single = malloc((size_t)ROWS * far->group * d * sizeof(float));
  far->wire = malloc((size_t)ROWS * RECORD_SIGNATURE_BITS * sizeof(float));
  far->scores = malloc((size_t)ROWS * far->group * tokens * sizeof(float));
  far->sums = malloc(tokens * sizeof(float));
  far->mass = malloc((size_t)ROWS * tokens * sizeof(float));
  far->weights = malloc(tokens * sizeof(float));
  if (!far->keys || !far->bytes || !far->columns || !far->single || !far->wire || !far->scores || !far->sums ||
      !far->mass || !far->weights)
    return error_set(error, ERR_MEMORY, "no memory for the keys of %u tokens", tokens);
  int result = codec_init(&far->codec, config->head_dim, SEED, error);
  return result ? result : lookup_scratch_create(&far->scratch, error);
}

void far_destroy(struct far *far) {
  if (!far)
    return;
  free(far->keys);
  free(far->bytes);
  free(far->columns);
  free(far->single);
  free(far->wire);
  free(far->scores);
  free(far->sums);
  free(far->mass);
  free(far->weights);
  lookup_scratch_destroy(far->scratch);
  free(far);
}

static float *key_of(const struct far *far, uint32_t layer, uint32_t head, uint32_t token) {
  return far->keys + (((size_t)layer * far->config.kv_heads + head) * far->tokens + token) * far->config.head_dim;
}

void far_keep(struct far *far, uint32_t layer, uint32_t first, uint32_t n, const float *k) {
  const uint32_t heads = far->config.kv_heads, d = far->config.head_dim;
  for (uint32_t i = 0; i < n && first + i < far->tokens; i++)
    for (uint32_t head = 0; head < heads; head++)
      memcpy(key_of(far, layer, head, first + i), k + ((size_t)i * heads + head) * d, d * sizeof *k);
}

/* --- records ----------------------------------------------------------------------------------------------------- */

/* Cuts the memory of one block into columns. */
static struct record_columns columns_at(uint8_t *at, uint32_t tokens) {
  struct record_columns columns = {.count = tokens, .signature = at};
  columns.k_scale = columns.signature + (size_t)tokens * RECORD_SIGNATURE_BYTES;
  columns.k_mag = columns.k_scale + (size_t)tokens * RECORD_K_SCALE_BYTES;
  columns.v_code = columns.k_mag + (size_t)tokens * RECORD_K_MAG_BYTES;
  columns.v_scale = columns.v_code + (size_t)tokens * RECORD_V_CODE_BYTES;
  columns.crc = columns.v_scale + (size_t)tokens * RECORD_V_SCALE_BYTES;
  return columns;
}

/* Puts a record into columns that lie in `bytes`, in the order of its fields. */
static void scatter(uint8_t *bytes, uint32_t tokens, uint32_t entry, const uint8_t record[RECORD_BYTES]) {
  static const uint32_t widths[] = {RECORD_SIGNATURE_BYTES, RECORD_K_SCALE_BYTES, RECORD_K_MAG_BYTES,
                                    RECORD_V_CODE_BYTES,    RECORD_V_SCALE_BYTES, RECORD_CRC_BYTES};
  for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
    memcpy(bytes + (size_t)entry * widths[i], record, widths[i]);
    bytes += (size_t)tokens * widths[i];
    record += widths[i];
  }
}

static int encode_block(struct far *far, uint32_t layer, uint32_t head, struct error *error) {
  const uint32_t d = far->config.head_dim;
  float mean[LIMIT_HEAD_DIM_MAX];
  uint8_t record[RECORD_BYTES];
  size_t block = (size_t)layer * far->config.kv_heads + head;
  uint8_t *bytes = far->bytes + block * far->tokens * RECORD_BYTES;
  for (uint32_t i = 0; i < d; i++) {
    double sum = 0;
    for (uint32_t token = COLDKV_SINKS; token < MEANS_END; token++)
      sum += (double)key_of(far, layer, head, token)[i];
    mean[i] = (float)(sum / (MEANS_END - COLDKV_SINKS));
  }
  for (uint32_t token = 0; token < far->tokens; token++) {
    const float *key = key_of(far, layer, head, token); /* values have no part in this */
    if (codec_encode(&far->codec, key, key, mean, mean, layer, head, token, record))
      return error_set(error, ERR_NOT_FINITE, "the key of token %u, layer %u, cannot be encoded", token, layer);
    scatter(bytes, far->tokens, token, record);
  }
  far->columns[block] = columns_at(bytes, far->tokens);
  return 0;
}

int far_encode(struct far *far, struct error *error) {
  int result = 0;
  for (uint32_t layer = 0; layer < far->config.layers; layer++)
    for (uint32_t head = 0; head < far->config.kv_heads && !result; head++)
      result = encode_block(far, layer, head, error);
  return result;
}

/* --- exact ------------------------------------------------------------------------------------------------------- */

/* Sum of `mass` over the FAR_K places of the largest `values`. */
static double mass_of_best(const float *values, const float *mass, uint32_t count) {
  uint32_t best[FAR_K], found = 0;
  for (uint32_t i = 0; i < count; i++) {
    if (found == FAR_K && values[i] <= values[best[FAR_K - 1]])
      continue;
    uint32_t place = found < FAR_K ? found++ : FAR_K - 1; /* in descending order */
    for (; place > 0 && values[best[place - 1]] < values[i]; place--)
      best[place] = best[place - 1];
    best[place] = i;
  }
  double sum = 0;
  for (uint32_t i = 0; i < found; i++)
    sum += (double)mass[best[i]];
  return sum;
}

/* Queries of one kv head: every query head's, and what lookups get. */
static void make_queries(struct far *far, uint32_t head, uint32_t n, const float *q) {
  const uint32_t d = far->config.head_dim, group = far->group;
  for (uint32_t row = 0; row < n; row++) {
    float sum[LIMIT_HEAD_DIM_MAX] = {0};
    for (uint32_t g = 0; g < group; g++) {
      float *single = far->single + ((size_t)row * group + g) * d;
      expected_apply(&far->expected, q + ((size_t)row * far->config.heads + (size_t)head * group + g) * d, 1, single);
      for (uint32_t i = 0; i < d; i++)
        sum[i] += single[i];
    }
    codec_query(&far->codec, sum, far->wire + (size_t)row * RECORD_SIGNATURE_BITS);
  }
}

/* Softmax of every query head over all `count` cold tokens, added up over the group, and what the best 64 hold. */
static void measure_exact(struct far *far, uint32_t row, uint32_t count) {
  float *mass = far->mass + (size_t)row * far->tokens;
  memset(mass, 0, count * sizeof *mass);
  memset(far->sums, 0, count * sizeof *far->sums);
  for (uint32_t g = 0; g < far->group; g++) {
    const float *scores = far->scores + ((size_t)row * far->group + g) * count;
    float largest = scores[0];
    double total = 0;
    for (uint32_t i = 1; i < count; i++)
      largest = scores[i] > largest ? scores[i] : largest;
    for (uint32_t i = 0; i < count; i++)
      total += (double)(far->weights[i] = expf(scores[i] - largest));
    for (uint32_t i = 0; i < count; i++) {
      mass[i] += far->weights[i] / (float)total;
      far->sums[i] += scores[i];
    }
  }
  far->best_mass[row] = mass_of_best(mass, mass, count);
  far->best_score[row] = mass_of_best(far->sums, mass, count);
}

/* --- found ------------------------------------------------------------------------------------------------------- */

static int measure_lookup(struct far *far, uint32_t layer, uint32_t head, uint32_t n, uint32_t before, int mode,
                          int budget, struct error *error) {
  static uint64_t tokens[ROWS * FAR_K];
  static uint8_t records[ROWS * FAR_K * RECORD_BYTES];
  static uint32_t index[ROWS * FAR_K];
  static float scores[ROWS * FAR_K];
  struct lookup_answer answer = {.tokens = tokens, .records = records, .index = index, .scores = scores};
  const struct lookup_request request = {
      .mode = (enum lookup_mode)mode, .head_dim = far->config.head_dim, .layer = layer, .head = head, .rows = n,
      .k = FAR_K, .candidates = far_budgets[budget], .from = COLDKV_SINKS, .before = before,
      .queries = (const uint8_t *)far->wire, .row_stride = RECORD_SIGNATURE_BITS * sizeof(float)};
  const struct record_columns *columns = &far->columns[(size_t)layer * far->config.kv_heads + head];
  int result = lookup_run(far->scratch, &request, columns, 1, &answer, error);
  for (uint32_t row = 0; row < n && !result; row++) {
    const float *mass = far->mass + (size_t)row * far->tokens;
    double got = 0;
    for (uint32_t i = 0; i < FAR_K; i++)
      if (index[row * FAR_K + i] != LOOKUP_NONE)
        got += (double)mass[tokens[index[row * FAR_K + i]] - COLDKV_SINKS];
    far->total.score[mode][budget] += got / far->best_score[row];
    far->total.mass[mode][budget] += got / far->best_mass[row];
  }
  return result;
}

int far_measure(struct far *far, uint32_t layer, uint32_t first, uint32_t n, const float *q, struct error *error) {
  const uint32_t d = far->config.head_dim;
  const uint32_t before = (first - COLDKV_HOT) / COLDKV_BLOCK_MAX * COLDKV_BLOCK_MAX, count = before - COLDKV_SINKS;
  int result = 0;
  expected_update(&far->expected, &far->config, first + n);
  for (uint32_t head = 0; head < far->config.kv_heads && !result; head++) {
    make_queries(far, head, n, q);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)(n * far->group), (int)count, (int)d,
                1.0f / sqrtf((float)d), far->single, (int)d, key_of(far, layer, head, COLDKV_SINKS), (int)d, 0.0f,
                far->scores, (int)count);
    for (uint32_t row = 0; row < n; row++) {
      measure_exact(far, row, count);
      far->total.best += far->best_score[row] / far->group;
      far->total.rows++;
    }
    for (int mode = 0; mode < FAR_MODES; mode++)
      for (int budget = 0; budget < FAR_BUDGETS && !result; budget++)
        result = measure_lookup(far, layer, head, n, before, mode, budget, error);
  }
  return result;
}

struct far_result far_result(const struct far *far) {
  struct far_result mean = far->total;
  for (int mode = 0; mode < FAR_MODES; mode++)
    for (int budget = 0; budget < FAR_BUDGETS; budget++) {
      mean.score[mode][budget] /= (double)mean.rows;
      mean.mass[mode][budget] /= (double)mean.rows;
    }
  mean.best /= (double)mean.rows;
  return mean;
}
