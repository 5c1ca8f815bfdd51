// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Conversations in the memory of a GPU: the signatures and scales of each (layer, kv head), from token 0 on as far as
// they have come. A lookup brings more of its layer there, a bounded step at a time, and gets the candidates among what
// is there; the rest is the processor's. Past the limit the conversation that was used least recently goes, unless that
// was a moment ago: then what there is no room for stays with the processor.
//
// With a second limit, which is 0 where that is not wanted, the key codes follow. A lookup whose range is there as a
// whole, codes and all, gets what is best after rescoring. Past that limit the codes of the conversation used least
// recently go, and its signatures stay.
//
// All functions may be called from any thread at the same time. Memory, of GPU and host, is bounded by the options and
// RESIDENT_*, and in the steady state nothing is allocated.
#ifndef COLDKV_RETRIEVAL_CUDA_RESIDENT_H
#define COLDKV_RETRIEVAL_CUDA_RESIDENT_H

#include "retrieval/cuda/gpu.h"

enum {
  RESIDENT_SCANS = 3,           /* lookups between start and release at a time; others wait */
  RESIDENT_JOBS_MAX = 1024,     /* rows x kv heads of a lookup; larger ones are the processor's */
  RESIDENT_KEYS_MAX = 1 << 21,  /* these times C */
  RESIDENT_FAILURES_MAX = 3,    /* in a row, before the GPU is left alone */
};

struct resident;

struct resident_options {
  uint64_t limit_bytes; /* GPU memory for columns; beside that the scans take some 52 MB each */
  uint64_t code_limit_bytes; /* for key codes; 0: rescoring is the processor's */
  uint32_t tokens_min;  /* shorter ranges are the processor's */
  uint32_t grow_tokens; /* fewer than that are not brought to the GPU yet, unless its layer has codes there */
  uint64_t step_bytes;  /* that one lookup brings there, about; as many again of codes */
  uint64_t idle_ms;     /* what was used more recently does not make room for others */
};

struct resident_figures {
  uint64_t bytes;         /* now: GPU memory that columns take */
  uint64_t code_bytes;    /* now: and key codes */
  uint64_t conversations; /* now */
  uint64_t lookups;       /* that got candidates from the GPU */
  uint64_t rescored;      /* of these, that got the best of them */
  uint64_t dropped;       /* conversations, for whatever reason */
  uint64_t errors;        /* of the GPU */
  bool off;               /* now: it has failed too often */
};

/* Where records are. The functions are called by resident_start only, on the thread that calls it. */
struct resident_source {
  /* Key codes of tokens first .. end - 1 of all kv heads are about to be read: time to have them read from disk
   * together, with nobody waiting. NULL: that is not wanted. */
  void (*expect)(void *context, uint64_t first, uint64_t end);
  /* Fills in the columns that hold the token, one that can be read. */
  bool (*columns)(void *context, uint32_t head, uint64_t token, struct record_columns *columns);
  /* Asked after columns of tokens first .. end - 1 were read: whether all that was read is good. */
  bool (*sound)(void *context, uint64_t first, uint64_t end);
  void *context;
};

/* One layer's lookup. */
struct resident_lookup {
  const uint8_t *conversation; /* id */
  enum lookup_mode mode;
  uint32_t layers, kv_heads;   /* of the model */
  uint32_t layer, rows;
  const struct query *queries; /* [kv_heads][rows] */
  uint32_t candidates;
  uint32_t best;               /* wanted after rescoring, at most `candidates` */
  uint32_t head_dim;
  uint64_t from, before;       /* token range */
  uint64_t tokens;             /* of it that are there and can be read, also after a hole */
  uint64_t readable;           /* tokens 0 .. readable - 1 are there and can be read */
  bool hole;                   /* what comes after them is there and cannot */
  uint64_t now_ms;
  struct resident_source source;
};

/* The best of tokens first .. first + count - 1; see struct lookup_found. */
struct resident_found {
  uint64_t first;
  uint32_t count;
  uint32_t candidates;
  uint32_t best;          /* 0: not rescored */
  const uint64_t *keys;   /* [kv_heads][rows][best, or else candidates] */
  const uint32_t *counts; /* [kv_heads][rows] */
  uint32_t scan;          /* that they are in */
};

/* `gpu` has to outlive it. ERR_MEMORY, ERR_IO. */
int resident_create(struct resident **resident, struct gpu *gpu, const struct resident_options *options,
                    struct error *error);
void resident_destroy(struct resident *resident); /* takes NULL */

/* Brings a step of the layer to the GPU and starts the scan. Returns 1, and found->first and count, when there is
 * something to come: resident_finish is next, then resident_release. Returns 0 when all is the processor's, and a
 * negative error when the GPU failed, which makes no difference to the lookup. */
int resident_start(struct resident *resident, const struct resident_lookup *lookup, struct resident_found *found,
                   struct error *error);
/* Waits for the scan and sets keys and counts, which last until the release. After an error there is nothing. */
int resident_finish(struct resident *resident, struct resident_found *found, struct error *error);
void resident_release(struct resident *resident, const struct resident_found *found);

/* Drops the columns of a conversation that is deleted. */
void resident_drop(struct resident *resident, const uint8_t *conversation);

/* At once; those of a lookup under way may be missing. */
void resident_figures(struct resident *resident, struct resident_figures *figures);

#endif
