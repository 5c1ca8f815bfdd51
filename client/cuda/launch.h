// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Between the C side and the kernels; what both compilers read. Types are those of enum coldkv_type. A vector is one
// key, value or query of one head, [d]. Rotations are rows of rope.h: real parts [pairs], then imaginary parts.
#ifndef COLDKV_CLIENT_CUDA_LAUNCH_H
#define COLDKV_CLIENT_CUDA_LAUNCH_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
  CUDA_F32,
  CUDA_F16,
  CUDA_BF16,
  CUDA_D_MAX = 128,
  CUDA_PAIRS_MAX = CUDA_D_MAX / 2,
  CUDA_RING = 512,  /* HOT_RING */
  CUDA_SINKS = 4,
  CUDA_BLOCK_MAX = 64, /* tokens of a block */
  CUDA_RECORD = 104,
  CUDA_CRC_TABLE = 4 * 256,
  CUDA_SEAL_BITS = 1024, /* of a row that a CRC is made of, by multiplying with a matrix */
  CUDA_SEAL_WORDS = CUDA_SEAL_BITS,
  CUDA_NONE = 0xffffffff,
};

/* What stays the same for one model. */
struct cuda_shape {
  uint32_t layers, heads, group, d;
  uint32_t pairs, half; /* half: coordinate i is paired with i + pairs, else 2i with 2i + 1 */
  uint32_t type;        /* of the hot window and the slots */
};

/* Sign masks of the codec, a bit per coordinate that is negated. */
struct cuda_codec {
  uint32_t signs[3][4], extra[3][4];
};

/* Index bits of coordinates (record_k_bits, record_v_bits): `whole`, one more below `partial`; their codebooks. */
struct cuda_split {
  uint32_t whole, partial;
  float levels[2][32], thresholds[2][32];
};

/* What a kernel found wrong, in host memory: `token` is written first, then `found`. */
struct cuda_found {
  volatile uint64_t token;
  volatile uint32_t found;
};

/* --- hot.cu ------------------------------------------------------------------------------------------------------- */

/* Rows [count] of the rotations by positions[i], or by first + i where `counted`. */
struct cuda_rows_job {
  double freqs[CUDA_PAIRS_MAX];
  int64_t positions[CUDA_BLOCK_MAX];
  int64_t first;
  uint32_t counted, count, pairs;
  float *rows;
};
cudaError_t cuda_rows_launch(const struct cuda_rows_job *job, cudaStream_t stream);

/* The hot window of one layer. */
struct cuda_hot {
  void *keys, *rotated, *values;  /* [heads][CUDA_RING][d] */
  void *sink_keys, *sink_values;  /* [heads][CUDA_SINKS][d]; keys rotated */
};

struct cuda_put_job {
  struct cuda_shape shape;
  struct cuda_hot hot;
  const void *k, *v; /* [count][heads][d] */
  uint32_t type, count;
  uint64_t first;
  const float *rows, *unrotate; /* [count][2 pairs]; unrotate NULL: k comes before RoPE */
  float norm_max;
  struct cuda_found *found;
};
cudaError_t cuda_put_launch(const struct cuda_put_job *job, cudaStream_t stream);

/* Means over tokens first .. end - 1 of `keys` (or values) [layers * heads][CUDA_RING][d]. */
cudaError_t cuda_means_launch(const struct cuda_shape *shape, const void *vectors, uint64_t first, uint64_t end,
                              float *means, cudaStream_t stream);

/* --- codec.cu ----------------------------------------------------------------------------------------------------- */

struct cuda_query_job {
  struct cuda_shape shape;
  struct cuda_codec codec;
  float expected[2 * CUDA_PAIRS_MAX];
  const void *q; /* [rows][heads * group][d] */
  uint32_t type, rows;
  uint64_t first;        /* of the block, for `found` */
  const float *unrotate; /* [rows][2 pairs] or NULL */
  float norm_max;
  struct cuda_found *found;
  float *queries; /* [rows][heads][128] */
};
cudaError_t cuda_query_launch(const struct cuda_query_job *job, cudaStream_t stream);

struct cuda_encode_job {
  struct cuda_shape shape;
  struct cuda_codec codec;
  struct cuda_split key, value;
  const void *keys, *values;     /* [layers * heads][CUDA_RING][d] */
  const float *mean_k, *mean_v;  /* [layers * heads][d] */
  const uint32_t *crc_table;     /* what plan_crc_table makes, then what plan_seal_table makes */
  uint64_t first;
  uint32_t count;
  uint8_t *records;              /* [count][layers][heads][104] */
  struct cuda_found *found;
};
cudaError_t cuda_encode_launch(const struct cuda_encode_job *job, uint32_t processors, cudaStream_t stream);

/* Unions of slots, packed head after head. */
struct cuda_decode_job {
  struct cuda_shape shape;
  struct cuda_codec codec;
  struct cuda_split key, value;
  double freqs[CUDA_PAIRS_MAX];
  const uint8_t *records;       /* [all][104] */
  const uint64_t *tokens;       /* [all] */
  const uint32_t *starts;       /* [heads + 1]: of each head's in these */
  const float *mean_k, *mean_v; /* [heads][d] of the layer */
  void *keys, *values;          /* [all][d] */
  uint32_t all, rotate;         /* rotate: CUDA_ROTATE_ */
};
enum {
  CUDA_ROTATE_NOT,
  CUDA_ROTATE_INDEX, /* by the token's own index */
  CUDA_ROTATE_PLACE, /* by sinks + place in the union, for one row past the trained window */
};
cudaError_t cuda_decode_launch(const struct cuda_decode_job *job, cudaStream_t stream);

/* --- attend.cu ---------------------------------------------------------------------------------------------------- */

/* How the keys of a row are shared out. A block of the grid takes `keys` keys, all of them far (sinks and slots) or all
 * of them in the hot window, for `tile` query heads of one kv head. */
struct cuda_plan {
  uint32_t keys, far_splits, hot_splits, tile, tiles;
};

struct cuda_attend_job {
  struct cuda_shape shape;
  struct cuda_plan plan;
  struct cuda_hot hot;
  const void *q; /* [count][heads * group][d] */
  void *out;
  uint32_t type, count;
  uint64_t first, hot_start;
  uint32_t sinks;                   /* CUDA_SINKS, or 0 while they are in the hot window */
  uint32_t k, packed;
  const void *slot_keys, *slot_values; /* [all][d] */
  const uint32_t *starts;           /* [heads + 1] */
  const uint32_t *index;            /* [count][heads][k]: places in the head's union */
  const uint32_t *slot_counts;      /* [count][heads]; NULL: no slots */
  uint32_t slots_rotated;           /* else by their place in the row, from `table` */
  const float *rows, *unrotate, *table;
  float scale;                      /* softmax_scale / ln 2 */
  float *partial;                   /* [count * tiles][heads][splits][tile][d], then [..][2]: maximum and sum */
  uint32_t *arrived;                /* [count * tiles][heads], 0 */
};
cudaError_t cuda_attend_launch(const struct cuda_attend_job *job, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
