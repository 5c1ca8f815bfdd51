// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Which records and ids a repair had to give up, and how that is told.
#include <stdlib.h>

#include "store/repair_internal.h"

enum { EACH = 1, WITH_TOKEN = 2 }; /* WITH_TOKEN: lost in every layer and head, told once */

int losses_init(struct losses *l, uint64_t first, uint32_t tokens, uint32_t layers, uint32_t heads,
                struct error *error) {
  *l = (struct losses){.first = first, .tokens = tokens, .blocks = layers * heads, .heads = heads};
  l->records = calloc((size_t)tokens * l->blocks + 1, 1);
  l->ids = calloc(tokens + 1, 1);
  if (l->records && l->ids)
    return 0;
  losses_finish(l);
  return error_set(error, ERR_MEMORY, "out of memory for the repair of %u tokens", tokens);
}

void losses_finish(struct losses *l) {
  free(l->records);
  free(l->ids);
  l->records = l->ids = NULL;
}

/* Tells of the runs of bytes that have the value `kind`, `stride` apart. */
static int tell_runs(const struct losses *l, const uint8_t *bytes, size_t stride, uint8_t kind, struct repair *r,
                     const struct patient *p, const char *path, uint32_t layer, uint32_t head, const char *what) {
  int result = 0;
  for (uint32_t i = 0, end; i < l->tokens && !result; i = end) {
    bool lost = bytes[i * stride] == kind;
    for (end = i + 1; end < l->tokens && (bytes[end * stride] == kind) == lost;)
      end++;
    if (lost)
      result = repair_lost(r, p, path, l->first + i, end - i, layer, head, what);
  }
  return result;
}

int losses_tell(const struct losses *l, struct repair *r, const struct patient *p, const char *path) {
  for (uint32_t i = 0; i < l->tokens; i++) {
    uint8_t *records = l->records + (size_t)i * l->blocks;
    uint32_t lost = 0;
    for (uint32_t b = 0; b < l->blocks; b++)
      lost += records[b] != 0;
    r->report->records_lost += lost;
    r->report->ids_lost += l->ids[i] != 0;
    for (uint32_t b = 0; b < l->blocks && lost == l->blocks; b++)
      records[b] = WITH_TOKEN;
  }
  int result = tell_runs(l, l->records, l->blocks, WITH_TOKEN, r, p, path, REPAIR_ALL, REPAIR_ALL, "records lost");
  for (uint32_t b = 0; b < l->blocks && !result; b++)
    result = tell_runs(l, l->records + b, l->blocks, EACH, r, p, path, b / l->heads, b % l->heads, "records lost");
  return result ? result : tell_runs(l, l->ids, 1, EACH, r, p, path, REPAIR_ALL, REPAIR_ALL, "token ids lost");
}
