// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "client/kernels/codec_kernels.h"

void codec_kernels_init(struct codec_kernels *kernels, unsigned flags) {
  codec_init_c(kernels);
#if defined(__x86_64__)
  codec_init_avx2(kernels, flags);
  codec_init_avx512(kernels, flags);
#elif defined(__aarch64__)
  codec_init_neon(kernels, flags);
#else
  (void)flags;
#endif
}
