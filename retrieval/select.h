// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The best C of a stream of candidates, exactly, by a total order: candidates are 64-bit keys, the smaller the better.
// The high half is the rank of the score, the low half the candidate's ordinal in token order, which breaks ties.
#ifndef COLDKV_RETRIEVAL_SELECT_H
#define COLDKV_RETRIEVAL_SELECT_H

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

enum { SELECT_LANES_MAX = 64 };

/* Keys past the last that what puts keys in may write to. */
enum { SELECT_SLACK = 16 };

/* Rank of minus infinity: what scores so is never a candidate. */
#define SELECT_RANK_NEVER 0xff800000u

/* Ascending rank = descending score. Minus zero ranks as zero; no NaN. */
static inline uint32_t select_rank(float score) {
  uint32_t bits;
  memcpy(&bits, &score, sizeof bits);
  if (bits & 0x80000000u)
    return bits == 0x80000000u ? 0x7fffffffu : bits;
  return bits ^ 0x7fffffffu;
}

/* The score of a rank. */
static inline float select_score(uint32_t rank) {
  uint32_t bits = rank & 0x80000000u ? rank : rank ^ 0x7fffffffu;
  float score;
  memcpy(&score, &bits, sizeof score);
  return score;
}

/* Ranks below `threshold` are those of scores above this. (No score has the rank that minus zero would have, so that
 * threshold stands for the next one: zero is to pass it.) */
static inline float select_limit(uint32_t threshold) {
  return select_score(threshold == 0x80000000u ? 0x80000001u : threshold);
}

static inline uint64_t select_key(uint32_t rank, uint32_t ordinal) { return (uint64_t)rank << 32 | ordinal; }
static inline uint32_t select_key_rank(uint64_t key) { return (uint32_t)(key >> 32); }
static inline uint32_t select_key_ordinal(uint64_t key) { return (uint32_t)key; }

/* What the lanes of one scan tell each other, so that each of them can drop what the others have made hopeless. It
 * saves work only: at whatever time a lane reads it, the best of all lanes stay. */
struct select_bound {
  uint32_t lanes;
  _Atomic uint32_t threshold; /* no rank from here on is among the best of all lanes */
  _Atomic uint32_t parts[SELECT_LANES_MAX]; /* this lane has its part of `limit` keys, rounded up, below this rank */
};

/* Keeps the `limit` smallest of the keys put in. What is put in after a call of select_make_room has higher ordinals
 * than all before it; keys stay in the order they came in. */
struct select {
  uint64_t *keys;     /* the caller's memory: select_capacity(limit, step) of them */
  uint32_t count;     /* in `keys` now; may be more than limit */
  uint32_t limit;     /* C, at least 1 */
  uint32_t capacity;
  uint32_t threshold; /* only ranks below this can still get in */
  uint32_t low, high; /* the least and the highest rank at the first trim */
  uint32_t trim_at;   /* the count above which it is time to trim */
  uint32_t lane;      /* of this select in `bound` */
  struct select_bound *bound; /* NULL: these are all keys there are */
};

/* Keys to provide for when at most `step` are put in between two calls of select_make_room. */
uint32_t select_capacity(uint32_t limit, uint32_t step);

void select_init(struct select *select, uint64_t *keys, uint32_t limit, uint32_t step);

/* For lanes that each see a part of the keys, where the `limit` smallest of all are wanted: call init once, before the
 * lanes begin, then join for each lane's select after its select_init. A lane may then end with fewer than `limit`. */
void select_bound_init(struct select_bound *bound, uint32_t lanes);
void select_join(struct select *select, struct select_bound *bound, uint32_t lane);

/* Makes room for `step` more keys by dropping what is not among the best, which also lowers the threshold. `spare` is
 * memory for as many keys as `keys` has, here and below. */
void select_make_room(struct select *select, uint32_t step, uint64_t *spare);

static inline void select_put(struct select *select, uint32_t rank, uint32_t ordinal) {
  select->keys[select->count++] = select_key(rank, ordinal);
}

/* Drops all but the best `limit`. */
void select_finish(struct select *select, uint64_t *spare);

/* The rank below which the `wanted` smallest are, at least one; 0 when there are fewer. */
uint32_t select_end_of(const struct select *select, uint32_t wanted, uint64_t *spare);

/* Moves the `wanted` smallest of `count` different keys to the front; both parts keep their order. */
void select_partition(uint64_t *keys, uint32_t count, uint32_t wanted, uint64_t *spare);

/* Sorts ascending. */
void select_sort(uint64_t *keys, uint32_t count);

#endif
