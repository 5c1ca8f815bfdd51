// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// In place of the others in a build without CUDA: no device can be made, so that nothing else is ever called with one.
#include "client/cuda/device.h"

static int no_cuda(struct error *error) { return error_set(error, ERR_NOT_SUPPORTED, "no GPU: built without CUDA"); }

int device_create(struct device **device, uint32_t number, const struct device_shape *shape, struct error *error) {
  (void)number;
  (void)shape;
  *device = NULL;
  return no_cuda(error);
}

void device_destroy(struct device *device) { (void)device; }

struct device_bytes device_usage(const struct device *device) {
  (void)device;
  return (struct device_bytes){0};
}

int device_freeze(struct device *device, const struct codec *codec, const float *mean_k, const float *mean_v,
                  struct error *error) {
  (void)device;
  (void)codec;
  (void)mean_k;
  (void)mean_v;
  return no_cuda(error);
}

int device_begin(struct device *device, const struct device_block *block, uint32_t k, struct error *error) {
  (void)device;
  (void)block;
  (void)k;
  return no_cuda(error);
}

int device_put(struct device *device, uint32_t layer, const void *k, const void *v, const struct device_place *place,
               struct error *error) {
  (void)device;
  (void)layer;
  (void)k;
  (void)v;
  (void)place;
  return no_cuda(error);
}

int device_query_start(struct device *device, const void *q, uint32_t rows, const float *expected,
                       const struct device_place *place, struct error *error) {
  (void)device;
  (void)q;
  (void)rows;
  (void)expected;
  (void)place;
  return no_cuda(error);
}

int device_query_wait(struct device *device, const float **queries, struct error *error) {
  (void)device;
  *queries = NULL;
  return no_cuda(error);
}

int device_take(struct device *device, uint32_t layer, const struct retrieved *retrieved,
                const struct device_place *place, struct error *error) {
  (void)device;
  (void)layer;
  (void)retrieved;
  (void)place;
  return no_cuda(error);
}

int device_attend(struct device *device, uint32_t layer, const void *q, void *out, const struct device_place *place,
                  struct error *error) {
  (void)device;
  (void)layer;
  (void)q;
  (void)out;
  (void)place;
  return no_cuda(error);
}

int device_encode_start(struct device *device, uint64_t first, uint32_t count, struct error *error) {
  (void)device;
  (void)first;
  (void)count;
  return no_cuda(error);
}

bool device_encode_ready(struct device *device) {
  (void)device;
  return true;
}

int device_encode_wait(struct device *device, uint8_t *records, struct error *error) {
  (void)device;
  (void)records;
  return no_cuda(error);
}

int device_means(struct device *device, uint64_t first, uint64_t end, float *means, struct error *error) {
  (void)device;
  (void)first;
  (void)end;
  (void)means;
  return no_cuda(error);
}

int device_check(const struct device *device, uint64_t *token) {
  (void)device;
  *token = 0;
  return 0;
}

void device_forget(struct device *device) { (void)device; }

int device_upload(struct device *device, const float *q, const float *k, const float *v, uint32_t rows,
                  struct device_copies *copies, struct error *error) {
  (void)device;
  (void)q;
  (void)k;
  (void)v;
  (void)rows;
  *copies = (struct device_copies){0};
  return no_cuda(error);
}

int device_download(struct device *device, float *out, struct error *error) {
  (void)device;
  (void)out;
  return no_cuda(error);
}
