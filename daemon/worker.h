// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What one lookup thread keeps from one request to the next; it grows to what the largest one needed.
#ifndef COLDKV_DAEMON_WORKER_H
#define COLDKV_DAEMON_WORKER_H

#include "proto/record.h"
#include "retrieval/lookup.h"
#include "store/fetch.h"

struct worker_memory {
  void *data;
  size_t size;
};

struct lookup_worker {
  struct lookup_scratch *scratch;
  struct fetch *fetch;
  struct record_columns *parts; /* of the view in use, those in range */
  uint32_t *part_numbers;       /* in the view, of each of them */
  uint32_t part_capacity;
  uint8_t *buffer; /* for the answer */
  size_t buffer_size;
  struct worker_memory queries, found; /* for scans on a GPU: rows as integers, and what was found */
};

int lookup_worker_create(struct lookup_worker **worker, enum fetch_method method, struct error *error);
void lookup_worker_destroy(struct lookup_worker *worker); /* NULL is allowed */

/* Room for so many parts, or for so many bytes of answer. -ERR_MEMORY. */
int lookup_worker_reserve_parts(struct lookup_worker *worker, uint32_t parts, struct error *error);
int lookup_worker_reserve(struct lookup_worker *worker, size_t bytes, struct error *error);
int worker_memory_reserve(struct worker_memory *memory, size_t bytes, struct error *error);

#endif
