// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Reads every byte of an archive or of one file and checks every CRC. Works with and without a running daemon, takes no
// lock and writes nothing.
#ifndef COLDKV_STORE_VERIFY_H
#define COLDKV_STORE_VERIFY_H

#include "store/damage.h"
#include "store/io.h"

struct verify_report {
  uint64_t files_total, files_done; /* files_total is known after the first walk */
  uint64_t bytes_done;
  uint64_t segments, logs, metas, models; /* checked, by kind */
  uint64_t records;                       /* whose CRC was checked */
  uint64_t missing;                       /* records and token ids that a repair has given up: no problem any more */
  uint64_t bad;                           /* problems found */
  struct damage_place place;              /* of the problem that is being told, as far as it is known */
};

/* Called for each problem (path relative to the archive, one sentence), and with what == NULL now and then for
 * progress. A nonzero return stops the check and is returned. */
typedef int verify_fn(void *context, const char *path, const char *what, const struct verify_report *report);

/* Checks the archive at `dir`: every file, that meta and extents fit together, and that the catalog says the same as
 * the files. Returns 0 when the check ran to its end, whatever it found (report->bad). A torn last frame of an open
 * log is no problem: recovery drops it, and it is mentioned by the caller's progress line only. */
int verify_archive(const struct io *io, const char *dir, struct verify_report *report, verify_fn *tell, void *context,
                   struct error *error);

/* The same without the catalog; pages that it brings into memory leave it again. For a check that never ends: `tell` is
 * called for progress often enough (every 256 KiB) to keep it slow. */
int verify_scrub(const struct io *io, const char *dir, struct verify_report *report, verify_fn *tell, void *context,
                 struct error *error);

/* Checks one segment, log, meta or model file, told apart by its magic. */
int verify_file(const struct io *io, const char *path, struct verify_report *report, verify_fn *tell, void *context,
                struct error *error);

#endif
