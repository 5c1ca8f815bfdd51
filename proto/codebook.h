// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Lloyd-Max quantizers of the unit Gaussian, symmetric, by number of magnitude bits beside the sign.
#ifndef COLDKV_PROTO_CODEBOOK_H
#define COLDKV_PROTO_CODEBOOK_H

enum { CODEBOOK_BITS_MIN = 2, CODEBOOK_BITS_MAX = 5 };

/* A magnitude a >= 0 gets index = the number of thresholds t with a > t, and stands for levels[index]. */
struct codebook {
  const float *levels;     /* 1 << bits of them, ascending */
  const float *thresholds; /* one less: the midpoints */
};

/* The codebook of `bits` magnitude bits, CODEBOOK_BITS_MIN to CODEBOOK_BITS_MAX. Source: S. Lloyd, "Least squares
 * quantization in PCM", IEEE Trans. Inf. Theory 28 (1982); values by fixed-point iteration to 1e-14. */
extern const struct codebook codebooks[CODEBOOK_BITS_MAX + 1];

#endif
