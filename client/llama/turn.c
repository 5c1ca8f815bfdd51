// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The model's RoPE, read from the node that applies it: whatever the file says about scaling has become parameters
// there. Frequencies of YaRN: B. Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models",
// arXiv:2309.00071, section 3.2. Its scaling of lengths is left in the keys, which only are rotated here.
#include <ggml-backend.h>
#include <ggml.h>
#include <math.h>
#include <string.h>

#include "client/llama/memory.h"

/* Parameters of GGML_OP_ROPE, by their places in op_params. */
enum { PARAM_DIMS = 1, PARAM_MODE = 2, PARAM_CTX_ORIG = 4, PARAM_BASE = 5, PARAM_SCALE = 6, PARAM_EXT = 7,
       PARAM_BETA_FAST = 9, PARAM_BETA_SLOW = 10 };

static double param(const struct ggml_tensor *node, int place) {
  float value;
  memcpy(&value, &node->op_params[place], sizeof value);
  return (double)value;
}

/* The pair that turns `rotations` times within the original window. */
static double pair_of(double rotations, double dims, double window, double base) {
  return dims * log(window / (rotations * 2 * M_PI)) / (2 * log(base));
}

/* How much of pair i keeps its frequency rather than being interpolated, 0 to 1. */
static double extrapolated(const struct ggml_tensor *node, uint32_t i) {
  double dims = node->op_params[PARAM_DIMS], window = node->op_params[PARAM_CTX_ORIG], base = param(node, PARAM_BASE);
  double low = fmax(0, floor(pair_of(param(node, PARAM_BETA_FAST), dims, window, base)));
  double high = fmin(dims - 1, ceil(pair_of(param(node, PARAM_BETA_SLOW), dims, window, base)));
  double along = (i - low) / fmax(0.001, high - low);
  return param(node, PARAM_EXT) * (1 - fmin(1, fmax(0, along)));
}

int turn_read(struct coldkv_llama *memory, const struct ggml_tensor *node) {
  struct error *error = &memory->watch.error;
  int mode = node->op_params[PARAM_MODE], dims = node->op_params[PARAM_DIMS];
  if (mode != GGML_ROPE_TYPE_NORMAL && mode != GGML_ROPE_TYPE_NEOX)
    return error_set(error, ERR_ARGUMENT, "RoPE of kind %d: pairs must be neighbours or half a head apart", mode);
  if (dims < 2 || dims % 2 || (uint32_t)dims > memory->head_dim)
    return error_set(error, ERR_ARGUMENT, "RoPE over %d of %u coordinates", dims, memory->head_dim);
  uint32_t pairs = (uint32_t)dims / 2;
  float factors[ROPE_PAIRS_MAX];
  for (uint32_t i = 0; i < pairs; i++)
    factors[i] = 1;
  const struct ggml_tensor *given = node->src[2];
  if (given && (given->type != GGML_TYPE_F32 || given->ne[0] < pairs))
    return error_set(error, ERR_ARGUMENT, "RoPE factors that are not f32 for %u pairs", pairs);
  if (given)
    ggml_backend_tensor_get(given, factors, 0, pairs * sizeof(float));
  double freqs[ROPE_PAIRS_MAX];
  for (uint32_t i = 0; i < pairs; i++) {
    double freq = pow(param(node, PARAM_BASE), -2.0 * i / dims) / (double)factors[i];
    double kept = param(node, PARAM_EXT) != 0 ? extrapolated(node, i) : 0;
    freqs[i] = freq * (param(node, PARAM_SCALE) * (1 - kept) + kept);
  }
  enum rope_layout layout = mode == GGML_ROPE_TYPE_NEOX ? ROPE_HALF : ROPE_INTERLEAVED;
  int result = rope_init(&memory->rope, layout, memory->head_dim, (uint32_t)dims, freqs, memory->window, error);
  memory->has_rope = !result;
  return result;
}
