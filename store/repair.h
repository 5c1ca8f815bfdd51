// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Making a damaged archive whole again while no daemon runs: what is proven bad is given up, marked as missing, and
// told; everything else stays. FORMAT.md tells how. Before a file is changed its bytes are copied to DIR/quarantine.
// Cut short at any moment and run again, it goes on where it was.
#ifndef COLDKV_STORE_REPAIR_H
#define COLDKV_STORE_REPAIR_H

#include "store/damage.h"
#include "store/io.h"

enum repair_kind {
  REPAIR_MENDED, /* a file was, or would be, written anew, made again or taken away */
  REPAIR_LOST,   /* records, ids or tokens at the end that were given up with it */
  REPAIR_LEFT,   /* nothing can be done here; `what` tells what a person can do */
};

#define REPAIR_ALL UINT32_MAX

struct repair_line {
  enum repair_kind kind;
  const char *path; /* relative to the archive */
  const char *what;
  struct damage_place place; /* whose, and for REPAIR_LOST which tokens */
  uint32_t layer, head;      /* REPAIR_ALL: all, or it is not about records */
};

struct repair_report {
  uint64_t conversations;          /* looked at */
  uint64_t mended, left;           /* lines of these kinds */
  uint64_t records_lost, ids_lost; /* given up, and marked as missing */
  uint64_t tokens_cut;             /* durable once, lost at the ends of conversations */
};

/* Called for everything that is found. A nonzero return stops the repair between two files and is returned. */
typedef int repair_fn(void *context, const struct repair_line *line);

/* Repairs the archive at `dir`. With dry_run nothing is written but LOCK. ERR_BUSY while a daemon runs. Returns 0 when
 * it came to its end, whatever it found. */
int repair_archive(const struct io *io, const char *dir, bool dry_run, repair_fn *tell, void *context,
                   struct repair_report *report, struct error *error);

/* Removes for good what repairs have put in quarantine; *files is how many files that were. */
int repair_purge(const struct io *io, const char *dir, uint64_t *files, struct error *error);

#endif
