// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// x86: raises function pointers to what the processor has. Functions carry their instruction set as an attribute, so
// that no file needs compiler flags of its own.
#ifndef COLDKV_RETRIEVAL_KERNELS_X86_H
#define COLDKV_RETRIEVAL_KERNELS_X86_H

#include "proto/cpu.h"
#include "retrieval/kernels.h"

#define TARGET_AVX2 __attribute__((target("avx2,f16c,popcnt,bmi")))
#define TARGET_AVX512 __attribute__((target("avx2,f16c,popcnt,bmi,avx512f,avx512bw,avx512dq,avx512vl")))
#define TARGET_AVX512_VPOPCNT                                                                                          \
  __attribute__((target("avx2,f16c,popcnt,bmi,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512ifma,"         \
                        "avx512vbmi")))

/* How a block is read: as several streams side by side, equal parts of the block, since that many pages at a time come
 * from memory much faster than one. A group takes as many records from each stream. What is left over at the end of a
 * block is one last group. */

/* Records of one stream of a block that is read in groups of `group` records, `run` neighbours from each stream. */
static inline uint32_t scan_stream(const struct scan_block *block, uint32_t group, uint32_t run) {
  return block->count / group * run;
}

/* Fetch what of the next block lies where the group that begins with record `at` of the first stream lies in this: to
 * the first cache, and what of it is gone when it is needed comes from the second. */
static inline void scan_fetch_signatures(const struct scan_block *block, uint32_t at, uint32_t streams,
                                         uint32_t stream, uint32_t run) {
  for (uint32_t i = at; i < streams * stream; i += stream)
    for (uint32_t byte = 0; byte < run * RECORD_SIGNATURE_BYTES; byte += 64)
      __builtin_prefetch(block->next_signature + (size_t)i * RECORD_SIGNATURE_BYTES + byte, 0, 3);
}

static inline void scan_fetch_scales(const struct scan_block *block, uint32_t at, uint32_t streams, uint32_t stream) {
  for (uint32_t i = at; at % 32 == 0 && i < streams * stream; i += stream)
    __builtin_prefetch(block->next_k_scale + (size_t)i * RECORD_K_SCALE_BYTES, 0, 3);
}

void scan_init_avx2(struct lookup_kernels *kernels, unsigned flags);
void scan_init_avx512(struct lookup_kernels *kernels, unsigned flags);
void scan_init_avx512_vpopcnt(struct lookup_kernels *kernels, unsigned flags);
void rescore_init_x86(struct lookup_kernels *kernels, unsigned flags);
void select_init_avx512(struct lookup_kernels *kernels, unsigned flags);
void query_init_x86(struct lookup_kernels *kernels, unsigned flags);

#endif
