// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A lane: one thread's share of a scan. Lanes take runs of ordinals in turn, each the next when it is done with one,
// and tell each other what can no longer be among the best; so all end at about the same time, and the best of all are
// among the best of each.
#ifndef COLDKV_RETRIEVAL_LANE_H
#define COLDKV_RETRIEVAL_LANE_H

#include "proto/messages.h"
#include "retrieval/kernels.h"
#include "retrieval/range.h"
#include "retrieval/select.h"

enum {
  LANE_ROWS = 16,           /* that share one pass over the signatures */
  LANE_TOKENS_MIN = 65536,  /* below this a second thread costs more than it brings */
  LANE_RUN = 16384,         /* ordinals that a lane takes at once: some 40 us */
  LANE_COUNT_MAX = SELECT_LANES_MAX,
};

struct lane {
  struct select selects[LANE_ROWS];
  struct scan_scores scores[LANE_ROWS];
  struct scan_distances distances[LANE_ROWS];
};

/* What the lanes of a scan tell each other. */
struct lane_sharing {
  _Atomic uint64_t next; /* the first ordinal that no lane has taken */
  struct select_bound bounds[LANE_ROWS];
};

/* What all lanes of a scan have in common. */
struct scan {
  const struct lookup_kernels *kernels;
  enum lookup_mode mode;
  const struct range *range;
  const struct query *queries;
  uint32_t rows;       /* at most LANE_ROWS */
  uint32_t candidates; /* C */
  uint32_t first;      /* ordinals before this one are left out */
  uint32_t expected[LANE_ROWS]; /* rank below which C are expected for each row; 0: who knows */
  struct lane_sharing *sharing; /* NULL: there is one lane */
};

/* Records spread over a scan. */
struct lane_sample {
  uint8_t signature[SCAN_BLOCK * RECORD_SIGNATURE_BYTES], k_scale[SCAN_BLOCK * RECORD_K_SCALE_BYTES];
};

/* Learns from a sample what to expect, where that saves work: most records need then not be kept until better ones
 * come. When lanes end with fewer than C for a row, chance or bad scales have misled, and the scan is to be done again
 * with all zero. `lane` and `keys` are those of any lane. */
void lane_expect(struct lane *lane, struct scan *scan, struct lane_sample *sample, uint64_t *keys);

/* Call before several lanes begin. */
void lane_share(const struct scan *scan, uint32_t lanes);

/* Keys that one lane needs memory for: those of its rows, and as many spare ones as one row has. */
size_t lane_keys(const struct scan *scan);

/* As lane number `index`: scans runs until there are none left, and leaves in each row's select those of its ordinals
 * that may be among the best C of all, ascending, at most C. */
void lane_scan(struct lane *lane, uint32_t index, const struct scan *scan, uint64_t *keys);

#endif
