// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What the last scan of columns tells the next one, see the top of scan.cu. The GPU writes it to memory of the host,
// and the next launch takes it along: no block has to fetch it, and all have the same. A launch that was enqueued early
// goes by what an older one left, and one may write to what are the hints of other columns by then: that costs time at
// the most.
#include <stdlib.h>

#include "retrieval/cuda/memory.h"

enum { PIECE = 1024 /* columns */ };

static cudaError_t add_piece(struct gpu_hints *hints) {
  size_t count = hints->piece_count + 1;
  float *piece;
  float **pieces = realloc(hints->pieces, count * sizeof *pieces);
  hints->pieces = pieces ? pieces : hints->pieces;
  float **spare = realloc(hints->spare, count * PIECE * sizeof *spare);
  hints->spare = spare ? spare : hints->spare;
  if (!pieces || !spare)
    return cudaErrorMemoryAllocation;
  cudaError_t status = cudaMallocHost((void **)&piece, PIECE * GPU_HINTS * sizeof *piece);
  if (status != cudaSuccess)
    return status;
  pieces[hints->piece_count++] = piece;
  for (uint32_t i = 0; i < PIECE; i++)
    spare[hints->spare_count++] = piece + (size_t)i * GPU_HINTS;
  return cudaSuccess;
}

cudaError_t gpu_hints_take(struct gpu_hints *hints, float **result) {
  cudaError_t status = hints->spare_count ? cudaSuccess : add_piece(hints);
  if (status != cudaSuccess)
    return status;
  *result = hints->spare[--hints->spare_count];
  memset(*result, 0, GPU_HINTS * sizeof **result);
  return cudaSuccess;
}

void gpu_hints_give_back(struct gpu_hints *hints, float *taken) {
  if (taken)
    hints->spare[hints->spare_count++] = taken;
}

void gpu_hints_free(struct gpu_hints *hints) {
  for (uint32_t i = 0; i < hints->piece_count; i++)
    cudaFreeHost(hints->pieces[i]);
  free(hints->pieces);
  free(hints->spare);
}
