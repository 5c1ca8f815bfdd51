// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What the kernels are given that can be made, and tested, without a GPU.
#ifndef COLDKV_CLIENT_CUDA_PLAN_H
#define COLDKV_CLIENT_CUDA_PLAN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { PLAN_KEYS = 32 /* that a block of attend.cu takes at once: two for each half of a warp */ };

/* Entry 256 j + i is what a byte i that j bytes follow, all zero, adds to a CRC-32C ("slicing by 4"). */
enum { PLAN_CRC_TABLE = 4 * 256 };
void plan_crc_table(uint32_t table[PLAN_CRC_TABLE]);

/* A record's CRC as a product of bits: 896 of the record before the CRC and of its place, in words as record_crc takes
 * them, then a 1, then zeros, times a matrix of 1024 x 32. Its words as 32 threads take them, four at a time: threads
 * 4 n .. 4 n + 3 those of eight columns' n-th. */
enum { PLAN_SEAL_TABLE = 1024 };
void plan_seal_table(uint32_t table[PLAN_SEAL_TABLE]);

/* How the keys of one row are shared out; as struct cuda_plan of launch.h. */
struct plan_attend {
  uint32_t keys, far_splits, hot_splits, tile, tiles;
};

/* For rows with up to `far` sinks and slots and up to `hot` keys in the hot window: as many blocks as keep `processors`
 * busy, and no more. */
struct plan_attend plan_attend(uint32_t rows, uint32_t heads, uint32_t group, uint32_t far, uint32_t hot,
                               uint32_t processors);

/* Floats that the blocks of a plan tell each other. */
size_t plan_partial(const struct plan_attend *plan, uint32_t rows, uint32_t heads, uint32_t head_dim);

/* The most that any number of rows up to `rows` needs. */
size_t plan_partial_max(uint32_t rows, uint32_t heads, uint32_t group, uint32_t far, uint32_t hot, uint32_t head_dim,
                        uint32_t processors);

#ifdef __cplusplus
}
#endif

#endif
