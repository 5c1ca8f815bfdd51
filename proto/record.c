// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "proto/record.h"

#include "proto/crc32c.h"

bool record_head_dim_valid(uint64_t head_dim) {
  return head_dim >= LIMIT_HEAD_DIM_MIN && head_dim <= LIMIT_HEAD_DIM_MAX && head_dim % LIMIT_HEAD_DIM_STEP == 0;
}

uint32_t record_crc(const uint8_t record[RECORD_BYTES], uint32_t layer, uint32_t head, uint64_t token) {
  uint8_t place[12];
  store_u16(place, (uint16_t)layer);
  store_u16(place + 2, (uint16_t)head);
  store_u64(place + 4, token);
  return crc32c(crc32c(0, record, RECORD_CRC), place, sizeof place);
}

void record_seal(uint8_t record[RECORD_BYTES], uint32_t layer, uint32_t head, uint64_t token) {
  store_u32(record + RECORD_CRC, record_crc(record, layer, head, token));
}

bool record_check(const uint8_t record[RECORD_BYTES], uint32_t layer, uint32_t head, uint64_t token) {
  return record_scale_valid(load_u16(record + RECORD_K_SCALE)) &&
         record_scale_valid(load_u16(record + RECORD_V_SCALE)) &&
         load_u32(record + RECORD_CRC) == record_crc(record, layer, head, token);
}

void record_gather(const struct record_columns *columns, uint32_t i, uint8_t record[RECORD_BYTES]) {
  size_t at = i;
  memcpy(record + RECORD_SIGNATURE, columns->signature + at * RECORD_SIGNATURE_BYTES, RECORD_SIGNATURE_BYTES);
  memcpy(record + RECORD_K_SCALE, columns->k_scale + at * RECORD_K_SCALE_BYTES, RECORD_K_SCALE_BYTES);
  memcpy(record + RECORD_K_MAG, columns->k_mag + at * RECORD_K_MAG_BYTES, RECORD_K_MAG_BYTES);
  memcpy(record + RECORD_V_CODE, columns->v_code + at * RECORD_V_CODE_BYTES, RECORD_V_CODE_BYTES);
  memcpy(record + RECORD_V_SCALE, columns->v_scale + at * RECORD_V_SCALE_BYTES, RECORD_V_SCALE_BYTES);
  memcpy(record + RECORD_CRC, columns->crc + at * RECORD_CRC_BYTES, RECORD_CRC_BYTES);
}

bool record_missing(const uint8_t record[RECORD_BYTES]) {
  for (int i = 0; i < RECORD_BYTES; i++)
    if (record[i] != 0xff)
      return false;
  return true;
}
