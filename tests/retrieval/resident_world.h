// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Conversations of which a GPU, or its stand-in, may do a part of each lookup, and lookups that are compared with the
// processor's.
#ifndef COLDKV_TESTS_RETRIEVAL_RESIDENT_WORLD_H
#define COLDKV_TESTS_RETRIEVAL_RESIDENT_WORLD_H

#include "retrieval/cuda/resident.h"
#include "tests/retrieval/reference.h"

enum {
  LAYERS = 2,
  HEADS = 2,
  PARTS = 6,
  TOKENS = 12400,
  ROWS_MAX = 3,
  CONVERSATIONS = 4,
  NONE = PARTS,
  CHUNK_BYTES = 16384 * 18, /* the least that columns take */
  LAYER_BYTES = HEADS * CHUNK_BYTES,
  CODE_CHUNK_BYTES = 8192 * 32,
  LAYER_CODE_BYTES = HEADS * 2 * CODE_CHUNK_BYTES,
  IDLE_MS = 100,
  GROW = 50,
  TOKENS_MIN = 200,
  SPARE = 16, /* winners that may be bad */
};

struct conversation {
  uint8_t id[LIMIT_ID_BYTES];
  struct archive_parts parts[LAYERS][HEADS];
  uint64_t count; /* of tokens, so far */
  uint32_t bad;   /* part that cannot be read, or NONE */
  bool turns_bad; /* while it is being read */
  uint64_t expected; /* tokens whose codes are about to be read, ever */
};

extern struct world {
  struct random random;
  struct gpu *gpu;
  struct resident *resident;
  struct conversation conversations[CONVERSATIONS];
  uint64_t now_ms;
  uint8_t queries[ROWS_MAX][HEADS][QUERY_FLOATS * 4];
} world;

/* Room for everything but codes. */
extern const struct resident_options plenty;

struct wanted {
  struct conversation *conversation;
  uint32_t layer, rows, candidates;
  enum lookup_mode mode;
  uint64_t from, before;
};

/* One lookup, compared with one that the processor does alone. Returns the tokens that the GPU did, or an error. */
int64_t look_up(struct wanted wanted);
/* All tokens of one layer, weighted, 64 candidates. */
int64_t look_up_all(uint32_t conversation, uint32_t layer);
struct resident_figures figures(void);
/* Begins anew with an empty cache and conversations that are whole. */
void restart(const struct resident_options *options);
/* A lookup of a world in which anything may happen. */
void step_of_life(void);

int make_world(void **state);
int end_world(void **state);

#endif
