// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The segment files of an archive with one conversation, mapped beside the daemon that owns them.
#ifndef COLDKV_TOOLS_BENCH_SEGMENTS_H
#define COLDKV_TOOLS_BENCH_SEGMENTS_H

#include "store/segment.h"

struct segments {
  struct segment **items; /* in token order */
  uint32_t count;
};

/* Maps all segment files below the archive `data`. */
int segments_open(struct segments *segments, const char *data, struct error *error);
void segments_close(struct segments *segments);

#endif
