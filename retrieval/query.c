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

void query_fill(struct query *query, const int8_t q4[QUERY_FLOATS]) {
  memset(query->magnitude, 0, sizeof query->magnitude);
  query->magnitude_sum = 0;
  for (uint32_t i = 0; i < QUERY_FLOATS; i++) {
    uint32_t magnitude = (uint32_t)(q4[i] < 0 ? -q4[i] : q4[i]);
    query->magnitude_sum += (int32_t)magnitude;
    for (uint32_t p = 0; p < QUERY_PLANES; p++)
      query->magnitude[p][i / 64] |= (uint64_t)(magnitude >> p & 1) << i % 64;
  }
  for (uint32_t j = 0; j < QUERY_NIBBLES; j++) {
    uint8_t *opposed = query->opposed[j];
    opposed[0] = 0; /* no bit set: opposed to all that is negative */
    for (uint32_t t = 0; t < 4; t++)
      opposed[0] = (uint8_t)(opposed[0] + (q4[4 * j + t] < 0 ? -q4[4 * j + t] : 0));
    for (uint32_t bits = 1; bits < 16; bits++) /* one more bit set: opposes what is positive, agrees with the rest */
      opposed[bits] = (uint8_t)(opposed[bits & (bits - 1)] + q4[4 * j + (uint32_t)__builtin_ctz(bits)]);
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
