// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Where lookups scan: on the processor, or for what is long enough on a GPU first. The answer is the same bit for bit.
// A GPU that fails makes a lookup the processor's; that is logged once and counted.
#ifndef COLDKV_DAEMON_BACKEND_H
#define COLDKV_DAEMON_BACKEND_H

#include <stdatomic.h>
#include <stdbool.h>

#include "daemon/options.h"
#include "retrieval/cuda/resident.h"
#include "retrieval/lookup.h"

struct lookup_worker;
struct request;

struct backend {
  struct gpu *gpu;
  struct resident *resident; /* NULL: there is no GPU, or it is not to be used */
  struct gpu_info info;
  uint64_t limit_bytes, code_limit_bytes, tokens_min;
  atomic_bool told; /* of an error */
};

/* What the GPU has found for one lookup; see struct lookup_found. */
struct backend_found {
  struct resident_found found;
  uint32_t rows;
  bool held; /* the GPU's memory for it */
};

/* Opens the GPU that the options want, and says why not where there is none. -ERR_NOT_SUPPORTED and others: they insist
 * on one. */
int backend_open(struct backend *backend, const struct options *options, struct error *error);
void backend_close(struct backend *backend);

const char *backend_name(const struct backend *backend);   /* "cpu" or "cuda" */
const char *backend_device(const struct backend *backend); /* name of the GPU, "" */
bool backend_gpu(struct backend *backend);                 /* false also for one that has failed too often */
/* Whether lookups of so many tokens, for so many (row, kv head), are for a GPU, as long as it does not fail. */
bool backend_wants(const struct backend *backend, uint64_t tokens, uint64_t jobs);
void backend_stats(struct backend *backend, struct msg_stats *stats);

/* The id of a conversation that is about to be deleted. False when there is none, or no GPU that may have it. */
bool backend_id(struct request *request, const char *name, uint8_t id[LIMIT_ID_BYTES]);

/* Starts the scan of all rows and kv heads of a lookup as far as the GPU has its signatures. Returns false when all is
 * left to the processor; otherwise backend_finish is next. */
bool backend_start(struct backend *backend, struct request *request, struct lookup_worker *worker,
                   struct backend_found *found);
/* Waits for the GPU. Returns false when it has failed, and all is left to the processor. */
bool backend_finish(struct backend *backend, struct request *request, struct lookup_worker *worker,
                    struct backend_found *found);
/* What it found for one kv head. */
struct lookup_found backend_head(const struct backend_found *found, uint32_t head);
/* When none of it is needed any more; harmless when there is nothing. */
void backend_release(struct backend *backend, const struct backend_found *found);

#endif
