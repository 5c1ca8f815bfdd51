// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Stands in for a GPU where there is none: gpu.h on the processor, with what a test wants to go wrong.
#ifndef COLDKV_TESTS_RETRIEVAL_FAKE_GPU_H
#define COLDKV_TESTS_RETRIEVAL_FAKE_GPU_H

#include "retrieval/cuda/gpu.h"

/* For programs that cannot call this, the environment variables FAKE_GPU_BYTES and FAKE_GPU_FAIL_SCANS set the first
 * two when a GPU is opened. */
struct fake_gpu_faults {
  uint64_t bytes_max;   /* memory for columns; 0: no bound */
  uint32_t fail_scans;  /* that many scans from now on fail when they are waited for */
  uint32_t fail_starts; /* that many fail to start */
  uint32_t lie;         /* that many answer with candidates that are out of range */
};
extern struct fake_gpu_faults fake_gpu_faults;

extern uint64_t fake_gpu_bytes, fake_gpu_code_bytes; /* that columns take: signatures and scales, key codes */
extern uint64_t fake_gpu_appended, fake_gpu_codes_appended; /* records, ever */
extern uint64_t fake_gpu_scanned, fake_gpu_rescored;        /* records, ever */

#endif
