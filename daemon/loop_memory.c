// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/loop_memory.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <uv.h>

/* The table takes 8 bytes a descriptor, so this lets it grow to some 100,000 of them. */
#define RESERVE_BYTES (1u << 20)

static _Atomic(void *) reserve;

static void *reserved_realloc(void *old, size_t size) {
  void *grown = realloc(old, size);
  if (grown || !size)
    return grown;
  void *kept = atomic_exchange(&reserve, NULL);
  if (!kept)
    return NULL;
  free(kept);
  grown = realloc(old, size);
  atomic_store(&reserve, malloc(RESERVE_BYTES)); /* what is left of it, if it is there again */
  return grown;
}

int loop_memory_init(struct error *error) {
  void *kept = malloc(RESERVE_BYTES);
  if (!kept || uv_replace_allocator(malloc, reserved_realloc, calloc, free)) {
    free(kept);
    return error_set(error, ERR_MEMORY, "out of memory");
  }
  free(atomic_exchange(&reserve, kept));
  return 0;
}

void loop_memory_finish(void) { free(atomic_exchange(&reserve, NULL)); }
