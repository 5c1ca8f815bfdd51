// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "client/rope.h"

#include <math.h>
#include <stdlib.h>

int rope_init(struct rope *rope, enum rope_layout layout, uint32_t head_dim, uint32_t dims, const double *freqs,
              uint32_t row_count, struct error *error) {
  *rope = (struct rope){.layout = layout, .head_dim = head_dim, .dims = dims, .pairs = dims / 2};
  for (uint32_t i = 0; i < rope->pairs; i++)
    rope->freqs[i] = freqs[i];
  if (!rope->pairs)
    return 0;
  /* calloc's pages cost nothing until a position is used */
  rope->rows = calloc(row_count, dims * sizeof(float));
  rope->filled = calloc(row_count, 1);
  if (!rope->rows || !rope->filled) {
    rope_finish(rope);
    return error_set(error, ERR_MEMORY, "out of memory for the rotations of %u positions", row_count);
  }
  rope->row_count = row_count;
  return 0;
}

void rope_finish(struct rope *rope) {
  free(rope->rows);
  free(rope->filled);
  rope->rows = NULL;
  rope->filled = NULL;
  rope->row_count = 0;
}

void rope_angles(const struct rope *rope, int64_t position, float *row) {
  for (uint32_t i = 0; i < rope->pairs; i++) {
    double angle = rope->freqs[i] * (double)position;
    row[i] = (float)cos(angle);
    row[rope->pairs + i] = (float)sin(angle);
  }
}

const float *rope_row(struct rope *rope, uint64_t position, float *scratch) {
  if (position >= rope->row_count) {
    rope_angles(rope, (int64_t)position, scratch);
    return scratch;
  }
  float *row = rope->rows + position * rope->dims;
  if (!rope->filled[position]) {
    rope_angles(rope, (int64_t)position, row);
    rope->filled[position] = 1;
  }
  return row;
}

void rope_mean(const struct rope *rope, uint64_t first, uint64_t end, float *row) {
  double count = (double)(end - first);
  for (uint32_t i = 0; i < rope->pairs; i++) {
    /* sum of exp(j f D) = exp(j f (first + end - 1) / 2) * sin(f count / 2) / sin(f / 2) */
    double half = rope->freqs[i] / 2, below = count * sin(half);
    double ratio = fabs(sin(half)) < 1e-12 ? cos(count * half) / cos(half) : sin(count * half) / below;
    double middle = half * (double)(first + end - 1);
    row[i] = (float)(ratio * cos(middle));
    row[rope->pairs + i] = (float)(ratio * sin(middle));
  }
}

void rope_apply(const struct rope *rope, const float *row, float direction, float scale, const float *restrict x,
                float *restrict y) {
  uint32_t pairs = rope->pairs;
  const float *real = row, *imaginary = row + pairs;
  if (rope->layout == ROPE_HALF) {
    for (uint32_t i = 0; i < pairs; i++) {
      float c = scale * real[i], s = scale * direction * imaginary[i];
      y[i] = x[i] * c - x[i + pairs] * s;
      y[i + pairs] = x[i] * s + x[i + pairs] * c;
    }
  } else {
    for (uint32_t i = 0; i < pairs; i++) {
      float c = scale * real[i], s = scale * direction * imaginary[i];
      y[2 * i] = x[2 * i] * c - x[2 * i + 1] * s;
      y[2 * i + 1] = x[2 * i] * s + x[2 * i + 1] * c;
    }
  }
  for (uint32_t i = 2 * pairs; i < rope->head_dim; i++)
    y[i] = scale * x[i];
}
