// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What the files that implement archive.h share: the archive and the conversation, and who may touch which member.
#ifndef COLDKV_STORE_INTERNAL_H
#define COLDKV_STORE_INTERNAL_H

#include <pthread.h>

#include "store/archive.h"
#include "store/catalog.h"
#include "store/damage.h"
#include "store/log_write.h"
#include "store/meta.h"
#include "store/model_file.h"
#include "store/path.h"
#include "store/snapshot.h"

struct archive {
  const struct io *io;
  char *dir;
  int lock_fd;
  struct archive_options options;
  struct catalog catalog;
  struct archive_counters counters;
  struct damage_list damage; /* any thread */
  atomic_bool read_only;
  atomic_bool catalog_stale; /* no mark of a clean shutdown: the next start makes the index again */
  pthread_mutex_t lock;      /* guards the members below */
  struct error read_only_reason;
  struct model *models;               /* that somebody holds */
  struct conversation *conversations; /* that somebody holds; only the committer changes this list */
};

struct model {
  struct archive *archive;
  struct model *next;
  uint32_t refs; /* guarded by archive->lock */
  struct model_file file;
};

/* A closed log that waits to be sealed. */
struct closed_log {
  uint64_t first;
  struct tail *tail; /* a reference; NULL while not loaded */
};

struct conversation {
  struct archive *archive;
  struct conversation *next;
  uint32_t refs; /* the committer's */
  uint8_t id[LIMIT_ID_BYTES], fingerprint[LIMIT_FINGERPRINT_BYTES];
  char name[LIMIT_NAME_BYTES_MAX + 1];
  uint32_t uid;
  uint64_t created_s;
  struct msg_geometry geometry;
  uint8_t rope_freqs[8 * (LIMIT_HEAD_DIM_MAX / 2)];
  _Atomic(struct model *) model; /* set once */

  /* Only the committer touches these. */
  struct log_writer log; /* the open log */
  bool has_log;          /* false until the first append */
  bool recovered;        /* its logs were read once since the archive was opened */
  struct error damage;   /* why `damaged` */
  atomic_bool damaged;   /* its logs end in damage: it can be read up to there, and takes no appends. Never unset */

  pthread_mutex_t seal_lock; /* held while meta and logs change on disk, or are read to be loaded; comes before lock */
  pthread_mutex_t lock;      /* guards the members below; held for moments only */
  struct msg_extent *extents; /* sealed part; ids point into extent_ids. Changes under both locks */
  uint8_t (*extent_ids)[LIMIT_ID_BYTES];
  struct segment **segments; /* [extent_count] */
  uint32_t extent_count, extent_room;
  struct closed_log *closed; /* oldest first */
  uint32_t closed_count, closed_room;
  struct tail *tail;          /* of the open log, NULL when there is none or it is not loaded */
  struct snapshot *snapshot;  /* NULL while not loaded */
  uint32_t ahead[LIMIT_AHEAD_MAX];
  uint32_t ahead_count;

  _Atomic uint64_t count, durable;
  _Atomic uint64_t log_bytes; /* of the open log */
};

/* --- archive.c -------------------------------------------------------------------------------------------------- */

void archive_log(struct archive *archive, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Takes the lock of the archive at `dir`; closing *lock lets go of it. ERR_BUSY names the process that has it. */
int archive_take_lock(const struct io *io, const char *dir, int *lock, struct error *error);

/* Puts a damaged piece on the list, and in the log when it is new. `path` lies in the archive; `place` may be NULL.
 * Any thread. */
void archive_damaged(struct archive *archive, const char *path, const struct damage_place *place, bool by_open,
                     const char *what);

/* 0, or -ERR_READ_ONLY with the reason. */
int archive_check_writable(struct archive *archive, struct error *error);

/* Remembers the first failed sync: from now on nothing is written. Returns -error->code. */
int archive_sync_failed(struct archive *archive, const struct error *error);

/* io_replace_file and io_sync_directory; a failed sync makes the archive read-only. */
int archive_replace_file(struct archive *archive, const char *path, const void *data, size_t size,
                         struct error *error);
int archive_sync_directory(struct archive *archive, const char *path, struct error *error);

uint64_t archive_now_s(void);
int archive_random_id(uint8_t id[LIMIT_ID_BYTES], struct error *error);

/* --- model.c ---------------------------------------------------------------------------------------------------- */

/* model_get for whichever user. */
int model_load(struct archive *archive, const uint8_t *id, struct model **model, struct error *error);
struct model *model_ref(struct model *model);

/* --- conversation.c, open.c, load.c ----------------------------------------------------------------------------- */

/* The object of that id if somebody holds it, without a new reference. */
struct conversation *conversation_find(struct archive *archive, const uint8_t *id);

/* Writes the meta file with `extents` and `model` (NULL: none). */
int conversation_write_meta(struct conversation *conversation, const struct msg_extent *extents, uint32_t extent_count,
                            const uint8_t *model, struct error *error);

/* 0, or -ERR_CORRUPT for a conversation that takes no appends because it is damaged. */
int conversation_check_sound(const struct conversation *conversation, struct error *error);

/* Its identity, for a piece of it that holds tokens first .. first + count - 1. */
void conversation_place(const struct conversation *conversation, uint64_t first, uint64_t count,
                        struct damage_place *place);

/* What the catalog says of it; spans point into the conversation. */
void conversation_message(struct conversation *conversation, struct msg_conversation *message);
int conversation_update_catalog(struct conversation *conversation, struct error *error);

/* Token index after the sealed part. */
uint64_t conversation_sealed(const struct conversation *conversation);

/* Makes room for one more extent, or closed log. */
int conversation_reserve(struct conversation *conversation, struct error *error);

/* Maps segments and recovers the logs of a conversation whose meta has been read. */
int conversation_recover(struct conversation *conversation, const struct meta *meta, struct error *error);

/* Makes the snapshot of what there is now; call with the lock held. */
int conversation_publish(struct conversation *conversation, struct error *error);

void conversation_destroy(struct conversation *conversation);

/* --- append.c --------------------------------------------------------------------------------------------------- */

/* Syncs the open log; a failure makes the archive read-only. */
int conversation_sync_log(struct conversation *conversation, struct error *error);

/* --- logs.c ----------------------------------------------------------------------------------------------------- */

/* The logs in a conversation's directory, ascending, and what else may lie there. */
struct log_list {
  uint64_t *first;
  uint32_t count, room;
};
int log_list_read(const struct io *io, const char *directory, struct log_list *list, struct error *error);
void log_list_finish(struct log_list *list);

/* Counts, from headers, what the logs of a conversation hold from token `sealed` on. */
struct log_census {
  uint64_t tokens; /* after the sealed part */
  uint64_t bytes;
  uint32_t ahead;
  uint64_t changed_s; /* latest change, Unix time */
};
int log_census(const struct io *io, const char *dir, const uint8_t *id, uint64_t sealed, struct log_census *census,
               struct error *error);

/* True when the tokens of a segment that no meta names are elsewhere, in the log it was made from or in another
 * segment, or are being deleted. Anything else may be all that is left of them, and stays. */
bool segment_is_leftover(const struct io *io, const char *dir, const char *path);

/* --- recovery.c, rebuild.c -------------------------------------------------------------------------------------- */

/* Opens the catalog, made again from the files if it is damaged or out of date, and clears away what a crash left. */
int recovery_run(struct archive *archive, struct error *error);

/* Makes the catalog agree with the files. *damaged tells that a conversation's meta cannot be read. */
int rebuild_run(struct archive *archive, bool *damaged, struct error *error);

/* Removes the files of a conversation that was renamed to be deleted. */
int delete_finish(struct archive *archive, const uint8_t *id, struct error *error);

/* --- view.c ------------------------------------------------------------------------------------------------------- */

/* The segment behind a part of the view, NULL for a tail. */
const struct segment *view_segment(const struct view *view, uint32_t part);

#endif
