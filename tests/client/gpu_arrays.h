// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Arrays in GPU memory, for tests: numbers of the types of enum coldkv_type.
#ifndef COLDKV_TESTS_CLIENT_GPU_ARRAYS_H
#define COLDKV_TESTS_CLIENT_GPU_ARRAYS_H

#include <stddef.h>

/* Zeroed memory. Aborts when there is none. */
void *allocate(size_t size);

/* x as a type keeps it. */
float rounded(int type, float x);

/* GPU memory with these numbers, or poisoned (NaN) where x is NULL. Aborts when that fails. */
void *upload(int type, const float *x, size_t count);

/* Waits for the GPU; the numbers, malloc'd, in place of the GPU memory. Aborts when that fails. */
float *download(int type, void *there, size_t count);

#endif
