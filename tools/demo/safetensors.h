// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Weights out of a .safetensors file: a u64 header length, a JSON header that names every tensor's type, shape and
// place, then the tensors' bytes.
#ifndef COLDKV_TOOLS_DEMO_SAFETENSORS_H
#define COLDKV_TOOLS_DEMO_SAFETENSORS_H

#include <stdint.h>

#include "proto/error.h"

struct safetensors;

/* Reads the whole file into memory and checks its header: every tensor must lie inside the file and be as large as its
 * type and shape say. ERR_IO, ERR_CORRUPT, ERR_LIMIT, ERR_MEMORY. */
int safetensors_open(struct safetensors **file, const char *path, struct error *error);

/* NULL is allowed. */
void safetensors_close(struct safetensors *file);

/* Converts one tensor to f32 in malloc'd *data, which the caller frees. Its shape must be [rows][columns], or [rows]
 * when columns is 0, its type F16 or F32, and every value finite: ERR_CORRUPT otherwise, and when there is no such
 * tensor. */
int safetensors_read(const struct safetensors *file, const char *name, uint32_t rows, uint32_t columns, float **data,
                     struct error *error);

/* The bytes of all tensors in the order of the file, for a fingerprint. They live as long as `file`. */
const uint8_t *safetensors_bytes(const struct safetensors *file, uint64_t *size);

#endif
