// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Included before every file that clang-tidy looks at: tells its analyzer, which sees one file at a time, that
// error_set and its like never return 0. Without it, every error path is followed as if nothing had failed.
#ifndef COLDKV_TESTS_ANALYZER_H
#define COLDKV_TESTS_ANALYZER_H

#include "proto/error.h"

#define error_set(error, code, ...) (error_set(error, code, __VA_ARGS__), -(code))
#define error_set_errno(error, ...) (error_set_errno(error, __VA_ARGS__), -ERR_IO)
#define error_prefix(error, ...) (error_prefix(error, __VA_ARGS__), -ERR_IO)

#endif
