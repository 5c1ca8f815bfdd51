// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// An archive: one data directory, its models and its conversations. FORMAT.md tells what lies in it.
//
// Threads. One thread at a time (the committer) may call what changes an archive or a conversation: every function
// that is not marked. Functions marked [any] may run on any thread at the same time. Functions marked [sealer] may
// run on one further thread at the same time.
#ifndef COLDKV_STORE_ARCHIVE_H
#define COLDKV_STORE_ARCHIVE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/messages.h"
#include "proto/record.h"
#include "store/damage.h"
#include "store/io.h"

struct archive;
struct model;
struct conversation;

typedef void archive_log_fn(void *context, const char *line);

struct archive_options {
  const struct io *io;      /* NULL: io_system */
  archive_log_fn *log;      /* told of torn frames, quarantined files, rebuilt catalogs; NULL: nobody */
  void *log_context;
  uint64_t catalog_map_bytes; /* LMDB map size; 0: 16 GiB of address space */
};

/* Counters that only grow; read with atomic loads. [any] */
struct archive_counters {
  _Atomic uint64_t appended_tokens, appended_bytes, log_syncs, segments_sealed, torn_frames, quarantined, bad_pages;
  _Atomic uint64_t tail_bytes, segments_mapped, scan_kept_bytes; /* these also shrink */
};

/* Opens the archive at `dir`, making it (0700, whatever the umask) if it does not exist: takes the lock, opens the
 * catalog (checked in a child process, rebuilt from the files when damaged or out of date) and finishes what a crash
 * left half done. ERR_BUSY when another process holds the lock: the sentence names its pid. */
int archive_open(struct archive **archive, const char *dir, const struct archive_options *options,
                 struct error *error);

/* Closes everything; every conversation must have been released. NULL is allowed. */
void archive_close(struct archive *archive);

const struct archive_counters *archive_counters(const struct archive *archive); /* [any] */
const char *archive_directory(const struct archive *archive);                   /* [any] */

/* After a failed sync nothing is written any more: writes answer ERR_READ_ONLY with the reason. [any] */
bool archive_read_only(const struct archive *archive);
const char *archive_read_only_reason(const struct archive *archive); /* "" while it is writable. [any] */

/* What has been found damaged since the archive was opened. [any] */
struct damage_list *archive_damage(struct archive *archive);

/* Adds what somebody else has found, by path relative to the archive; logged when it is new. [any] */
void archive_damage_add(struct archive *archive, const char *path, const struct damage_place *place, const char *what);

/* --- models ----------------------------------------------------------------------------------------------------- */

/* Freezes a model for `uid`, or finds the one that is frozen already for (uid, fingerprint). `wanted` carries
 * geometry, fingerprint, basis, codec, seed, name and both means; id, uid and created_s are given here. Returns a
 * reference. ERR_MODEL_MISMATCH when that fingerprint is frozen with another geometry. Durable on return. */
int model_freeze(struct archive *archive, uint32_t uid, const struct msg_model *wanted, struct model **model,
                 struct error *error);

/* By 16-byte id. ERR_NO_MODEL when there is none, or another user's. Returns a reference. */
int model_get(struct archive *archive, uint32_t uid, const uint8_t *id, struct model **model, struct error *error);

/* The newest of that fingerprint among the user's. ERR_NO_MODEL. Returns a reference. */
int model_find(struct archive *archive, uint32_t uid, const uint8_t *fingerprint, struct model **model,
               struct error *error);

const struct msg_model *model_description(const struct model *model); /* [any]; spans live as long as the reference */
void model_release(struct model *model);                              /* [any]; NULL is allowed */

/* Called for each of the user's models (ids in hex > after, ascending) until it returns nonzero, which is returned.
 * Descriptions come without means and live for the call only. */
typedef int model_visit_fn(void *context, const struct msg_model *model);
int model_each(struct archive *archive, uint32_t uid, const char *after, model_visit_fn *visit, void *context,
               struct error *error);

/* --- conversations ---------------------------------------------------------------------------------------------- */

/* Opens by name; `uid` owns it. With wanted->create one is made (durable on return) if there is none. wanted->model,
 * when given, binds a conversation that has no model yet. Opening the same conversation twice gives the same object
 * with one more reference. ERR_NO_CONVERSATION, ERR_MODEL_MISMATCH (fingerprint, geometry, or another model),
 * ERR_NO_MODEL, ERR_CORRUPT (its meta or model file; or, with wanted->write, its logs). *created tells whether it was
 * made now. */
int conversation_open(struct archive *archive, uint32_t uid, const struct msg_open *wanted,
                      struct conversation **conversation, bool *created, struct error *error);

/* True when its logs end in damage: it can be opened for reading and read up to there; opening it for writing and
 * appends answer ERR_CORRUPT with the reason, which *why (NULL allowed) gets too, until it has been repaired. [any] */
bool conversation_damaged(const struct conversation *conversation, struct error *why);

/* One reference less; the last one syncs what was appended, and frees memory and mappings. */
void conversation_release(struct conversation *conversation);

/* Removes a conversation that nobody holds: ERR_BUSY otherwise. Segments that no other conversation uses go too. */
int conversation_delete(struct archive *archive, uint32_t uid, const char *name, struct error *error);

/* Reads the tail into memory (replays the logs) if it is not there; append, views, reads and seal need that.
 * conversation_unload drops it again, after everything in it is written; both keep all views valid. */
int conversation_load(struct conversation *conversation, struct error *error);
int conversation_unload(struct conversation *conversation, struct error *error);
bool conversation_loaded(const struct conversation *conversation); /* [any] */

/* One frame: `append` gives first, ids, ahead and records. Checks order, overlap and every new record's CRC, writes
 * with one call and publishes the tokens to views made from now on. Not synced yet. What repeats stored tokens with
 * the same bytes changes nothing. ERR_GAP, ERR_CONFLICT, ERR_BAD_RECORD, ERR_NO_MODEL, ERR_BAD_PARAMS, ERR_NO_SPACE,
 * ERR_IO, ERR_READ_ONLY; nothing is stored then. Returns 0 with *wrote false when nothing was new. */
int conversation_append(struct conversation *conversation, const struct msg_append *append, bool *wrote,
                        struct error *error);

/* fdatasync of what was appended since the last one; afterwards durable == count. A failure makes the archive
 * read-only. */
int conversation_sync(struct conversation *conversation, struct error *error);

/* True while closed logs wait to be sealed. [any] */
bool conversation_wants_seal(const struct conversation *conversation);

/* Seals the oldest closed log: segment file, meta, catalog, then the log is unlinked. [sealer] */
int conversation_seal(struct conversation *conversation, struct error *error);

/* Facts; count and durable may be read while another thread appends. [any] */
uint64_t conversation_count(const struct conversation *conversation);
uint64_t conversation_durable(const struct conversation *conversation);
const uint8_t *conversation_id(const struct conversation *conversation);
const char *conversation_name(const struct conversation *conversation);
const struct msg_geometry *conversation_geometry(const struct conversation *conversation);
/* 16 bytes or NULL while it has no model. */
const uint8_t *conversation_model(const struct conversation *conversation);
/* Copies the ahead ids (u32, at most LIMIT_AHEAD_MAX) and returns how many. */
uint32_t conversation_ahead(const struct conversation *conversation, uint32_t *ids);

/* One entry of a list; spans live until the next call for this object's memory: `entry` owns them. */
struct conversation_entry {
  struct msg_conversation message;
  char name[LIMIT_NAME_BYTES_MAX + 1], model_name[LIMIT_NAME_BYTES_MAX + 1];
  uint8_t id[LIMIT_ID_BYTES], model[LIMIT_ID_BYTES];
  struct msg_extent *extents; /* malloc'd, conversation_entry_finish frees it */
  uint8_t *extent_ids;
};
/* Fills `entry` for one conversation by name, extents included. */
int conversation_describe(struct archive *archive, uint32_t uid, const char *name, struct conversation_entry *entry,
                          struct error *error);
void conversation_entry_finish(struct conversation_entry *entry);

typedef int conversation_visit_fn(void *context, const struct msg_conversation *conversation);
/* Each of the user's conversations with a name > after in byte order, without extents; like model_each. */
int conversation_each(struct archive *archive, uint32_t uid, const char *after, conversation_visit_fn *visit,
                      void *context, struct error *error);

/* --- usage ------------------------------------------------------------------------------------------------------ */

/* Bytes that the user's conversations and models take up on disk, by the size of their files. */
int archive_usage(struct archive *archive, uint32_t uid, uint64_t *bytes, struct error *error);

/* What a new conversation, a model of that geometry, or the tokens of an append that are not stored yet will add. */
uint64_t usage_of_conversation(void);
uint64_t usage_of_model(const struct msg_geometry *geometry);
uint64_t usage_of_append(const struct conversation *conversation, const struct msg_append *append);

/* --- reading ---------------------------------------------------------------------------------------------------- */

/* What one thread sees of a conversation at one instant: it stays valid and unchanged until released. */
struct view;

int view_acquire(struct conversation *conversation, struct view **view, struct error *error); /* [any]; needs load */
void view_release(struct view *view);                                                         /* [any] */
uint64_t view_count(const struct view *view);                                                 /* [any] */
uint32_t view_parts(const struct view *view); /* [any]: segments, closed logs, the open tail, in token order */

/* Columns of one part for (layer, head): tokens first .. first + count - 1, which are set on failure as well. Pages of
 * the scan region (signature and k_scale) of a segment are checked the first time a layer is asked for; -ERR_CORRUPT
 * then names the page, the segment is counted in bad_pages, and the caller leaves this part out. -ERR_IO, likewise,
 * when the disk cannot give a page. Columns are read inside of a guard (mapped_fault.h), and view_check_part is asked
 * afterwards. [any] */
int view_columns(struct view *view, uint32_t part, uint32_t layer, uint32_t head, struct record_columns *columns,
                 struct error *error);

/* After columns of a part were read and before what was read is used: -ERR_IO when the disk could not give all of it.
 * The part is bad from then on. [any] */
int view_check_part(struct view *view, uint32_t part, struct error *error);

/* Copies token ids first .. first + count - 1; all of them must be stored. [any] */
int view_tokens(struct view *view, uint64_t first, uint64_t count, uint32_t *ids, struct error *error);

/* Copies and checks the records of one (layer, head): [count][104]. ERR_CORRUPT names the first bad one. [any] */
int view_records(struct view *view, uint32_t layer, uint32_t head, uint64_t first, uint64_t count, uint8_t *records,
                 struct error *error);

/* Brings the scan regions of the view's segments into memory and keeps them there, as long as all that are kept stay
 * within the budget. It reads a lot the first time: not for a thread that others wait for. [any] */
void view_keep(struct view *view, uint64_t budget_bytes);

#endif
