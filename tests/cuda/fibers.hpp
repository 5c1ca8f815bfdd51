// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Grids of the stand-in for CUDA, run to their end.
#ifndef COLDKV_TESTS_CUDA_FIBERS_HPP
#define COLDKV_TESTS_CUDA_FIBERS_HPP

#include "tests/cuda/emulation.hpp"

namespace emulation {

/* Runs the kernel in each of grid x `threads` threads. */
void run_grid(dim3 grid, unsigned threads, bool all_at_a_time, const std::function<void()> &kernel);

/* A random number, other in every run. From any thread. */
uint64_t chance();

[[noreturn]] void die(const char *what);

} // namespace emulation

#endif
