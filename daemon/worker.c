// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/worker.h"

#include <stdlib.h>

int lookup_worker_create(struct lookup_worker **worker, enum fetch_method method, struct error *error) {
  *worker = calloc(1, sizeof **worker);
  if (!*worker)
    return error_set(error, ERR_MEMORY, "out of memory for a lookup thread");
  int result = lookup_scratch_create(&(*worker)->scratch, error);
  if (!result)
    result = fetch_create(&(*worker)->fetch, method, error);
  if (result) {
    lookup_worker_destroy(*worker);
    *worker = NULL;
  }
  return result;
}

void lookup_worker_destroy(struct lookup_worker *worker) {
  if (!worker)
    return;
  lookup_scratch_destroy(worker->scratch);
  fetch_destroy(worker->fetch);
  free(worker->parts);
  free(worker->part_numbers);
  free(worker->buffer);
  free(worker->queries.data);
  free(worker->found.data);
  free(worker);
}

int lookup_worker_reserve_parts(struct lookup_worker *worker, uint32_t parts, struct error *error) {
  if (parts <= worker->part_capacity)
    return 0;
  struct record_columns *columns = realloc(worker->parts, parts * sizeof *columns);
  if (columns)
    worker->parts = columns;
  uint32_t *numbers = realloc(worker->part_numbers, parts * sizeof *numbers);
  if (numbers)
    worker->part_numbers = numbers;
  if (!columns || !numbers)
    return error_set(error, ERR_MEMORY, "out of memory for %u segments", parts);
  worker->part_capacity = parts;
  return 0;
}

int lookup_worker_reserve(struct lookup_worker *worker, size_t bytes, struct error *error) {
  if (bytes <= worker->buffer_size)
    return 0;
  free(worker->buffer);
  worker->buffer_size = 0;
  worker->buffer = malloc(bytes);
  if (!worker->buffer)
    return error_set(error, ERR_MEMORY, "out of memory for an answer of %zu bytes", bytes);
  worker->buffer_size = bytes;
  return 0;
}

int worker_memory_reserve(struct worker_memory *memory, size_t bytes, struct error *error) {
  if (bytes <= memory->size)
    return 0;
  free(memory->data);
  memory->data = malloc(bytes);
  memory->size = memory->data ? bytes : 0;
  return memory->data ? 0 : error_set(error, ERR_MEMORY, "out of memory for a scan on a GPU (%zu bytes)", bytes);
}
