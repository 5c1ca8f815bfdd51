// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A lane: one thread's share of a scan. Lanes take neighbouring runs of ordinals, so that their candidates one after
// another go slice by slice again, and the best of all are among the best of each.
#ifndef COLDKV_RETRIEVAL_LANE_H
#define COLDKV_RETRIEVAL_LANE_H

#include "proto/messages.h"
#include "retrieval/kernels.h"
#include "retrieval/range.h"
#include "retrieval/select.h"

enum {
  LANE_ROWS = 16,           /* that share one pass over the signatures */
  LANE_TOKENS_MIN = 65536,  /* below this a second thread costs more than it brings */
  LANE_COUNT_MAX = 64,
};

struct lane {
  struct select selects[LANE_ROWS];
  struct scan_scores scores[LANE_ROWS];
  struct scan_distances distances[LANE_ROWS];
};

/* What all lanes of a scan share; they only read it. */
struct scan {
  const struct lookup_kernels *kernels;
  enum lookup_mode mode;
  const struct range *range;
  const struct query *queries;
  uint32_t rows;       /* at most LANE_ROWS */
  uint32_t candidates; /* C */
};

/* Keys that one lane needs memory for: those of its rows, and as many spare ones as one row has. */
size_t lane_keys(const struct scan *scan);

/* Leaves the best candidates of the ordinals begin .. end - 1 for each row in its select. */
void lane_scan(struct lane *lane, const struct scan *scan, uint64_t *keys, uint32_t begin, uint32_t end);

#endif
