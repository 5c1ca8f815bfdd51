// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What the parts of a repair share.
#ifndef COLDKV_STORE_REPAIR_INTERNAL_H
#define COLDKV_STORE_REPAIR_INTERNAL_H

#include "store/internal.h"
#include "store/repair.h"

struct id_list {
  uint8_t (*ids)[LIMIT_ID_BYTES];
  size_t count, room;
};

struct repair {
  const struct io *io;
  const char *dir;
  bool dry_run;
  repair_fn *tell;
  void *context;
  struct repair_report *report;
  struct repair_known *known;
  size_t known_count, known_room;
  struct id_list listed;  /* segments that metas name */
  struct id_list indexed; /* that the catalog knows */
  bool catalog_clean; /* it was closed in good order: what it says has to agree with the files */
  bool catalog_bad, catalog_stale; /* it cannot be read; it says other things than the files do now */
  bool meta_left; /* a meta could not be made again, so that some segments' users are unknown */
};

/* What the catalog says of a conversation. */
struct repair_known {
  uint8_t id[LIMIT_ID_BYTES], model[LIMIT_ID_BYTES];
  char name[LIMIT_NAME_BYTES_MAX + 1];
  uint32_t uid;
  bool has_model;
  uint64_t tokens, durable, log_first, log_bytes, created_s;
};

/* The conversation that is being repaired. */
struct patient {
  uint8_t id[LIMIT_ID_BYTES];
  struct meta meta;
  const struct repair_known *known; /* NULL: the catalog does not know it */
  uint64_t sealed;                  /* tokens in segments */
};

/* --- repair.c ----------------------------------------------------------------------------------------------------- */

/* 0, or -ERR_MEMORY. */
int id_list_add(struct id_list *list, const uint8_t id[LIMIT_ID_BYTES], struct error *error);

/* --- repair_file.c ------------------------------------------------------------------------------------------------ */

/* Tell of one thing; they return what `tell` does. */
int repair_mended(struct repair *r, const struct patient *p, const char *path, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
int repair_left(struct repair *r, const struct patient *p, const char *path, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
int repair_lost(struct repair *r, const struct patient *p, const char *path, uint64_t first, uint64_t count,
                uint32_t layer, uint32_t head, const char *what);

/* Copies the file into quarantine, on disk, before it is changed. What cannot be read of it is zeros there. */
int repair_keep_copy(struct repair *r, const char *path, struct error *error);

/* The same, then removes it; its directory is synced. */
int repair_take_away(struct repair *r, const char *path, struct error *error);

/* Renames a synced file into its place; its directory is synced. */
int repair_put(struct repair *r, const char *from, const char *path, struct error *error);

/* --- the kinds of files ------------------------------------------------------------------------------------------- */

/* What is lost of a block of tokens: one byte for each token and (layer, head), [tokens][blocks], and for each id. */
struct losses {
  uint64_t first;
  uint32_t tokens, blocks, heads;
  uint8_t *records, *ids;
};
int losses_init(struct losses *losses, uint64_t first, uint32_t tokens, uint32_t layers, uint32_t heads,
                struct error *error);
void losses_finish(struct losses *losses);
/* Tells of them in runs of tokens, whole tokens first. */
int losses_tell(const struct losses *losses, struct repair *r, const struct patient *p, const char *path);

/* Checks and repairs all segments that the meta names, and then the meta. */
int repair_segments(struct repair *r, struct patient *p, struct error *error);

/* The logs behind them. */
int repair_logs(struct repair *r, struct patient *p, struct error *error);

/* Makes the meta of `id` again: from the catalog, the segments and the model's file. Returns 1 when that cannot be done
 * (and has been told). In a dry run it is in memory only. */
int repair_meta(struct repair *r, struct patient *p, const struct error *reason, struct error *error);

/* Reads what the catalog knows; one that cannot be read is noted. */
int repair_read_catalog(struct repair *r, struct error *error);

#endif
