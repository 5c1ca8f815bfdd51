// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/bench/segments.h"

#include <glob.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

static int by_first(const void *a, const void *b) {
  uint64_t x = segment_header(*(struct segment *const *)a)->first;
  uint64_t y = segment_header(*(struct segment *const *)b)->first;
  return (x > y) - (x < y);
}

int segments_open(struct segments *segments, const char *data, struct error *error) {
  char pattern[PATH_MAX + 32];
  glob_t found;
  *segments = (struct segments){0};
  snprintf(pattern, sizeof pattern, "%s/segments/*/*.seg", data);
  if (glob(pattern, 0, NULL, &found))
    return error_set(error, ERR_INTERNAL, "%s: there are no segments", data);
  segments->items = calloc(found.gl_pathc, sizeof(struct segment *));
  int result = segments->items ? 0 : error_set(error, ERR_MEMORY, "no memory for %zu segments", found.gl_pathc);
  for (size_t i = 0; i < found.gl_pathc && !result; i++) {
    result = segment_open(&io_system, found.gl_pathv[i], &segments->items[segments->count], error);
    segments->count += !result;
  }
  globfree(&found);
  if (!result)
    qsort(segments->items, segments->count, sizeof(struct segment *), by_first);
  else
    segments_close(segments);
  return result;
}

void segments_close(struct segments *segments) {
  for (uint32_t i = 0; i < segments->count && segments->items; i++)
    segment_unref(segments->items[i]);
  free(segments->items);
  *segments = (struct segments){0};
}
