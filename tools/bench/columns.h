// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Records of one (layer, kv head) to be looked up in, in memory: random, but with the scales of real ones and valid
// CRCs, and laid out region by region as in segment files.
#ifndef COLDKV_TOOLS_BENCH_COLUMNS_H
#define COLDKV_TOOLS_BENCH_COLUMNS_H

#include "proto/error.h"
#include "proto/record.h"

struct columns {
  uint32_t tokens, part_count;
  struct record_columns *parts; /* of LIMIT_SEGMENT_TOKENS each */
  uint8_t *scan, *rescore, *value;
};

/* `tokens` is a multiple of LIMIT_SEGMENT_TOKENS. */
int columns_create(struct columns *columns, uint32_t tokens, uint64_t seed, struct error *error);
void columns_destroy(struct columns *columns);

/* One random record, sealed for its place. */
void random_record(uint64_t *state, uint32_t layer, uint32_t head, uint64_t token, uint8_t record[RECORD_BYTES]);

/* A scale such as keys have: fp16 from about 0.06 to 0.12. */
uint16_t random_scale(uint64_t *state);

/* One query row as it is on the wire. */
void random_query(uint64_t *state, float row[RECORD_SIGNATURE_BITS]);

#endif
