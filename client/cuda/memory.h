// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What the C files of this folder know of each other.
#ifndef COLDKV_CLIENT_CUDA_MEMORY_H
#define COLDKV_CLIENT_CUDA_MEMORY_H

#include <sys/types.h>

#include "client/cuda/device.h"
#include "client/cuda/launch.h"
#include "proto/cuda/gpu.h"

/* GPU memory, or pinned host memory, that grows when more is wanted; nothing in it is kept. */
struct device_memory {
  void *at;
  size_t bytes;
  bool pinned;
};

/* The slots of the last device_take. */
struct device_slots {
  uint32_t all, k, most; /* records; columns of the index; of one row and head */
  uint32_t rotate;
  size_t counts, index, tokens, records, bytes; /* places in the upload; starts come first */
};

struct device {
  int number;
  pid_t owner; /* a fork must not touch the GPU */
  uint32_t processors, group;
  struct cuda_shape shape;
  double freqs[CUDA_PAIRS_MAX];
  float softmax_scale;
  size_t element; /* bytes of a number of the hot window */

  struct cuda_codec codec;
  struct cuda_split key, value;

  cudaStream_t own, encoder;
  cudaEvent_t last;    /* all calls so far */
  cudaEvent_t asked;   /* the queries are there */
  cudaEvent_t taken;   /* the upload may be written again */
  cudaEvent_t encoded; /* the records are there */

  struct device_block block;
  bool rows_made; /* its rotations */
  struct device_slots slots;
  uint32_t encoding; /* tokens under way */
  uint32_t k_max;    /* slots a row that there is room for */

  struct device_memory ring, sinks, rows, table, means, crc, partial, arrived, coded; /* GPU memory */
  struct device_memory raw, vectors, copies;                                          /* likewise, as wanted */
  struct device_memory found, queries, records, upload;                               /* pinned */
  uint64_t device_bytes, pinned_bytes;
};

/* At least so many bytes. Waits for the GPU when there are not, and takes the next power of two where `round`. */
cudaError_t device_reserve(struct device *device, struct device_memory *memory, size_t bytes, bool round);

/* Makes the device current for a call and orders the stream behind the calls before; device_leave records what the call
 * has enqueued, unless it failed, and makes the device current that was. */
struct device_call {
  int before;
  cudaStream_t stream;
};
cudaError_t device_enter(struct device *device, void *stream, struct device_call *call);
int device_leave(struct device *device, const struct device_call *call, cudaError_t status, const char *what,
                 struct error *error);

/* Room for up to k slots a row: rotations by packed positions, and what the blocks of an attention tell each other. */
cudaError_t device_reserve_slots(struct device *device, uint32_t k);

/* The hot window of a layer. */
struct cuda_hot device_hot(const struct device *device, uint32_t layer);

static inline struct cuda_found *device_found(const struct device *device) { return device->found.at; }

#endif
