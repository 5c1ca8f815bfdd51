// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/bench/columns.h"

#include <stdlib.h>

#include "tools/bench/measure.h"

enum {
  PART = LIMIT_SEGMENT_TOKENS,
  SCAN_BYTES = RECORD_SIGNATURE_BYTES + RECORD_K_SCALE_BYTES,
  VALUE_BYTES = RECORD_V_CODE_BYTES + RECORD_V_SCALE_BYTES + RECORD_CRC_BYTES,
};

uint16_t random_scale(uint64_t *state) { return (uint16_t)(0x2c00u + noise_u64(state) % 0x400); }

void random_record(uint64_t *state, uint32_t layer, uint32_t head, uint64_t token, uint8_t record[RECORD_BYTES]) {
  noise_bytes(state, record, RECORD_BYTES);
  store_u16(record + RECORD_K_SCALE, random_scale(state));
  store_u16(record + RECORD_V_SCALE, random_scale(state));
  record_seal(record, layer, head, token);
}

void random_query(uint64_t *state, float row[RECORD_SIGNATURE_BITS]) {
  for (int i = 0; i < RECORD_SIGNATURE_BITS; i++)
    row[i] = noise_gauss(state);
}

/* Writes one part and describes it. */
static void fill_part(struct columns *columns, uint32_t number, uint64_t *state) {
  uint8_t *scan = columns->scan + (size_t)number * PART * SCAN_BYTES;
  uint8_t *rescore = columns->rescore + (size_t)number * PART * RECORD_K_MAG_BYTES;
  uint8_t *value = columns->value + (size_t)number * PART * VALUE_BYTES;
  uint8_t *k_scale = scan + PART * RECORD_SIGNATURE_BYTES, *v_scale = value + PART * RECORD_V_CODE_BYTES;
  uint8_t *crc = v_scale + PART * RECORD_V_SCALE_BYTES, record[RECORD_BYTES];
  uint64_t first = (uint64_t)number * PART;
  for (uint32_t i = 0; i < PART; i++) {
    random_record(state, 0, 0, first + i, record);
    memcpy(scan + (size_t)i * RECORD_SIGNATURE_BYTES, record + RECORD_SIGNATURE, RECORD_SIGNATURE_BYTES);
    memcpy(k_scale + (size_t)i * RECORD_K_SCALE_BYTES, record + RECORD_K_SCALE, RECORD_K_SCALE_BYTES);
    memcpy(rescore + (size_t)i * RECORD_K_MAG_BYTES, record + RECORD_K_MAG, RECORD_K_MAG_BYTES);
    memcpy(value + (size_t)i * RECORD_V_CODE_BYTES, record + RECORD_V_CODE, RECORD_V_CODE_BYTES);
    memcpy(v_scale + (size_t)i * RECORD_V_SCALE_BYTES, record + RECORD_V_SCALE, RECORD_V_SCALE_BYTES);
    memcpy(crc + (size_t)i * RECORD_CRC_BYTES, record + RECORD_CRC, RECORD_CRC_BYTES);
  }
  columns->parts[number] = (struct record_columns){
      .signature = scan, .k_scale = k_scale, .k_mag = rescore, .v_code = value, .v_scale = v_scale, .crc = crc,
      .first = first, .count = PART};
}

int columns_create(struct columns *columns, uint32_t tokens, uint64_t seed, struct error *error) {
  *columns = (struct columns){.tokens = tokens, .part_count = tokens / PART};
  columns->parts = malloc(columns->part_count * sizeof *columns->parts);
  columns->scan = pages_alloc((size_t)tokens * SCAN_BYTES);
  columns->rescore = pages_alloc((size_t)tokens * RECORD_K_MAG_BYTES);
  columns->value = pages_alloc((size_t)tokens * VALUE_BYTES);
  if (!columns->parts || !columns->scan || !columns->rescore || !columns->value) {
    columns_destroy(columns);
    return error_set(error, ERR_MEMORY, "no memory for %u records", tokens);
  }
  for (uint32_t i = 0; i < columns->part_count; i++)
    fill_part(columns, i, &seed);
  return 0;
}

void columns_destroy(struct columns *columns) {
  free(columns->parts);
  pages_free(columns->scan, (size_t)columns->tokens * SCAN_BYTES);
  pages_free(columns->rescore, (size_t)columns->tokens * RECORD_K_MAG_BYTES);
  pages_free(columns->value, (size_t)columns->tokens * VALUE_BYTES);
  *columns = (struct columns){0};
}
