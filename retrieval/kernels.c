// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "retrieval/kernels.h"

#include <pthread.h>

#include "proto/cpu.h"
#include "retrieval/kernels_neon.h"
#include "retrieval/kernels_x86.h"

void lookup_kernels_init(struct lookup_kernels *kernels, unsigned flags) {
  *kernels = (struct lookup_kernels){
      .name = "c",
      .prepare = query_prepare_c,
      .weighted = scan_weighted_c,
      .hamming = scan_hamming_c,
      .rescore = rescore_c,
      .take_keys = select_take_c,
      .count_keys = select_count_c,
      .range_keys = select_range_c,
  };
#if defined(__x86_64__)
  query_init_x86(kernels, flags);
  rescore_init_x86(kernels, flags);
  scan_init_avx2(kernels, flags);
  scan_init_avx512(kernels, flags);
  scan_init_avx512_vpopcnt(kernels, flags);
  select_init_avx512(kernels, flags);
#elif defined(__aarch64__)
  rescore_init_neon(kernels, flags);
  scan_init_neon(kernels, flags);
#else
  (void)flags;
#endif
}

static struct lookup_kernels machine;
static pthread_once_t machine_once = PTHREAD_ONCE_INIT;

static void init_machine(void) { lookup_kernels_init(&machine, cpu_flags()); }

const struct lookup_kernels *lookup_kernels(void) {
  pthread_once(&machine_once, init_machine);
  return &machine;
}
