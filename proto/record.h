// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The 104-byte record of one (layer, kv head, token), as RECORD.md defines it: field places, accessors, its CRC, and
// the same fields kept column by column.
#ifndef COLDKV_PROTO_RECORD_H
#define COLDKV_PROTO_RECORD_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/bytes.h"
#include "proto/limits.h"

enum {
  RECORD_SIGNATURE_BYTES = 16,
  RECORD_K_SCALE_BYTES = 2,
  RECORD_K_MAG_BYTES = 32,
  RECORD_V_CODE_BYTES = 48,
  RECORD_V_SCALE_BYTES = 2,
  RECORD_CRC_BYTES = 4,

  RECORD_SIGNATURE = 0,
  RECORD_K_SCALE = RECORD_SIGNATURE + RECORD_SIGNATURE_BYTES,
  RECORD_K_MAG = RECORD_K_SCALE + RECORD_K_SCALE_BYTES,
  RECORD_V_CODE = RECORD_K_MAG + RECORD_K_MAG_BYTES,
  RECORD_V_SCALE = RECORD_V_CODE + RECORD_V_CODE_BYTES,
  RECORD_CRC = RECORD_V_SCALE + RECORD_V_SCALE_BYTES,
  RECORD_BYTES = RECORD_CRC + RECORD_CRC_BYTES,

  RECORD_SIGNATURE_BITS = 8 * RECORD_SIGNATURE_BYTES,
  RECORD_K_MAG_BITS = 8 * RECORD_K_MAG_BYTES,
  RECORD_V_CODE_BITS = 8 * RECORD_V_CODE_BYTES,
};

_Static_assert(RECORD_BYTES == 104, "the record is 104 bytes");
_Static_assert(RECORD_K_SCALE == 16 && RECORD_K_MAG == 18 && RECORD_V_CODE == 50 && RECORD_V_SCALE == 98 &&
                   RECORD_CRC == 100,
               "field places are part of the format");

/* Bits that k_mag gives coordinate i of a key of head_dim d: floor(256/d), one more for the first 256 mod d. */
static inline unsigned record_k_bits(unsigned head_dim, unsigned i) {
  return RECORD_K_MAG_BITS / head_dim + (i < RECORD_K_MAG_BITS % head_dim);
}

/* Bits that v_code gives coordinate i of a value, the sign among them. */
static inline unsigned record_v_bits(unsigned head_dim, unsigned i) {
  return RECORD_V_CODE_BITS / head_dim + (i < RECORD_V_CODE_BITS % head_dim);
}

/* True for a head_dim that this version encodes: a multiple of 8 from 64 to 128. */
bool record_head_dim_valid(uint64_t head_dim);

/* True when a fp16 scale is finite and not negative; a record whose k_scale is not is never a candidate. */
static inline bool record_scale_valid(uint16_t scale) { return scale < 0x7c00u; }

/* CRC-32C of the first 100 bytes of `record`, then layer (u16), head (u16), token (u64). */
uint32_t record_crc(const uint8_t record[RECORD_BYTES], uint32_t layer, uint32_t head, uint64_t token);

/* Writes the CRC for that place into the record. */
void record_seal(uint8_t record[RECORD_BYTES], uint32_t layer, uint32_t head, uint64_t token);

/* True when the CRC fits the place and both scales are valid. */
bool record_check(const uint8_t record[RECORD_BYTES], uint32_t layer, uint32_t head, uint64_t token);

/* What stands in the place of a record that was lost to damage and given up by a repair: 104 bytes of 0xff. Its k_scale
 * is not finite, so that it is never a candidate; nobody can append one. */
bool record_missing(const uint8_t record[RECORD_BYTES]);

/* Likewise for a token id. Appends with it are refused. */
#define TOKEN_ID_MISSING UINT32_MAX

/* `count` records of one (layer, kv head), tokens first .. first + count - 1, column by column: entry i of a column
 * with w bytes a record is at [w * i]. The bytes belong to a mapped segment or a tail. */
struct record_columns {
  const uint8_t *signature, *k_scale, *k_mag, *v_code, *v_scale, *crc;
  uint64_t first;
  uint32_t count;
};

/* Copies entry i out of the columns into one record. */
void record_gather(const struct record_columns *columns, uint32_t i, uint8_t record[RECORD_BYTES]);

/* Bytes of the columns of one (layer, kv head) with room for LIMIT_SEGMENT_TOKENS records: 104 pages. */
#define RECORD_BLOCK_BYTES ((size_t)RECORD_BYTES * LIMIT_SEGMENT_TOKENS)

#endif
