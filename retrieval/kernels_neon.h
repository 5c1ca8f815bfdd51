// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// aarch64: raises function pointers to NEON, which every such processor has.
#ifndef COLDKV_RETRIEVAL_KERNELS_NEON_H
#define COLDKV_RETRIEVAL_KERNELS_NEON_H

#include "proto/cpu.h"
#include "retrieval/kernels.h"

void scan_init_neon(struct lookup_kernels *kernels, unsigned flags);
void rescore_init_neon(struct lookup_kernels *kernels, unsigned flags);

#endif
