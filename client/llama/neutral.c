// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "client/llama/neutral.h"

#include <math.h>
#include <string.h>

/* Scaled by 1/sqrt(head_dim) a score of about -500: exp() of it is zero, and f16 still holds keys and sums. */
static const double wanted_dot = -5600;
/* Added to the diagonal, which is 1, so that parallel queries can be solved for. */
static const double ridge = 1e-6;

static double dot(const float *a, const float *b, uint32_t n) {
  double sum = 0;
  for (uint32_t i = 0; i < n; i++)
    sum += (double)a[i] * (double)b[i];
  return sum;
}

static double length(const float *a, uint32_t n) { return sqrt(dot(a, a, n)); }

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
  double shortest = INFINITY;
  memset(key, 0, head_dim * sizeof *key);
  for (uint32_t a = 0; a < group; a++)
    shortest = fmin(shortest, length(queries + (size_t)a * head_dim, head_dim));
  if (!(shortest > 0))
    return;
  for (uint32_t a = 0; a < group; a++) {
    const float *query = queries + (size_t)a * head_dim;
    for (uint32_t b = 0; b < group; b++) {
      const float *other = queries + (size_t)b * head_dim;
      work[a * width + b] = dot(query, other, head_dim) / (length(query, head_dim) * length(other, head_dim));
    }
    work[a * width + a] += ridge;
    work[a * width + group] = wanted_dot / shortest; /* longer queries get a lower dot product: all can point one way */
  }
  solve(work, group);
  for (uint32_t a = 0; a < group; a++) {
    const float *query = queries + (size_t)a * head_dim;
    for (uint32_t c = 0; c < head_dim; c++)
      key[c] += (float)(work[a * width + group] * (double)query[c] / length(query, head_dim));
  }
  for (uint32_t a = 0; a < group; a++)
    if (!(dot(queries + (size_t)a * head_dim, key, head_dim) < wanted_dot / 2)) {
      memset(key, 0, head_dim * sizeof *key);
      return;
    }
}
