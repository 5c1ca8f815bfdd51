// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// coldkv inspect: one function for each kind of file, and one for a whole conversation. Each fills in the report and
// returns 0, or -code when something is damaged or cannot be had; what could be read has been reported then.
#ifndef COLDKV_TOOLS_COLDKV_INSPECT_H
#define COLDKV_TOOLS_COLDKV_INSPECT_H

#include "proto/messages.h"
#include "proto/record.h"
#include "store/path.h"
#include "tools/coldkv/command.h"
#include "tools/coldkv/report.h"

int inspect_segment(const struct options *options, const char *path, struct report *report, struct error *error);
int inspect_log(const struct options *options, const char *path, struct report *report, struct error *error);
int inspect_meta(const char *path, struct report *report, struct error *error);
int inspect_model(const char *path, struct report *report, struct error *error);
int inspect_conversation(const struct options *options, const char *name, struct report *report,
                         struct error *error);

/* What was asked for beside an overview. */
static inline bool inspect_wants_record(const struct options *options) { return options->token_given; }
static inline bool inspect_wants_ids(const struct options *options) { return options->ids_given || options->text; }

void report_geometry(struct report *report, const struct msg_geometry *geometry);

/* The archive that a file lies `up` levels below, from its absolute path; "" if it has fewer. */
void archive_of(const char *path, unsigned up, char archive[PATH_BYTES]);

/* --- one record --------------------------------------------------------------------------------------------------- */

struct found_record {
  uint8_t record[RECORD_BYTES];
  uint32_t layer, head;
  uint64_t token;
  uint32_t id;                    /* token id */
  uint32_t head_dim;              /* 0: not known */
  uint8_t model[LIMIT_ID_BYTES];
  bool model_known;
  char path[PATH_BYTES];          /* file that holds it */
  char archive[PATH_BYTES];       /* where the model's file may be found; "" if nowhere */
};

/* Finds a record in one file; ERR_RANGE when token, layer or head is outside. */
int record_in_segment(const struct options *options, const char *path, struct found_record *found,
                      struct error *error);
int record_in_log(const struct options *options, const char *path, struct found_record *found, struct error *error);

/* Reports fields and what they decode to. ERR_CORRUPT when its CRC or a scale is wrong. */
int report_record(struct report *report, const struct found_record *found, struct error *error);

/* --- token ids ---------------------------------------------------------------------------------------------------- */

/* Ids of a range, gathered from the files that hold its parts. */
struct id_range {
  uint64_t wanted, wanted_end; /* tokens wanted <= t < wanted_end */
  uint32_t *ids;               /* of tokens first .. first + size - 1 */
  uint64_t first, size, room;
  uint64_t begin, end;         /* tokens that were offered, wanted or not; none while begin >= end */
};

void id_range_begin(struct id_range *range, const struct options *options);
void id_range_finish(struct id_range *range);

/* Takes what is wanted of ids (u32 little endian) of tokens first .. first + count - 1. Parts come in order. */
int id_range_add(struct id_range *range, uint64_t first, const uint8_t *ids, uint32_t count, struct error *error);

int ids_of_segment(const char *path, struct id_range *range, struct error *error);
int ids_of_log(const char *path, struct id_range *range, struct error *error);

/* Prints the range; ERR_RANGE when nothing of it is there. */
int report_ids(struct report *report, const struct options *options, const struct id_range *range,
               struct error *error);

#endif
