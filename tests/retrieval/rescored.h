// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Rescoring of what a scan has left, in plain C: what a GPU is held to, and what the stand-in for one does.
#ifndef COLDKV_TESTS_RETRIEVAL_RESCORED_H
#define COLDKV_TESTS_RETRIEVAL_RESCORED_H

#include "retrieval/cuda/gpu.h"
#include "retrieval/lane.h"

/* Puts final scores into the first `count` keys of a job, whose ordinals are of columns->signature and so on less
 * job->begin; the best come first. */
static inline void rescored(const struct record_columns *columns, const struct gpu_scan_job *job, uint32_t head_dim,
                            uint64_t *keys, uint32_t count) {
  struct rescore_code code;
  rescore_code_init(&code, head_dim);
  for (uint32_t i = 0; i < count; i++) {
    size_t record = (size_t)job->begin + select_key_ordinal(keys[i]);
    int32_t sum = rescore_c(&code, job->query->q12, columns->signature + record * RECORD_SIGNATURE_BYTES,
                            columns->k_mag + record * RECORD_K_MAG_BYTES);
    float score = (float)sum * f32_from_f16(load_u16(columns->k_scale + record * RECORD_K_SCALE_BYTES));
    keys[i] = select_key(select_rank(score), select_key_ordinal(keys[i]));
  }
  select_sort(keys, count);
}

#endif
