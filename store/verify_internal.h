// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What the checks of single files, of whole archives and of the catalog share.
#ifndef COLDKV_STORE_VERIFY_INTERNAL_H
#define COLDKV_STORE_VERIFY_INTERNAL_H

#include "store/internal.h"
#include "store/verify.h"

/* One check that is under way. Its functions return 0, a negative error that ends the check, or what `tell` returned.
 * */
struct verify {
  const struct io *io;
  const char *dir; /* of the archive, NULL when single files are checked */
  struct verify_report *report;
  verify_fn *tell;
  void *context;
  struct found *found;
  bool scrub; /* no catalog, and leave no pages behind */
  struct damage_place place; /* of the file that is being checked */
};

/* What the files of an archive say, for the comparison with the catalog. */
struct found {
  struct found_model {
    uint8_t id[LIMIT_ID_BYTES], fingerprint[LIMIT_FINGERPRINT_BYTES];
    uint32_t layers, kv_heads, head_dim;
    bool good; /* its file can be read; otherwise that has been told */
  } *models;
  struct found_conversation {
    uint8_t id[LIMIT_ID_BYTES];
    uint32_t uid;
    char name[LIMIT_NAME_BYTES_MAX + 1];
    uint64_t tokens; /* UINT64_MAX when its files have problems, so that nobody knows */
    uint64_t log_first, log_bytes; /* the last log, as far as its frames are good */
  } *conversations;
  struct found_extent {
    uint8_t segment[LIMIT_ID_BYTES];
  } *extents;
  size_t model_count, model_room, conversation_count, conversation_room, extent_count, extent_room;
  bool bad_meta; /* a conversation's extents are not known */
};

/* Tells of a problem. */
int verify_problem(struct verify *verify, const char *path, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
int verify_progress(struct verify *verify, const char *path);

/* For a failure to read `path`: an error ends the check when memory is short, and is a problem otherwise. A file that
 * is gone while a daemon is at work is no problem. */
int verify_failure(struct verify *verify, const char *path, const struct error *reason, struct error *error);

int verify_segment(struct verify *verify, const char *path, struct error *error);
/* Keeps what the file says in *model, if given. */
int verify_model(struct verify *verify, const char *path, struct found_model *model, struct error *error);

/* What a log has to be, and what was found. */
struct log_expected {
  const uint8_t *conversation; /* NULL: of any, and any tokens */
  uint64_t first;
  uint32_t layers, kv_heads;
  bool last; /* nothing follows it, so that its end may be torn */
};
struct log_found {
  uint64_t tokens; /* in good frames */
  uint64_t bytes;  /* where these end */
};
int verify_log(struct verify *verify, const char *path, const struct log_expected *wanted, struct log_found *found,
               struct error *error);

/* Checks the catalog of an archive, and when it was closed in good order compares it with verify->found. */
int verify_catalog(struct verify *verify, struct error *error);

#endif
