// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What the kernels are given that can be made, and tested, without a GPU.
#ifndef COLDKV_CLIENT_CUDA_PLAN_H
#define COLDKV_CLIENT_CUDA_PLAN_H

#include <stddef.h>
#include <stdint.h>

/* The CRC-32C of a record is linear in its 28 words (25 and 3 of its place) but for a constant: it is `base`, which is
 * returned, exclusive or the entries [n][bits 4n .. 4n + 3 of the word][word's place] of the table [8][16][32]. */
enum { PLAN_CRC_WORDS = 28, PLAN_CRC_TABLE = 8 * 16 * 32 };
uint32_t plan_crc_table(uint32_t table[PLAN_CRC_TABLE]);

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

#endif
