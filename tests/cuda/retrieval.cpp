// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The kernels of lookups, for the processor.
#include "tests/cuda/emulation.hpp"

#include "retrieval/cuda/rescore.cu"
#include "retrieval/cuda/scan.cu"
