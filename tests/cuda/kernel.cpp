// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// One file of kernels, for the processor: COLDKV_KERNEL names it.
#include "tests/cuda/emulation.hpp"

#include COLDKV_KERNEL
