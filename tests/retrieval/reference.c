// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/retrieval/reference.h"

#include <math.h>
#include <stdlib.h>

#include "proto/codebook.h"

/* --- made-up archives -------------------------------------------------------------------------------------------- */

static const uint32_t widths[6] = {16, 2, 32, 48, 2, 4};

static void *must(void *memory) {
  if (!memory)
    abort();
  return memory;
}

void parts_make(struct archive_parts *parts, const uint64_t *firsts, const uint32_t *counts, uint32_t count,
                uint32_t layer, uint32_t head, struct random *random) {
  *parts = (struct archive_parts){.count = count};
  parts->columns = must(calloc(count + 1, sizeof *parts->columns));
  parts->memory = must(calloc(6 * (size_t)count + 1, sizeof *parts->memory));
  for (uint32_t p = 0; p < count; p++) {
    uint8_t **column = parts->memory + 6 * (size_t)p;
    for (int c = 0; c < 6; c++) { /* each column on its own, so that a sanitizer sees a read past its end */
      column[c] = must(malloc((size_t)widths[c] * counts[p] + !counts[p]));
      random_fill(random, column[c], (size_t)widths[c] * counts[p]);
    }
    parts->columns[p] = (struct record_columns){column[0], column[1], column[2], column[3],
                                                column[4], column[5], firsts[p], counts[p]};
    for (uint32_t i = 0; i < counts[p]; i++) {
      store_u16(column[1] + 2 * (size_t)i, (uint16_t)(0x3800 + random_below(random, 0x800))); /* 0.5 to 2 */
      store_u16(column[4] + 2 * (size_t)i, 0x3c00);
    }
  }
  parts_seal(parts, layer, head);
}

void parts_free(struct archive_parts *parts) {
  for (uint32_t i = 0; i < 6 * parts->count; i++)
    free(parts->memory[i]);
  free(parts->memory);
  free(parts->columns);
}

static uint8_t *column_entry(struct archive_parts *parts, uint32_t part, uint32_t entry, int column) {
  return parts->memory[6 * (size_t)part + (size_t)column] + (size_t)widths[column] * entry;
}

uint8_t *parts_signature(struct archive_parts *parts, uint32_t part, uint32_t entry) {
  return column_entry(parts, part, entry, 0);
}

uint8_t *parts_k_scale(struct archive_parts *parts, uint32_t part, uint32_t entry) {
  return column_entry(parts, part, entry, 1);
}

uint8_t *parts_k_mag(struct archive_parts *parts, uint32_t part, uint32_t entry) {
  return column_entry(parts, part, entry, 2);
}

uint8_t *parts_crc(struct archive_parts *parts, uint32_t part, uint32_t entry) {
  return column_entry(parts, part, entry, 5);
}

void parts_seal(struct archive_parts *parts, uint32_t layer, uint32_t head) {
  for (uint32_t p = 0; p < parts->count; p++)
    for (uint32_t i = 0; i < parts->columns[p].count; i++) {
      uint8_t record[RECORD_BYTES];
      record_gather(&parts->columns[p], i, record);
      record_seal(record, layer, head, parts->columns[p].first + i);
      memcpy(column_entry(parts, p, i, 5), record + RECORD_CRC, RECORD_CRC_BYTES);
    }
}

void answer_make(struct lookup_answer *answer, uint32_t rows, uint32_t k) {
  size_t n = (size_t)rows * k;
  *answer = (struct lookup_answer){.tokens = must(malloc(n * sizeof(uint64_t) + !n)),
                                   .records = must(malloc(n * RECORD_BYTES + !n)),
                                   .index = must(malloc(n * sizeof(uint32_t) + !n)),
                                   .scores = must(malloc(n * sizeof(float) + !n))};
}

void answer_free(struct lookup_answer *answer) {
  free(answer->tokens);
  free(answer->records);
  free(answer->index);
  free(answer->scores);
}

/* --- the reference ----------------------------------------------------------------------------------------------- */

struct scored {
  double score;
  uint64_t token;
  uint8_t record[RECORD_BYTES];
};

static int by_score(const void *a, const void *b) {
  const struct scored *x = a, *y = b;
  if (x->score != y->score)
    return x->score < y->score ? 1 : -1;
  return (x->token > y->token) - (x->token < y->token);
}

static int by_number(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

static double scale_of(const uint8_t *record) {
  unsigned h = load_u16(record + RECORD_K_SCALE), exponent = h >> 10, fraction = h & 1023;
  return exponent ? ldexp(1024 + fraction, (int)exponent - 25) : ldexp(fraction, -24);
}

static double query_at(const struct lookup_request *request, uint32_t row, uint32_t i) {
  return (double)load_f32(request->queries + row * request->row_stride + 4 * (size_t)i);
}

static int64_t quantized(const struct lookup_request *request, uint32_t row, uint32_t i, uint32_t n, double levels) {
  double max = 0;
  for (uint32_t j = 0; j < n; j++)
    max = fmax(max, fabs(query_at(request, row, j)));
  return max > 0 ? (int64_t)nearbyint(levels * query_at(request, row, i) / max) : 0;
}

static double scan_score(const struct lookup_request *request, uint32_t row, const int64_t *q4,
                         const uint8_t *record) {
  int64_t sum = 0, distance = 0;
  for (uint32_t i = 0; i < 128; i++) {
    bool negative = record[i / 8] >> i % 8 & 1;
    sum += negative ? -q4[i] : q4[i];
    distance += negative != (query_at(request, row, i) < 0);
  }
  return request->mode == LOOKUP_HAMMING ? -(double)distance : (double)sum * scale_of(record);
}

static double final_score(uint32_t head_dim, const int64_t *q12, const uint8_t *record) {
  int64_t sum = 0;
  for (uint32_t i = 0; i < head_dim; i++) {
    unsigned bits = record_k_bits(head_dim, i), index = 0, plane_at = 0;
    for (unsigned b = 0; b < bits; b++, plane_at += head_dim)
      index |= (unsigned)(record[RECORD_K_MAG + (plane_at + i) / 8] >> (plane_at + i) % 8 & 1) << b;
    int64_t level = (int64_t)nearbyint(1024.0 * (double)codebooks[bits].levels[index]);
    sum += q12[i] * (record[i / 8] >> i % 8 & 1 ? -level : level);
  }
  float rounded = (float)sum * (float)scale_of(record);
  return (double)rounded;
}

/* All candidates of the range with their scan scores; returns how many. */
static uint32_t gather(const struct lookup_request *request, const struct record_columns *parts, uint32_t part_count,
                       uint32_t row, struct scored *all, uint64_t *scanned) {
  uint32_t n = 0;
  int64_t q4[128];
  for (uint32_t i = 0; i < 128; i++)
    q4[i] = quantized(request, row, i, 128, 7);
  *scanned = 0;
  for (uint32_t p = 0; p < part_count; p++)
    for (uint32_t i = 0; i < parts[p].count; i++) {
      uint64_t token = parts[p].first + i;
      if (token < request->from || token >= request->before)
        continue;
      ++*scanned;
      struct scored *scored = &all[n];
      scored->token = token;
      record_gather(&parts[p], i, scored->record);
      if (load_u16(scored->record + RECORD_K_SCALE) >= 0x7c00)
        continue;
      scored->score = scan_score(request, row, q4, scored->record);
      n++;
    }
  return n;
}

/* Writes the tokens of one row's winners, their scores and the bad tokens met on the way. */
static uint32_t row_winners(const struct lookup_request *request, struct scored *all, uint32_t n, uint32_t row,
                            uint64_t *tokens, float *scores, uint64_t *bad, size_t *bad_count) {
  int64_t q12[128];
  for (uint32_t i = 0; i < request->head_dim; i++)
    q12[i] = quantized(request, row, i, request->head_dim, 2047);
  for (uint32_t i = 0; i < n; i++)
    all[i].score = final_score(request->head_dim, q12, all[i].record);
  qsort(all, n, sizeof *all, by_score);
  uint32_t taken = 0;
  for (uint32_t i = 0; i < n && taken < request->k; i++) {
    if (!record_check(all[i].record, request->layer, request->head, all[i].token)) {
      bad[(*bad_count)++] = all[i].token;
      continue;
    }
    tokens[taken] = all[i].token;
    scores[taken++] = (float)all[i].score + 0.0f;
  }
  return taken;
}

static size_t unique(uint64_t *numbers, size_t count) {
  size_t n = 0;
  if (count)
    qsort(numbers, count, sizeof *numbers, by_number);
  for (size_t i = 0; i < count; i++)
    if (n == 0 || numbers[n - 1] != numbers[i])
      numbers[n++] = numbers[i];
  return n;
}

static void find_record(const struct record_columns *parts, uint32_t part_count, uint64_t token, uint8_t *record) {
  for (uint32_t p = 0; p < part_count; p++)
    if (token >= parts[p].first && token < parts[p].first + parts[p].count)
      record_gather(&parts[p], (uint32_t)(token - parts[p].first), record);
}

void reference_lookup(const struct lookup_request *request, const struct record_columns *parts, uint32_t part_count,
                      struct lookup_answer *answer) {
  size_t total = 0, cells = (size_t)request->rows * request->k, taken = 0, bad_count = 0;
  for (uint32_t p = 0; p < part_count; p++)
    total += parts[p].count;
  struct scored *all = must(malloc((total + 1) * sizeof *all));
  uint64_t *tokens = must(calloc(cells + 1, sizeof *tokens)), *sorted = must(calloc(cells + 1, sizeof *sorted));
  uint64_t *bad = must(calloc(request->rows * total + 1, sizeof *bad));
  uint32_t *counts = must(calloc(request->rows + 1u, sizeof *counts));
  answer->rescored = answer->scanned = 0;
  for (uint32_t r = 0; r < request->rows; r++) {
    uint32_t n = gather(request, parts, part_count, r, all, &answer->scanned);
    uint32_t wanted = request->candidates ? request->candidates : lookup_default_candidates(answer->scanned);
    qsort(all, n, sizeof *all, by_score);
    n = n < wanted ? n : wanted;
    answer->rescored += n;
    size_t at = (size_t)r * request->k;
    counts[r] = row_winners(request, all, n, r, tokens + at, answer->scores + at, bad, &bad_count);
    memcpy(sorted + taken, tokens + at, counts[r] * sizeof *tokens);
    taken += counts[r];
  }
  answer->bad_records = unique(bad, bad_count);
  answer->count = (uint32_t)unique(sorted, taken);
  for (uint32_t i = 0; i < answer->count; i++) {
    answer->tokens[i] = sorted[i];
    find_record(parts, part_count, sorted[i], answer->records + (size_t)i * RECORD_BYTES);
  }
  for (size_t cell = 0; cell < cells; cell++) {
    bool empty = cell % request->k >= counts[cell / request->k];
    uint64_t *found = empty ? NULL : bsearch(&tokens[cell], sorted, answer->count, sizeof *sorted, by_number);
    answer->index[cell] = found ? (uint32_t)(found - sorted) : LOOKUP_NONE;
    if (empty)
      answer->scores[cell] = 0;
  }
  free(all);
  free(tokens);
  free(sorted);
  free(bad);
  free(counts);
}
