// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/bench/expected.h"

#include <math.h>

#include "client/coldkv.h"

void expected_update(struct expected *expected, const struct llama_config *config, uint32_t tokens) {
  const uint32_t half = config->head_dim / 2 < EXPECTED_PAIRS_MAX ? config->head_dim / 2 : EXPECTED_PAIRS_MAX;
  uint32_t end = 2 * COLDKV_HOT;
  while (end < tokens)
    end *= 2;
  if (end > config->window)
    end = config->window;
  if (end == expected->end)
    return;
  expected->end = end;
  expected->pairs = half;
  for (uint32_t i = 0; i < half; i++) {
    double frequency = pow(config->rope_theta, -(double)i / half), re = 0, im = 0;
    for (uint32_t distance = COLDKV_HOT; distance < end; distance++) {
      re += cos(distance * frequency);
      im += sin(distance * frequency);
    }
    expected->cosines[i] = re / (end - COLDKV_HOT);
    expected->sines[i] = im / (end - COLDKV_HOT);
  }
}

void expected_apply(const struct expected *expected, const float *q, float scale, float *out) {
  const uint32_t half = expected->pairs;
  for (uint32_t i = 0; i < half; i++) {
    double a = (double)q[i] * scale, b = (double)q[i + half] * scale;
    out[i] = (float)(a * expected->cosines[i] - b * expected->sines[i]);
    out[i + half] = (float)(b * expected->cosines[i] + a * expected->sines[i]);
  }
}
