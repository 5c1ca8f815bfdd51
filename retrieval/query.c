// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "retrieval/query.h"

#include <math.h>

/* Largest |q[i]| of the first n; infinite when one of them is not finite. */
static double largest(const uint8_t *row, uint32_t n) {
  double max = 0;
  for (uint32_t i = 0; i < n; i++) {
    double magnitude = fabs((double)load_f32(row + i * sizeof(float)));
    if (!(magnitude < INFINITY))
      return INFINITY;
    if (magnitude > max)
      max = magnitude;
  }
  return max;
}

/* In double, where the product is exact and the quotient is rounded once. */
static int quantize(double q, double max, int levels) { return max > 0 ? (int)rint(levels * q / max) : 0; }

/* Bit p of eight bytes, as one byte: the product moves bit 8 b to bit 56 + b. */
static uint64_t gather_bits(uint64_t bytes, uint32_t p) {
  return (bytes >> p & UINT64_C(0x0101010101010101)) * UINT64_C(0x0102040810204080) >> 56;
}

/* Sixteen bytes that the compiler keeps in one register, on every processor that has such. */
typedef uint8_t bytes16 __attribute__((vector_size(16)));

/* What nibbles 0000 to 1111 oppose, by the q4 of their four coordinates. With no bit set that is everything negative;
 * a bit that is set opposes what is positive and no longer what is negative, so it adds q4 of either sign. */
static bytes16 opposed_by(const int8_t q4[4]) {
  static const bytes16 bit0 = {0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255};
  static const bytes16 bit1 = {0, 0, 255, 255, 0, 0, 255, 255, 0, 0, 255, 255, 0, 0, 255, 255};
  static const bytes16 bit2 = {0, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 255, 255, 255, 255};
  static const bytes16 bit3 = {0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255};
  int negative = 0;
  for (uint32_t t = 0; t < 4; t++)
    negative -= q4[t] < 0 ? q4[t] : 0;
  return (bit0 & (uint8_t)q4[0]) + (bit1 & (uint8_t)q4[1]) + (bit2 & (uint8_t)q4[2]) + (bit3 & (uint8_t)q4[3]) +
         (uint8_t)negative;
}

void query_fill(struct query *query, const int8_t q4[QUERY_FLOATS]) {
  uint8_t magnitudes[QUERY_FLOATS], planes[QUERY_PLANES][RECORD_SIGNATURE_BYTES];
  query->magnitude_sum = 0;
  for (uint32_t i = 0; i < QUERY_FLOATS; i++) {
    magnitudes[i] = (uint8_t)(q4[i] < 0 ? -q4[i] : q4[i]);
    query->magnitude_sum += magnitudes[i];
  }
  for (uint32_t byte = 0; byte < RECORD_SIGNATURE_BYTES; byte++)
    for (uint32_t p = 0; p < QUERY_PLANES; p++)
      planes[p][byte] = (uint8_t)gather_bits(load_u64(magnitudes + 8 * byte), p);
  memcpy(query->magnitude, planes, sizeof query->magnitude);
  for (uint32_t j = 0; j < QUERY_NIBBLES; j++) {
    bytes16 opposed = opposed_by(q4 + 4 * j);
    memcpy(query->opposed[j], &opposed, sizeof opposed);
  }
}

bool query_prepare_c(struct query *query, uint32_t head_dim, const uint8_t *row) {
  double max4 = largest(row, QUERY_FLOATS), max12 = largest(row, head_dim);
  if (max4 == INFINITY)
    return false;
  int8_t q4[QUERY_FLOATS];
  memset(query, 0, sizeof *query);
  for (uint32_t i = 0; i < QUERY_FLOATS; i++) {
    double q = (double)load_f32(row + i * sizeof(float));
    q4[i] = (int8_t)quantize(q, max4, QUERY_Q4_MAX); /* never beyond +-7, as |q| <= max */
    query->sign[i / 64] |= (uint64_t)(q < 0) << i % 64;
    if (i < head_dim)
      query->q12[i] = (int16_t)quantize(q, max12, QUERY_Q12_MAX);
  }
  query_fill(query, q4);
  return true;
}
