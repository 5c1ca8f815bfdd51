// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "client/llama/neutral.h"

#include <math.h>
#include <string.h>

/* Scaled by 1/sqrt(head_dim) a score of about -500: exp() of it is zero, and f16 still holds keys and sums. */
static const double wanted_dot = -5600;
/* Added to the diagonal, relative to it, so that equal queries can be solved for. */
static const double ridge = 1e-6;

static double dot(const float *a, const float *b, uint32_t n) {
  double sum = 0;
  for (uint32_t i = 0; i < n; i++)
    sum += (double)a[i] * (double)b[i];
  return sum;
}

/* Solves the symmetric positive definite rows [n][n + 1] in place; the solution is in the last column. */
static void solve(double *rows, uint32_t n) {
  uint32_t width = n + 1;
  for (uint32_t pivot = 0; pivot < n; pivot++)
    for (uint32_t row = 0; row < n; row++) {
      double factor = rows[row * width + pivot] / rows[pivot * width + pivot];
      for (uint32_t column = pivot; row != pivot && column < width; column++)
        rows[row * width + column] -= factor * rows[pivot * width + column];
    }
  for (uint32_t row = 0; row < n; row++)
    rows[row * width + n] /= rows[row * width + row];
}

void neutral_key(const float *queries, uint32_t group, uint32_t head_dim, double *work, float *key) {
  uint32_t width = group + 1;
  double trace = 0;
  for (uint32_t a = 0; a < group; a++) {
    for (uint32_t b = 0; b < group; b++)
      work[a * width + b] = dot(queries + (size_t)a * head_dim, queries + (size_t)b * head_dim, head_dim);
    work[a * width + group] = wanted_dot;
    trace += work[a * width + a];
  }
  for (uint32_t a = 0; a < group; a++)
    work[a * width + a] += ridge * trace + 1e-30;
  solve(work, group);
  memset(key, 0, head_dim * sizeof *key);
  for (uint32_t a = 0; a < group; a++)
    for (uint32_t c = 0; c < head_dim; c++)
      key[c] += (float)(work[a * width + group] * (double)queries[(size_t)a * head_dim + c]);
  for (uint32_t a = 0; a < group; a++)
    if (!(dot(queries + (size_t)a * head_dim, key, head_dim) < wanted_dot / 2)) {
      memset(key, 0, head_dim * sizeof *key);
      return;
    }
}
