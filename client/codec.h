// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Encoding keys and values as records, and back. proto/RECORD.md is the definition; kernels/codec_c.c is its
// scalar reference. Encoding gives the same bytes on every machine and with every kernel.
#ifndef COLDKV_CLIENT_CODEC_H
#define COLDKV_CLIENT_CODEC_H

#include <stdint.h>

#include "proto/error.h"
#include "proto/record.h"

/* The rotation R of a model and its extra projections: sign masks drawn from the seed. */
struct codec {
  uint32_t head_dim;
  float signs[3][LIMIT_HEAD_DIM_MAX];       /* +1 or -1, pass by pass; passes 1 and 2 only where d is not 64 or 128 */
  float extra_signs[3][LIMIT_HEAD_DIM_MAX]; /* of the second rotation */
};

/* Fills in a codec for `head_dim` (ERR_BAD_PARAMS if this version does not encode it). */
int codec_init(struct codec *codec, uint32_t head_dim, uint64_t seed, struct error *error);

/* y = R x and its transpose; x and y are [d] and may be the same array. */
void codec_rotate(const struct codec *codec, const float *x, float *y);
void codec_rotate_back(const struct codec *codec, const float *y, float *x);

/* A query as lookups want it: out[0..d) = R q, out[d..128) = the extra projections of it. */
void codec_query(const struct codec *codec, const float *q, float out[RECORD_SIGNATURE_BITS]);

/* Encodes key and value [d] of one place, CRC included. mean_k and mean_v are [d]. Returns 0, -ERR_NOT_FINITE when an
 * input is NaN or infinite or a scale would not be a finite fp16. */
int codec_encode(const struct codec *codec, const float *k, const float *v, const float *mean_k, const float *mean_v,
                 uint32_t layer, uint32_t head, uint64_t token, uint8_t record[RECORD_BYTES]);

/* Decodes key (before RoPE) and value, means added back; either output may be NULL. The CRC is not checked here. */
void codec_decode(const struct codec *codec, const uint8_t record[RECORD_BYTES], const float *mean_k,
                  const float *mean_v, float *k, float *v);

/* Name of the kernels in use, for benchmarks: "c", "avx2" and so on. */
const char *codec_kernel_name(void);

#endif
