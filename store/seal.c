// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Sealing: a closed log becomes a segment. The order of steps is what recovery relies on:
//   1. the segment file, complete and synced under its final name;
//   2. the log that follows, synced: its newest frame replaces the ids ahead that the sealed log holds;
//   3. meta, which from now on names the segment;
//   4. the catalog;
//   5. the log is unlinked.
// A crash before 3 leaves a segment that nothing names, after 3 a log that is covered by a segment.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/internal.h"
#include "store/segment_write.h"

bool conversation_wants_seal(const struct conversation *conversation) {
  struct conversation *c = (struct conversation *)(uintptr_t)conversation;
  if (archive_read_only(c->archive) || conversation_damaged(c, NULL))
    return false;
  pthread_mutex_lock(&c->lock);
  bool wants = c->closed_count && c->closed[0].tail;
  pthread_mutex_unlock(&c->lock);
  return wants;
}

static void tail_source(const void *context, uint32_t layer, uint32_t head, struct record_columns *columns) {
  tail_columns(context, layer, head, columns);
}

/* Writes the segment of a closed log and maps it. */
static int write_segment(struct conversation *c, const struct tail *tail, struct segment **segment,
                         struct error *error) {
  struct archive *archive = c->archive;
  char path[PATH_BYTES], directory[PATH_BYTES], parent[PATH_BYTES];
  bool sync_failed;
  struct error reason;
  struct segment_header header = {
      .layers = (uint32_t)c->geometry.layers,
      .kv_heads = (uint32_t)c->geometry.kv_heads,
      .head_dim = (uint32_t)c->geometry.head_dim,
      .first = tail_first(tail),
      .count = tail_count(tail),
      .created_s = archive_now_s(),
  };
  int result = archive_random_id(header.id, error);
  if (result)
    return result;
  memcpy(header.model, conversation_model(c), LIMIT_ID_BYTES);
  memcpy(header.conversation, c->id, LIMIT_ID_BYTES);
  path_segment(path, archive->dir, header.id);
  path_segment_directory(directory, archive->dir, header.id);
  path_join(parent, archive->dir, "segments");
  result = io_make_directory(archive->io, directory, error);
  if (!result)
    result = archive_sync_directory(archive, parent, error);
  if (result)
    return result;
  result = segment_write(archive->io, path, &header, tail_ids(tail), tail_source, tail, &sync_failed, &reason);
  if (result) {
    if (sync_failed)
      archive_sync_failed(archive, &reason);
    if (error)
      *error = reason;
    return result;
  }
  return segment_open(archive->io, path, segment, error);
}

/* Syncs the log that begins at `first`, and the directory that names it. */
static int sync_next_log(struct conversation *c, uint64_t first, struct error *error) {
  struct archive *archive = c->archive;
  char path[PATH_BYTES];
  struct error reason;
  path_log(path, archive->dir, c->id, first);
  int fd = io_open(archive->io, path, O_RDWR, error);
  if (fd < 0)
    return fd;
  int result = 0;
  if (io_fdatasync(archive->io, fd)) {
    result = error_set_errno(&reason, errno, "cannot sync %s", path);
    archive_sync_failed(archive, &reason);
    if (error)
      *error = reason;
  }
  archive->io->close(fd);
  path_conversation(path, archive->dir, c->id);
  return result ? result : archive_sync_directory(archive, path, error);
}

/* Writes the meta file with the segment behind the other extents. */
static int name_segment(struct conversation *c, const struct segment *segment, struct error *error) {
  const struct segment_header *header = segment_header(segment);
  pthread_mutex_lock(&c->lock);
  int result = conversation_reserve(c, error);
  if (!result) {
    uint32_t at = c->extent_count;
    memcpy(c->extent_ids[at], header->id, LIMIT_ID_BYTES);
    c->extents[at] = (struct msg_extent){.kind = 0,
                                         .id = span_of(c->extent_ids[at], LIMIT_ID_BYTES),
                                         .origin = header->first,
                                         .first = header->first,
                                         .count = header->count};
  }
  pthread_mutex_unlock(&c->lock);
  /* nobody else changes extents while seal_lock is held; what lies past extent_count is looked at by nobody */
  return result ? result : conversation_write_meta(c, c->extents, c->extent_count + 1, header->model, error);
}

/* Puts the segment in the place of the log for all views made from now on. */
static void take_over(struct conversation *c, struct segment *segment) {
  struct error ignored;
  pthread_mutex_lock(&c->lock);
  c->segments[c->extent_count++] = segment;
  tail_unref(c->closed[0].tail);
  c->closed_count--;
  memmove(c->closed, c->closed + 1, c->closed_count * sizeof c->closed[0]);
  if (c->snapshot)
    (void)conversation_publish(c, &ignored); /* out of memory: the old parts hold the same tokens */
  pthread_mutex_unlock(&c->lock);
  atomic_fetch_add(&c->archive->counters.segments_mapped, 1);
  atomic_fetch_add(&c->archive->counters.segments_sealed, 1);
}

static int tell_catalog(struct conversation *c, const struct segment_header *header, struct error *error) {
  struct catalog *catalog = &c->archive->catalog;
  struct catalog_segment entry = {.first = header->first, .count = header->count, .users = 1};
  struct msg_conversation message;
  MDB_txn *txn;
  memcpy(entry.id, header->id, LIMIT_ID_BYTES);
  memcpy(entry.model, header->model, LIMIT_ID_BYTES);
  memcpy(entry.conversation, header->conversation, LIMIT_ID_BYTES);
  conversation_message(c, &message);
  int result = catalog_begin(catalog, true, &txn, error);
  if (result)
    return result;
  result = catalog_put_segment(catalog, txn, &entry, error);
  if (!result)
    result = catalog_put_conversation(catalog, txn, &message, error);
  if (!result)
    return catalog_commit(txn, error);
  catalog_abort(txn);
  return result;
}

/* Steps 3 to 5. The segment's reference passes to the conversation when it succeeds. */
static int replace_log(struct conversation *c, struct segment *segment, struct error *error) {
  struct archive *archive = c->archive;
  const struct segment_header *header = segment_header(segment);
  struct error reason;
  char path[PATH_BYTES];
  int result = name_segment(c, segment, error);
  if (result)
    return result;
  take_over(c, segment);
  if (tell_catalog(c, header, &reason)) {
    atomic_store(&archive->catalog_stale, true);
    archive_log(archive, "conversation '%s': sealed, but %s", c->name, reason.text);
  }
  path_log(path, archive->dir, c->id, header->first);
  if (archive->io->unlink(path) && errno != ENOENT)
    archive_log(archive, "cannot remove %s, which is sealed: %s", path, strerror(errno));
  return 0;
}

int conversation_seal(struct conversation *c, struct error *error) {
  struct tail *tail = NULL;
  struct segment *segment = NULL;
  uint64_t next = 0;
  int result = archive_check_writable(c->archive, error);
  if (!result)
    result = conversation_check_sound(c, error);
  if (result)
    return result;
  pthread_mutex_lock(&c->lock);
  if (c->closed_count && c->closed[0].tail) {
    tail = tail_ref(c->closed[0].tail);
    next = c->closed_count > 1 ? c->closed[1].first : tail_first(c->tail);
  }
  pthread_mutex_unlock(&c->lock);
  if (!tail)
    return 0;
  result = write_segment(c, tail, &segment, error);
  if (!result)
    result = sync_next_log(c, next, error);
  if (!result) {
    pthread_mutex_lock(&c->seal_lock);
    result = replace_log(c, segment, error);
    pthread_mutex_unlock(&c->seal_lock);
  }
  if (result)
    atomic_store(&c->archive->catalog_stale, true); /* the next start looks for what may be left */
  if (result && segment) {
    if (!archive_read_only(c->archive))
      c->archive->io->unlink(segment_path(segment));
    segment_unref(segment);
  }
  tail_unref(tail);
  return result;
}
