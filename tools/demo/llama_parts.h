// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What llama_load.c fills in and llama.c runs.
#ifndef COLDKV_TOOLS_DEMO_LLAMA_PARTS_H
#define COLDKV_TOOLS_DEMO_LLAMA_PARTS_H

#include "tools/demo/llama.h"
#include "tools/demo/safetensors.h"

/* Weights of one layer, f32, [out][in] as in the file. */
struct llama_layer {
  float *attention_norm, *q, *k, *v, *o;
  float *ffn_norm, *gate, *up, *down;
};

struct llama {
  struct llama_config config;
  struct safetensors *file;
  float *embedding; /* [vocab][hidden], also the output matrix */
  float *norm;
  struct llama_layer *layers;

  /* The rows of one block on their way, [LLAMA_BLOCK_MAX][...]. */
  float *x;      /* residual stream */
  float *h;      /* its norm, input of the products */
  float *rows_q, *rows_k, *rows_v, *rows_out;
  float *rows_gate, *rows_up;
};

#endif
