// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// One lookup: the k records of one (layer, kv head) that matter most for each query row.
//
// Scan all signatures in range, keep the best C, rescore those against the key code, return the best k. Scores are
// exact (integers times one fp16 scale), ties go to the lower token index, so the answer is the same bit for bit for
// every kernel, thread count and backend. proto/RECORD.md defines the fields, README.md here the scores.
#ifndef COLDKV_RETRIEVAL_LOOKUP_H
#define COLDKV_RETRIEVAL_LOOKUP_H

#include <stdint.h>

#include "proto/messages.h"
#include "proto/record.h"

#define LOOKUP_NONE UINT32_MAX

/* Threads that share one scan. run() calls task(context, index) once for every index < tasks, at the same time where it
 * can, and returns when all calls have. */
struct lookup_team {
  uint32_t lanes; /* into how many shares a long scan is worth cutting */
  void (*run)(const struct lookup_team *team, uint32_t tasks, void (*task)(void *context, uint32_t index),
              void *context);
};

/* Brings bytes of parts into memory that may be on disk: want() notes them, run() fetches all that was noted. */
struct lookup_fetch {
  void (*want)(void *context, const struct record_columns *part, const void *address, size_t size);
  void (*run)(void *context);
  void *context;
};

/* What somebody else has found, a GPU for one: the best candidates of the tokens first .. first + count - 1 for every
 * row. They are used where the range begins with these tokens and has all of them; the rest is scanned here.
 *
 * With `best`, they were rescored already, and the keys are the best so many of them by final score. That is used only
 * where these tokens are all of the range, and `candidates` is what the request comes to. Where more winners are bad
 * than `best` has to spare, everything is done here once more. */
struct lookup_found {
  uint64_t first;
  uint32_t count;
  uint32_t candidates;    /* that were looked for */
  uint32_t best;          /* 0: the keys are those of the scan, [rows][candidates]; otherwise [rows][best] */
  const uint64_t *keys;   /* those of select.h in any order, ordinals counted from `first` */
  const uint32_t *counts; /* [rows]: of candidates; fewer than `candidates` only where there are no more */
};

struct lookup_request {
  enum lookup_mode mode;
  uint32_t head_dim;
  uint32_t layer, head;   /* for the CRC of the winners */
  uint32_t rows;          /* at most LIMIT_ROWS_MAX */
  uint32_t k;             /* 1 to LIMIT_K_MAX */
  uint32_t candidates;    /* C; 0: lookup_default_candidates of the tokens in range */
  uint64_t from, before;  /* token range */
  const uint8_t *queries; /* f32 little endian, any alignment; row r at queries + r * row_stride, 128 floats */
  size_t row_stride;      /* bytes */
  const struct lookup_team *team;   /* NULL: the calling thread alone; the answer is the same */
  const struct lookup_fetch *fetch; /* NULL: everything is in memory, or may come by page faults */
  const struct lookup_found *found; /* NULL: nothing; the answer is the same */
};

/* Answer. The caller gives the arrays; index and scores are [rows][k]. */
struct lookup_answer {
  uint64_t *tokens;     /* [rows * k]: the union of all rows' winners, ascending, `count` of them */
  uint8_t *records;     /* [rows * k][104]: their records, checked */
  uint32_t *index;      /* place in the union, best first; LOOKUP_NONE where there are fewer */
  float *scores;        /* 0 where there are fewer */
  uint32_t count;
  uint64_t scanned;     /* tokens in range */
  uint64_t rescored;    /* candidates, over all rows */
  uint64_t bad_records; /* winners that failed their CRC and were replaced by the next best */
};

/* Memory that lookups of one thread use again and again. */
struct lookup_scratch;
int lookup_scratch_create(struct lookup_scratch **scratch, struct error *error);
void lookup_scratch_destroy(struct lookup_scratch *scratch);

/* clamp(tokens / 32, 1024, 4096). */
uint32_t lookup_default_candidates(uint64_t tokens);

/* Lanes that so many threads share a scan of that range as: one where more would cost more than they bring. */
uint32_t lookup_lanes(uint32_t threads, uint64_t tokens);

/* Tokens that have a place in parts and are within from .. before - 1; UINT64_MAX is no bound. */
uint64_t lookup_tokens(const struct record_columns *parts, uint32_t part_count, uint64_t from, uint64_t before);

/* Runs one lookup over `parts` blocks in ascending token order. ERR_BAD_PARAMS for a query that is not finite,
 * ERR_MEMORY. Fewer than k winners are no error. */
int lookup_run(struct lookup_scratch *scratch, const struct lookup_request *request,
               const struct record_columns *parts, uint32_t part_count, struct lookup_answer *answer,
               struct error *error);

/* Name of the kernel in use, for hello and benchmarks: "c", later "avx2" and so on. */
const char *lookup_kernel_name(void);

#endif
