// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Repairing logs. A frame that passes its CRCs is kept, any other is given up as a whole: nothing in a frame proves
// single records to be this conversation's. Tokens that are lost in between are written as missing; those at the very
// end are cut off, so that the conversation goes on where its good tokens end, with the ids ahead that its last good
// frame tells.
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "proto/crc32c.h"
#include "store/log.h"
#include "store/repair_internal.h"

enum { FILL_TOKENS = 16 };

/* One log, read as a whole. */
struct scan {
  uint8_t *bytes;
  uint64_t size, salt, first;
  uint32_t layers, heads;
  bool header_good, readable; /* readable: `salt` is known */
  struct log_frame *frames;   /* good ones, ascending */
  size_t count, room;
  bool broken;       /* bytes between two good frames are no frame */
  uint64_t end;      /* where the last good frame ends */
  uint64_t tokens_end;
  uint64_t told_end; /* token index that headers of bad frames reach to */
  bool newer;        /* it, or a frame, is of a later version: nothing is known about it */
  bool proof;        /* bytes behind the last good frame were on disk once */
};

static void scan_finish(struct scan *s) {
  free(s->bytes);
  free(s->frames);
}

static int read_bytes(struct repair *r, const char *path, struct scan *s, struct error *error) {
  struct stat status;
  struct error ignored;
  int fd = io_open(r->io, path, O_RDONLY, error);
  if (fd < 0)
    return fd;
  int result = r->io->fstat(fd, &status) ? error_set_errno(error, errno, "cannot stat %s", path) : 0;
  s->size = result ? 0 : (uint64_t)status.st_size;
  s->bytes = calloc(s->size + LOG_FRAME_HEADER_BYTES, 1);
  if (!result && !s->bytes)
    result = error_set(error, ERR_MEMORY, "out of memory for the repair of %s", path);
  for (uint64_t at = 0; !result && at < s->size; at += SEGMENT_PAGE_BYTES) { /* what cannot be read stays zero */
    uint64_t some = s->size - at < SEGMENT_PAGE_BYTES ? s->size - at : SEGMENT_PAGE_BYTES;
    if (io_read_all(r->io, fd, s->bytes + at, (size_t)some, (off_t)at, path, &ignored))
      memset(s->bytes + at, 0, (size_t)some);
  }
  io_close(r->io, fd);
  return result;
}

/* The salt stands in the header, and in the header of every frame. */
static void find_salt(struct scan *s, const struct patient *p) {
  struct log_header header;
  struct log_frame frame;
  struct error ignored;
  int result = s->size < LOG_HEADER_BYTES ? -ERR_CORRUPT : log_header_unpack(s->bytes, &header, "", &ignored);
  s->header_good = !result && memcmp(header.conversation, p->id, LIMIT_ID_BYTES) == 0 && header.first == s->first;
  s->newer = result == -ERR_VERSION;
  s->readable = s->header_good;
  s->salt = s->header_good ? header.salt : 0;
  if (!result)
    return; /* of this conversation, or another one's log with all its frames */
  for (uint64_t at = LOG_HEADER_BYTES; at + LOG_FRAME_HEADER_BYTES <= s->size && !s->readable; at += 4)
    if (log_frame_unpack(s->bytes + at, NULL, at, &frame) == 0) {
      s->salt = log_frame_salt(s->bytes + at);
      s->readable = true;
    }
}

static bool body_good(const struct scan *s, const struct log_frame *f) {
  size_t body = (size_t)f->size - LOG_FRAME_CRC_BYTES;
  const uint8_t *bytes = s->bytes + f->offset;
  return f->size <= s->size - f->offset &&
         crc32c(log_frame_seed(s->salt, f->offset), bytes, body) == load_u32(bytes + body);
}

static int keep_frame(struct scan *s, struct log_frame *f, struct error *error) {
  if (s->count == s->room) {
    size_t room = s->room ? 2 * s->room : 64;
    struct log_frame *grown = realloc(s->frames, room * sizeof *grown);
    if (!grown)
      return error_set(error, ERR_MEMORY, "out of memory for the repair of a log");
    s->frames = grown;
    s->room = room;
  }
  f->ids = s->bytes + f->offset + LOG_FRAME_HEADER_BYTES;
  f->ahead_ids = f->ids + 4 * (size_t)f->count;
  f->records = f->ahead_ids + 4 * (size_t)f->ahead;
  s->frames[s->count++] = *f;
  s->tokens_end = f->first + f->count;
  return 0;
}

/* Goes through the file and keeps every good frame that goes on behind the one before. */
static int scan_frames(struct scan *s, struct error *error) {
  uint64_t at = LOG_HEADER_BYTES;
  int result = 0;
  s->end = LOG_HEADER_BYTES;
  s->tokens_end = s->told_end = s->first;
  while (s->readable && at + LOG_FRAME_HEADER_BYTES <= s->size && !result) {
    struct log_frame f;
    int unpacked = log_frame_unpack(s->bytes + at, &s->salt, at, &f);
    s->newer |= unpacked == -ERR_VERSION;
    bool header = unpacked == 0 && f.first >= s->tokens_end &&
                  f.first + f.count <= s->first + LIMIT_SEGMENT_TOKENS &&
                  (!f.count || (f.layers == s->layers && f.kv_heads == s->heads));
    if (header && body_good(s, &f)) {
      s->broken |= at != s->end;
      result = keep_frame(s, &f, error);
      s->end = at += f.size;
      s->proof = false;
      continue;
    }
    if (header) { /* synced tells what had been on disk before this one; its tokens come after the last good ones */
      s->proof |= f.synced > s->end;
      s->told_end = f.first + f.count > s->told_end ? f.first + f.count : s->told_end;
    }
    at += 4;
  }
  return result;
}

/* --- writing ------------------------------------------------------------------------------------------------------ */

struct rewrite {
  struct repair *r;
  const struct patient *p;
  char path[PATH_BYTES]; /* beside the final one */
  struct log_writer writer;
  uint32_t layers, heads;
};

static int emit(struct rewrite *w, const struct log_frame *frame, struct error *error) {
  return w->writer.fd < 0 ? log_writer_create(&w->writer, w->r->io, w->path, w->p->id, frame, NULL, error)
                          : log_writer_append(&w->writer, frame, error);
}

/* Frames of tokens that are lost. */
static int fill(struct rewrite *w, uint64_t first, uint64_t end, struct error *error) {
  size_t bytes = FILL_TOKENS * (4 + (size_t)w->layers * w->heads * RECORD_BYTES);
  uint8_t *missing = malloc(bytes);
  int result = missing ? 0 : error_set(error, ERR_MEMORY, "out of memory for the repair of a log");
  if (missing)
    memset(missing, 0xff, bytes);
  for (; first < end && !result; first += FILL_TOKENS) {
    uint32_t some = end - first < FILL_TOKENS ? (uint32_t)(end - first) : FILL_TOKENS;
    const struct log_frame frame = {.first = first, .count = some, .layers = w->layers, .kv_heads = w->heads,
                                    .ids = missing, .ahead_ids = missing, .records = missing};
    result = emit(w, &frame, error);
  }
  free(missing);
  return result;
}

/* Good frames and fillers, up to token `target`. */
static int write_frames(struct rewrite *w, const struct scan *s, uint64_t target, struct error *error) {
  uint64_t next = s->first;
  int result = 0;
  for (size_t i = 0; i < s->count && !result; i++) {
    result = fill(w, next, s->frames[i].first, error);
    if (!result)
      result = emit(w, &s->frames[i], error);
    next = s->frames[i].first + s->frames[i].count;
  }
  return result ? result : fill(w, next, target, error);
}

static int rewrite_log(struct repair *r, const struct patient *p, const struct scan *s, uint64_t target,
                       const char *path, struct error *error) {
  struct rewrite w = {.r = r, .p = p, .writer = {.fd = -1}, .layers = s->layers, .heads = s->heads};
  bool sync_failed;
  snprintf(w.path, sizeof w.path, "%.4000s%s", path, PATH_TEMPORARY_SUFFIX);
  int result = write_frames(&w, s, target, error);
  if (!result)
    result = log_writer_sync(&w.writer, &sync_failed, error);
  log_writer_close(&w.writer);
  if (!result)
    result = repair_keep_copy(r, path, error);
  if (!result)
    result = repair_put(r, w.path, path, error);
  if (result)
    r->io->unlink(w.path);
  return result;
}

/* --- one log ------------------------------------------------------------------------------------------------------ */

static void count_lost(struct repair *r, const struct scan *s, uint64_t tokens) {
  r->report->ids_lost += tokens;
  r->report->records_lost += tokens * s->layers * s->heads;
}

static int tell_holes(struct repair *r, const struct patient *p, const struct scan *s, uint64_t target,
                      const char *path) {
  uint64_t next = s->first;
  int result = 0;
  for (size_t i = 0; i <= s->count && !result; i++) {
    uint64_t end = i < s->count ? s->frames[i].first : target;
    if (next < end) {
      count_lost(r, s, end - next);
      result = repair_lost(r, p, path, next, end - next, REPAIR_ALL, REPAIR_ALL, "tokens lost: ids and records");
    }
    next = i < s->count ? s->frames[i].first + s->frames[i].count : next;
  }
  return result;
}

static bool has_hole(const struct scan *s, uint64_t target) {
  uint64_t next = s->first;
  for (size_t i = 0; i < s->count; i++) {
    if (s->frames[i].first != next)
      return true;
    next += s->frames[i].count;
  }
  return next < target;
}

static int tell_cut(struct repair *r, const struct patient *p, uint64_t from, uint64_t end, const char *path) {
  if (end <= from)
    return 0;
  r->catalog_stale = true;
  r->report->tokens_cut += end - from;
  return repair_lost(r, p, path, from, end - from, REPAIR_ALL, REPAIR_ALL,
                     "tokens lost at the end: the conversation goes on before them");
}

/* Repairs what `s` found; `target` is where the next log begins, 0 for the last one. */
static int mend(struct repair *r, struct patient *p, struct scan *s, uint64_t target, const char *path,
                struct error *error) {
  const struct repair_known *known = p->known;
  uint64_t durable_bytes = known && known->log_first == s->first ? known->log_bytes : 0;
  uint64_t durable = known && !target ? known->durable : 0;
  if (s->newer)
    return repair_left(r, p, path, "is of a later version than this program; use a newer one");
  bool cut = !target && (s->proof || durable > s->tokens_end || durable_bytes > s->end);
  bool empty_end = !target && !s->count && s->size <= LOG_HEADER_BYTES; /* torn while it was made */
  if (s->header_good && !s->broken && !cut && !has_hole(s, target))
    return 0;
  if (empty_end && !cut)
    return 0;
  bool holes = has_hole(s, target);
  if (holes && !p->meta.message.model.size)
    return repair_left(r, p, path, "tokens are lost in it, and without a model nobody knows their shape");
  r->catalog_stale = true;
  int result = repair_mended(r, p, path, "is damaged; what is good of it goes into a new one");
  if (!result)
    result = tell_holes(r, p, s, target, path);
  if (!result && !target)
    result = tell_cut(r, p, s->tokens_end, s->told_end > durable ? s->told_end : durable, path);
  if (result || r->dry_run)
    return result;
  return s->count || target ? rewrite_log(r, p, s, target, path, error) : repair_take_away(r, path, error);
}

static void set_shape(struct scan *s, const struct patient *p) {
  s->layers = (uint32_t)p->meta.message.geometry.layers;
  s->heads = (uint32_t)p->meta.message.geometry.kv_heads;
}

static int mend_log(struct repair *r, struct patient *p, uint64_t first, uint64_t next, uint64_t *expected,
                    struct error *error) {
  struct scan s = {.first = first};
  uint64_t most = first + LIMIT_SEGMENT_TOKENS, target = next > most ? most : next;
  char path[PATH_BYTES];
  path_log(path, r->dir, p->id, first);
  set_shape(&s, p);
  int result = read_bytes(r, path, &s, error);
  if (!result) {
    find_salt(&s, p);
    result = scan_frames(&s, error);
  }
  if (!result)
    result = mend(r, p, &s, target, path, error);
  *expected = target > s.tokens_end ? target : s.tokens_end;
  scan_finish(&s);
  return result;
}

/* Logs that are not there: their tokens are missing. */
static int fill_gap(struct repair *r, struct patient *p, uint64_t from, uint64_t end, struct error *error) {
  int result = 0;
  for (; from < end && !result; from += LIMIT_SEGMENT_TOKENS) {
    struct scan s = {.first = from};
    uint64_t target = end - from < LIMIT_SEGMENT_TOKENS ? end : from + LIMIT_SEGMENT_TOKENS;
    char path[PATH_BYTES];
    path_log(path, r->dir, p->id, from);
    set_shape(&s, p);
    if (!p->meta.message.model.size)
      return repair_left(r, p, path, "is not there, and without a model nobody knows the shape of its tokens");
    r->catalog_stale = true;
    result = repair_mended(r, p, path, "is not there; one in which all tokens are missing takes its place");
    if (!result)
      result = tell_holes(r, p, &s, target, path);
    if (!result && !r->dry_run)
      result = rewrite_log(r, p, &s, target, path, error);
  }
  return result;
}

static int mend_list(struct repair *r, struct patient *p, const struct log_list *list, struct error *error) {
  uint64_t expected = p->sealed;
  uint32_t i = 0;
  int result = 0;
  char path[PATH_BYTES];
  path_conversation(path, r->dir, p->id);
  while (i + 1 < list->count && list->first[i + 1] <= p->sealed)
    i++;
  for (; i < list->count && !result; i++) {
    path_log(path, r->dir, p->id, list->first[i]);
    if (list->first[i] < expected)
      return repair_left(r, p, path, "begins before token %llu, where what precedes it ends",
                         (unsigned long long)expected);
    result = fill_gap(r, p, expected, list->first[i], error);
    if (!result)
      result = mend_log(r, p, list->first[i], i + 1 < list->count ? list->first[i + 1] : 0, &expected, error);
  }
  r->catalog_stale |= r->catalog_clean && (!p->known || p->known->tokens != expected);
  if (!result && p->known && !list->count)
    result = tell_cut(r, p, expected, p->known->durable, path);
  return result;
}

int repair_logs(struct repair *r, struct patient *p, struct error *error) {
  char path[PATH_BYTES];
  struct log_list list;
  path_conversation(path, r->dir, p->id);
  int result = log_list_read(r->io, path, &list, error);
  if (result)
    return result;
  result = mend_list(r, p, &list, error);
  log_list_finish(&list);
  return result;
}
