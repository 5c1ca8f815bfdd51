// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Grids of the stand-in for CUDA, run to their end.
#ifndef COLDKV_TESTS_CUDA_FIBERS_HPP
#define COLDKV_TESTS_CUDA_FIBERS_HPP

#include <vector>

#include "tests/cuda/emulation.hpp"

namespace emulation {

struct Grid {
  dim3 blocks;
  unsigned threads; /* of each */
  Way way;
  std::function<void()> kernel;
};

/* Runs grids one after the other; all but the first may overlap with the one before, and do so as chance has it. */
void run_grids(const std::vector<Grid> &grids);

/* That can run. */
unsigned blocks_at_a_time();

/* A random number, other in every run. From any thread. */
uint64_t chance();

[[noreturn]] void die(const char *what);

} // namespace emulation

#endif
