// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What a conversation keeps and computes on a GPU: its hot window, the codec and attention. The counterpart of hot.h,
// codec.h and attend.h; everything else about a conversation does not know where those live.
//
// Work goes to the stream of the call, in the order of the calls whatever their streams; encoding to a stream of its
// own. Built without CUDA, or on a machine with no driver or GPU, device_create says so.
#ifndef COLDKV_CLIENT_CUDA_DEVICE_H
#define COLDKV_CLIENT_CUDA_DEVICE_H

#include <stdbool.h>

#include "client/codec.h"
#include "client/coldkv.h"
#include "client/retrieve.h"
#include "client/rope.h"

struct device;

struct device_shape {
  uint32_t layers, heads, group, head_dim;
  uint32_t hot_type; /* enum coldkv_type */
  const struct rope *rope; /* copied */
  float softmax_scale;
};

/* The open block. */
struct device_block {
  uint64_t first, hot_start;
  uint32_t count;
  bool packed, rotated;
  int64_t positions[COLDKV_BLOCK_MAX]; /* that q and k were rotated for, if they are */
};

/* Where the arrays of a call are: GPU memory of a type, to be read and written in the order of a stream. */
struct device_place {
  int type;
  void *stream;
};

/* CUDA device `number`, 0 for the first. -ERR_NOT_SUPPORTED: built without CUDA, no driver, no such device or too old a
 * one; -ERR_MEMORY, -ERR_IO. */
int device_create(struct device **device, uint32_t number, const struct device_shape *shape, struct error *error);
/* Waits for the GPU. Takes NULL. */
void device_destroy(struct device *device);

struct device_bytes {
  uint64_t hot, device, pinned;
};
struct device_bytes device_usage(const struct device *device);

/* Takes rotation and means ([layers][heads][d]) of the frozen model, once. Waits. */
int device_freeze(struct device *device, const struct codec *codec, const float *mean_k, const float *mean_v,
                  struct error *error);

/* A block begins; tables for up to k slots a row. -ERR_MEMORY. */
int device_begin(struct device *device, const struct device_block *block, uint32_t k, struct error *error);

/* Puts keys and values [n][heads][d] of the block in the hot window. */
int device_put(struct device *device, uint32_t layer, const void *k, const void *v, const struct device_place *place,
               struct error *error);

/* Computes lookup queries of q [rows][heads * group][d]: those of the block if rows is its count, else of a row at its
 * end. device_query_wait waits for them: f32 [rows][heads][128], host memory that the next start overwrites. */
int device_query_start(struct device *device, const void *q, uint32_t rows, const float *expected,
                       const struct device_place *place, struct error *error);
int device_query_wait(struct device *device, const float **queries, struct error *error);

/* Takes the slots of a layer, found and checked, as records; decodes them for device_attend. Without a call, or with
 * k = 0, it attends without slots. */
int device_take(struct device *device, uint32_t layer, const struct retrieved *retrieved,
                const struct device_place *place, struct error *error);

/* Attention of the block's rows: q, out [n][heads * group][d]. */
int device_attend(struct device *device, uint32_t layer, const void *q, void *out, const struct device_place *place,
                  struct error *error);

/* Encodes tokens first .. first + count - 1 (at most DEVICE_ENCODE_MAX) of the hot window, all layers and heads.
 * device_encode_ready says whether they are there without waiting; device_encode_wait waits and copies the records
 * [count][layers][heads][104]: -ERR_NOT_FINITE. One encoding is under way at a time. */
enum { DEVICE_ENCODE_MAX = 64 };
int device_encode_start(struct device *device, uint64_t first, uint32_t count, struct error *error);
bool device_encode_ready(struct device *device);
int device_encode_wait(struct device *device, uint8_t *records, struct error *error);

/* Means [layers][heads][d] of keys, then of values, over tokens first .. end - 1, as calibrate.c has them. Waits. */
int device_means(struct device *device, uint64_t first, uint64_t end, float *means, struct error *error);

/* -ERR_NOT_FINITE when a NaN or infinity, or too long a vector, was found in what the GPU has computed so far. Does not
 * wait. `*token`: of the block it came with. */
int device_check(const struct device *device, uint64_t *token);
/* Waits for the GPU and forgets it. */
void device_forget(struct device *device);

/* For host arrays: copies of them on the GPU, and the place they are in. device_download waits. */
struct device_copies {
  struct device_place place;
  void *q, *k, *v, *out; /* q and out [n][heads * group][d], k and v [n][heads][d], f32 */
};
int device_upload(struct device *device, const float *q, const float *k, const float *v, uint32_t rows,
                  struct device_copies *copies, struct error *error);
int device_download(struct device *device, float *out, struct error *error);

#endif
