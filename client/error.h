// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// How errors leave the library: a public code, and the sentence that coldkv_error() gives.
#ifndef COLDKV_CLIENT_ERROR_H
#define COLDKV_CLIENT_ERROR_H

#include "proto/error.h"

/* Ends a public call. A result that is not negative is handed through. Otherwise the sentence is kept for this thread
 * and the public code of `error` returned. */
int api_result(int result, const struct error *error);

/* The public code of an error; those that only make sense between daemon and library get the nearest one. */
int api_code(int code);

/* Fails a public call with this code and sentence. */
int api_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
