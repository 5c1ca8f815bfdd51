// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "retrieval/rescore.h"

#include <assert.h>
#include <math.h>

#include "proto/codebook.h"

void rescore_code_init(struct rescore_code *code, uint32_t head_dim) {
  assert(record_head_dim_valid(head_dim));
  *code = (struct rescore_code){
      .head_dim = head_dim,
      .whole = RECORD_K_MAG_BITS / head_dim,
      .partial = RECORD_K_MAG_BITS % head_dim,
  };
  for (uint32_t more = 0; more < 2; more++) {
    uint32_t bits = code->whole + more;
    for (uint32_t i = 0; i < 1u << bits && i < 16; i++)
      code->levels[more][i] = (int16_t)rint(1024.0 * (double)codebooks[bits].levels[i]);
  }
}

/* Eight coordinates at a time: their bits are one byte of each plane, as planes are whole bytes. */
int32_t rescore_c(const struct rescore_code *code, const int16_t *q12, const uint8_t *signature,
                  const uint8_t *k_mag) {
  int32_t sum = 0;
  uint32_t plane_bytes = code->head_dim / 8;
  for (uint32_t byte = 0; byte < plane_bytes; byte++) {
    bool more = byte < code->partial / 8;
    uint32_t planes = code->whole + more;
    for (uint32_t bit = 0; bit < 8; bit++) {
      uint32_t index = 0;
      for (uint32_t p = 0; p < planes; p++)
        index |= (uint32_t)(k_mag[p * plane_bytes + byte] >> bit & 1) << p;
      int32_t product = q12[8 * byte + bit] * code->levels[more][index];
      sum += signature[byte] >> bit & 1 ? -product : product;
    }
  }
  return sum;
}
