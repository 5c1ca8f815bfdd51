// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What the disk gives: pages read past the page cache, 64 under way at a time.
#ifndef COLDKV_TOOLS_BENCH_DIRECT_H
#define COLDKV_TOOLS_BENCH_DIRECT_H

#include <stdint.h>
#include <sys/types.h>

#include "proto/error.h"

enum { DIRECT_DEPTH = 64, DIRECT_PAGE_BYTES = 4096 };

struct direct_page {
  int fd; /* opened with O_DIRECT */
  off_t offset;
};

/* Reads the pages in the order given; *seconds is what that took. ERR_NOT_SUPPORTED without io_uring. */
int direct_read(const struct direct_page *pages, uint32_t count, double *seconds, struct error *error);

#endif
