// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/demo/llama.h"

#include <cblas.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "tools/demo/llama_parts.h"

/* out [n][out_size] = in [n][in_size] times weight [out_size][in_size] transposed, plus out when `add`. */
static void multiply(const float *in, const float *weight, float *out, uint32_t n, uint32_t in_size, uint32_t out_size,
                     bool add) {
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n, (int)out_size, (int)in_size, 1.0f, in, (int)in_size,
              weight, (int)in_size, add ? 1.0f : 0.0f, out, (int)out_size);
}

/* RMSNorm of n rows. */
static void normalize(const float *in, const float *weight, float *out, uint32_t n, uint32_t size, float eps) {
  for (uint32_t row = 0; row < n; row++, in += size, out += size) {
    float sum = 0;
    for (uint32_t i = 0; i < size; i++)
      sum += in[i] * in[i];
    float scale = 1.0f / sqrtf(sum / (float)size + eps);
    for (uint32_t i = 0; i < size; i++)
      out[i] = in[i] * scale * weight[i];
  }
}

/* gate = silu(gate) * up */
static void activate(float *gate, const float *up, size_t count) {
  for (size_t i = 0; i < count; i++)
    gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

int llama_forward(struct llama *llama, const uint32_t *ids, uint32_t n, llama_attend_fn *attend, void *context,
                  float *logits, uint32_t logit_rows) {
  const struct llama_config *c = &llama->config;
  const uint32_t q_size = c->heads * c->head_dim, kv_size = c->kv_heads * c->head_dim;
  for (uint32_t row = 0; row < n; row++)
    memcpy(llama->x + (size_t)row * c->hidden, llama->embedding + (size_t)ids[row] * c->hidden,
           c->hidden * sizeof(float));
  for (uint32_t i = 0; i < c->layers; i++) {
    const struct llama_layer *layer = &llama->layers[i];
    normalize(llama->x, layer->attention_norm, llama->h, n, c->hidden, c->norm_eps);
    multiply(llama->h, layer->q, llama->rows_q, n, c->hidden, q_size, false);
    multiply(llama->h, layer->k, llama->rows_k, n, c->hidden, kv_size, false);
    multiply(llama->h, layer->v, llama->rows_v, n, c->hidden, kv_size, false);
    int result = attend(context, i, n, llama->rows_q, llama->rows_k, llama->rows_v, llama->rows_out);
    if (result)
      return result;
    multiply(llama->rows_out, layer->o, llama->x, n, q_size, c->hidden, true);

    normalize(llama->x, layer->ffn_norm, llama->h, n, c->hidden, c->norm_eps);
    multiply(llama->h, layer->gate, llama->rows_gate, n, c->hidden, c->ffn, false);
    multiply(llama->h, layer->up, llama->rows_up, n, c->hidden, c->ffn, false);
    activate(llama->rows_gate, llama->rows_up, (size_t)n * c->ffn);
    multiply(llama->rows_gate, layer->down, llama->x, n, c->ffn, c->hidden, true);
  }
  if (logit_rows) {
    const float *last = llama->x + (size_t)(n - logit_rows) * c->hidden;
    normalize(last, llama->norm, llama->h, logit_rows, c->hidden, c->norm_eps);
    multiply(llama->h, llama->embedding, logits, logit_rows, c->hidden, c->vocab, false);
  }
  return 0;
}

void llama_set_threads(int threads) {
#ifdef HAVE_OPENBLAS_SET_NUM_THREADS
  openblas_set_num_threads(threads);
#else
  (void)threads;
#endif
}
