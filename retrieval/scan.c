// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The scan in plain C: what every other version has to agree with.
#include "retrieval/kernels.h"

/* With x = signature XOR sign, coordinate i adds -|q4| where bit i of x is set and +|q4| elsewhere; so the sum is
 * that of all |q4|, less twice that of those whose bit is set, which is counted plane by plane. */
static int32_t weighted_sum(const struct query *query, const uint8_t *signature) {
  uint64_t low = load_u64(signature) ^ query->sign[0], high = load_u64(signature + 8) ^ query->sign[1];
  int32_t opposed = 0;
  for (uint32_t p = 0; p < QUERY_PLANES; p++) {
    int bits = __builtin_popcountll(low & query->magnitude[p][0]) + __builtin_popcountll(high & query->magnitude[p][1]);
    opposed += bits << p;
  }
  return query->magnitude_sum - 2 * opposed;
}

void scan_weighted_c(const struct query *queries, uint32_t rows, const struct scan_block *block,
                     const float *thresholds, struct scan_scores *results) {
  for (uint32_t r = 0; r < rows; r++) {
    memset(results[r].passed, 0, (block->count + 63) / 64 * sizeof(uint64_t));
    for (uint32_t i = 0; i < block->count; i++) {
      uint16_t scale = load_u16(block->k_scale + (size_t)i * RECORD_K_SCALE_BYTES);
      float sum = (float)weighted_sum(&queries[r], block->signature + (size_t)i * RECORD_SIGNATURE_BYTES);
      float score = sum * f32_from_f16(scale);
      results[r].scores[i] = score;
      results[r].passed[i / 64] |= (uint64_t)(record_scale_valid(scale) && score > thresholds[r]) << i % 64;
    }
  }
}

void scan_hamming_c(const struct query *queries, uint32_t rows, const struct scan_block *block,
                    const uint32_t *thresholds, struct scan_distances *results) {
  for (uint32_t r = 0; r < rows; r++) {
    memset(results[r].passed, 0, (block->count + 63) / 64 * sizeof(uint64_t));
    for (uint32_t i = 0; i < block->count; i++) {
      const uint8_t *at = block->signature + (size_t)i * RECORD_SIGNATURE_BYTES;
      int distance = __builtin_popcountll(load_u64(at) ^ queries[r].sign[0]) +
                     __builtin_popcountll(load_u64(at + 8) ^ queries[r].sign[1]);
      results[r].distances[i] = (uint8_t)distance;
      results[r].passed[i / 64] |= (uint64_t)((uint32_t)distance < thresholds[r]) << i % 64;
    }
  }
}

void scan_put(struct select *select, const struct scan_block *block, const struct scan_scores *result) {
  uint64_t *keys = select->keys + select->count;
  for (uint32_t w = 0; 64 * w < block->count; w++)
    for (uint64_t bits = result->passed[w]; bits; bits &= bits - 1) {
      uint32_t i = 64 * w + (uint32_t)__builtin_ctzll(bits);
      *keys++ = select_key(select_rank(result->scores[i]), block->ordinal + i);
    }
  select->count = (uint32_t)(keys - select->keys);
}
