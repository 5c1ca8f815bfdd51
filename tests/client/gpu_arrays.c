// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/client/gpu_arrays.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

#include "client/coldkv.h"
#include "proto/bytes.h"

static void need(cudaError_t status) {
  if (status == cudaSuccess)
    return;
  fprintf(stderr, "GPU: %s\n", cudaGetErrorString(status));
  abort();
}

void *allocate(size_t size) {
  void *memory = calloc(size ? size : 1, 1);
  if (!memory)
    abort();
  return memory;
}

static uint16_t bf16_from(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float bf16_to(uint16_t x) {
  uint32_t bits = (uint32_t)x << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

float rounded(int type, float x) {
  return type == COLDKV_F32 ? x : type == COLDKV_F16 ? f32_from_f16(f16_from_f32(x)) : bf16_to(bf16_from(x));
}

static size_t size_of(int type) { return type == COLDKV_F32 ? 4 : 2; }

void *upload(int type, const float *x, size_t count) {
  uint8_t *bytes = allocate(count * size_of(type));
  void *there;
  for (size_t i = 0; i < count && x; i++) {
    if (type == COLDKV_F32)
      memcpy(bytes + 4 * i, &x[i], 4);
    else
      store_u16(bytes + 2 * i, type == COLDKV_F16 ? f16_from_f32(x[i]) : bf16_from(x[i]));
  }
  if (!x)
    memset(bytes, 0xff, count * size_of(type)); /* NaN in every type */
  need(cudaMalloc(&there, count * size_of(type)));
  need(cudaMemcpy(there, bytes, count * size_of(type), cudaMemcpyHostToDevice));
  free(bytes);
  return there;
}

float *download(int type, void *there, size_t count) {
  uint8_t *bytes = allocate(count * size_of(type));
  float *x = allocate(count * sizeof *x);
  need(cudaDeviceSynchronize());
  need(cudaMemcpy(bytes, there, count * size_of(type), cudaMemcpyDeviceToHost));
  for (size_t i = 0; i < count; i++) {
    if (type == COLDKV_F32)
      memcpy(&x[i], bytes + 4 * i, 4);
    else
      x[i] = type == COLDKV_F16 ? f32_from_f16(load_u16(bytes + 2 * i)) : bf16_to(load_u16(bytes + 2 * i));
  }
  free(bytes);
  cudaFree(there);
  return x;
}
