// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Checking single files.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "store/log.h"
#include "store/mapped_fault.h"
#include "store/verify_internal.h"

/* Path as the user knows it: relative to the archive. */
static const char *relative(const struct verify *v, const char *path) {
  size_t size = v->dir ? strlen(v->dir) : 0;
  return size && strncmp(path, v->dir, size) == 0 && path[size] == '/' ? path + size + 1 : path;
}

int verify_problem(struct verify *v, const char *path, const char *format, ...) {
  char what[ERROR_TEXT_BYTES + 128];
  va_list args;
  va_start(args, format);
  vsnprintf(what, sizeof what, format, args);
  va_end(args);
  v->report->bad++;
  v->report->place = v->place;
  return v->tell ? v->tell(v->context, relative(v, path), what, v->report) : 0;
}

int verify_progress(struct verify *v, const char *path) {
  return v->tell ? v->tell(v->context, relative(v, path), NULL, v->report) : 0;
}

int verify_failure(struct verify *v, const char *path, const struct error *reason, struct error *error) {
  if (reason->code == ERR_MEMORY)
    return error_set(error, ERR_MEMORY, "%s", reason->text);
  if (v->dir && !io_exists(v->io, path))
    return 0;
  return verify_problem(v, path, "%s", reason->text);
}

/* --- segments --------------------------------------------------------------------------------------------------- */

enum { CHUNK_PAGES = 64 };

/* What of a segment was in memory before it was checked. */
struct residency {
  unsigned char *pages; /* NULL: not known */
  uint32_t count;
};

static void look_at_memory(const struct segment *segment, struct residency *residency) {
  residency->count = segment_header(segment)->pages;
  residency->pages = malloc(residency->count);
  if (residency->pages && mincore(segment_address(segment), (size_t)residency->count * SEGMENT_PAGE_BYTES,
                                  residency->pages)) {
    free(residency->pages);
    residency->pages = NULL;
  }
}

/* A scrub leaves memory to those who have a use for it. */
static void leave_memory(const struct segment *segment, struct residency *residency) {
  char *start = segment_address(segment);
  for (uint32_t page = 0, end; residency->pages && page < residency->count; page = end) {
    for (end = page + 1; end < residency->count && (residency->pages[end] & 1) == (residency->pages[page] & 1);)
      end++;
    size_t offset = (size_t)page * SEGMENT_PAGE_BYTES, size = (size_t)(end - page) * SEGMENT_PAGE_BYTES;
    if (residency->pages[page] & 1)
      continue;
    madvise(start + offset, size, MADV_DONTNEED);
    if (segment_fd(segment) >= 0)
      posix_fadvise(segment_fd(segment), (off_t)offset, (off_t)size, POSIX_FADV_DONTNEED);
  }
  free(residency->pages);
}

/* Lookups want single pages of a segment, this wants all. */
static void read_ahead(const struct segment *segment, uint32_t page) {
  if (segment_fd(segment) >= 0)
    posix_fadvise(segment_fd(segment), (off_t)page * SEGMENT_PAGE_BYTES, (off_t)CHUNK_PAGES * SEGMENT_PAGE_BYTES,
                  POSIX_FADV_WILLNEED);
}

static int tell_bad_page(struct verify *v, const struct segment *segment, uint32_t page, const struct error *reason) {
  uint32_t count;
  segment_page_tokens(segment, page, &v->place.first, &count);
  v->place.count = count;
  v->place.page = page;
  int result = verify_problem(v, segment_path(segment), "%s", reason->text);
  v->place.page = 0;
  return result;
}

static int check_pages(struct verify *v, const struct segment *segment, bool *sound) {
  const struct segment_header *header = segment_header(segment);
  int result = 0;
  *sound = true;
  for (uint32_t page = header->table_pages + 1; page < header->pages && !result; page++) {
    struct error reason;
    if ((page - header->table_pages - 1) % CHUNK_PAGES == 0)
      read_ahead(segment, page);
    int bad = segment_check_page(segment, page, &reason);
    if (bad) {
      *sound = false;
      result = tell_bad_page(v, segment, page, &reason);
    }
    if (bad == -ERR_IO)
      break; /* nothing more can be told of this file */
    v->report->bytes_done += SEGMENT_PAGE_BYTES;
    if (!result && page % CHUNK_PAGES == 0)
      result = verify_progress(v, segment_path(segment));
  }
  return result;
}

/* Ids that a repair has given up. */
static int check_ids(struct verify *v, struct segment *segment) {
  const uint8_t *ids = segment_ids(segment);
  uint64_t missing = 0;
  struct error reason;
  mapped_guard_begin();
  for (uint32_t i = 0; i < segment_header(segment)->count; i++)
    missing += load_u32(ids + 4 * (size_t)i) == TOKEN_ID_MISSING;
  mapped_guard_end();
  v->report->missing += missing;
  return segment_check_readable(segment, NULL, &reason) ? verify_problem(v, segment_path(segment), "%s", reason.text)
                                                        : 0;
}

/* Records whose pages are as they were written may still have been bad when they were. */
static int check_block(struct verify *v, struct segment *segment, uint32_t layer, uint32_t head) {
  struct record_columns columns;
  uint32_t bad = 0, missing = 0;
  uint64_t first_bad = 0;
  struct error reason;
  segment_columns(segment, layer, head, &columns);
  mapped_guard_begin();
  for (uint32_t i = 0; i < columns.count; i++) {
    uint8_t record[RECORD_BYTES];
    record_gather(&columns, i, record);
    if (record_missing(record))
      missing++;
    else if (!record_check(record, layer, head, columns.first + i) && bad++ == 0)
      first_bad = columns.first + i;
  }
  mapped_guard_end();
  if (segment_check_readable(segment, NULL, &reason))
    return verify_problem(v, segment_path(segment), "%s", reason.text);
  v->report->records += columns.count;
  v->report->missing += missing;
  if (!bad)
    return 0;
  v->place.first = first_bad;
  v->place.count = columns.first + columns.count - first_bad;
  return verify_problem(v, segment_path(segment),
                        "layer %u, head %u: %u records fail their CRC, the first is of token %llu", layer, head, bad,
                        (unsigned long long)first_bad);
}

/* The file of another segment, or model, under this name? A file that lies elsewhere may be called anything. */
static bool name_differs(const struct verify *v, const char *path, const uint8_t *id) {
  const char *name = strrchr(path, '/');
  uint8_t named[LIMIT_ID_BYTES];
  name = name ? name + 1 : path;
  bool has_id = path_segment_parse(name, named) || path_id_parse(name, named);
  return v->dir ? !has_id || memcmp(named, id, LIMIT_ID_BYTES) != 0
                : has_id && memcmp(named, id, LIMIT_ID_BYTES) != 0;
}

/* Whose tokens a segment holds, by its header; the name by what was read before. */
static void find_owner(struct verify *v, const struct segment_header *header) {
  v->place = (struct damage_place){.owned = true, .first = header->first, .count = header->count};
  memcpy(v->place.conversation, header->conversation, LIMIT_ID_BYTES);
  for (size_t i = 0; v->found && i < v->found->conversation_count; i++) {
    const struct found_conversation *c = &v->found->conversations[i];
    if (memcmp(c->id, header->conversation, LIMIT_ID_BYTES) != 0)
      continue;
    memcpy(v->place.name, c->name, sizeof v->place.name);
    v->place.uid = c->uid;
  }
}

static int check_blocks(struct verify *v, struct segment *segment) {
  const struct segment_header *header = segment_header(segment);
  int result = check_ids(v, segment);
  for (uint32_t layer = 0; layer < header->layers && !result; layer++)
    for (uint32_t head = 0; head < header->kv_heads && !result; head++)
      result = check_block(v, segment, layer, head);
  return result;
}

int verify_segment(struct verify *v, const char *path, struct error *error) {
  struct segment *segment;
  struct error reason;
  struct residency residency = {.pages = NULL};
  bool sound = false;
  v->place = (struct damage_place){.owned = false};
  if (segment_open(v->io, path, &segment, &reason))
    return verify_failure(v, path, &reason, error);
  const struct segment_header *header = segment_header(segment);
  if (v->scrub)
    look_at_memory(segment, &residency);
  find_owner(v, header);
  v->report->segments++;
  v->report->bytes_done += (uint64_t)(header->table_pages + 1) * SEGMENT_PAGE_BYTES;
  int result = name_differs(v, path, header->id) ? verify_problem(v, path, "is the file of another segment") : 0;
  if (!result)
    result = check_pages(v, segment, &sound);
  if (!result && sound)
    result = check_blocks(v, segment);
  leave_memory(segment, &residency);
  segment_unref(segment);
  return result;
}

/* --- logs ------------------------------------------------------------------------------------------------------- */

static int check_frame(struct verify *v, const char *path, const struct log_frame *frame) {
  uint32_t blocks = frame->layers * frame->kv_heads, bad = 0;
  uint64_t first_bad = 0, missing = 0;
  for (uint32_t i = 0; i < frame->count; i++)
    missing += load_u32(frame->ids + 4 * (size_t)i) == TOKEN_ID_MISSING;
  for (uint32_t i = 0; i < frame->count; i++)
    for (uint32_t block = 0; block < blocks; block++) {
      const uint8_t *record = frame->records + ((size_t)i * blocks + block) * RECORD_BYTES;
      if (record_missing(record))
        missing++;
      else if (!record_check(record, block / frame->kv_heads, block % frame->kv_heads, frame->first + i) && bad++ == 0)
        first_bad = frame->first + i;
    }
  v->report->missing += missing;
  v->report->records += (uint64_t)frame->count * blocks;
  v->report->bytes_done += frame->size;
  if (!bad)
    return verify_progress(v, path);
  return verify_problem(v, path, "frame at byte %llu: %u records fail their CRC, the first is of token %llu",
                        (unsigned long long)frame->offset, bad, (unsigned long long)first_bad);
}

/* Every frame passes its CRC for any conversation: only the headers tell whose it is. */
static bool foreign(const struct log_expected *wanted, const struct log_header *header) {
  return wanted->conversation && (memcmp(header->conversation, wanted->conversation, LIMIT_ID_BYTES) != 0 ||
                                  header->first != wanted->first);
}

static bool other_shape(const struct log_expected *wanted, const struct log_frame *frame) {
  return wanted->conversation && frame->count &&
         (frame->layers != wanted->layers || frame->kv_heads != wanted->kv_heads);
}

/* Reads frame after frame. Returns LOG_END, LOG_TORN, negative with a reason, or what `tell` returned in *stopped. */
static int check_frames(struct verify *v, struct log_reader *reader, const char *path,
                        const struct log_expected *wanted, uint64_t *tokens, int *stopped, struct error *reason) {
  struct log_frame frame;
  int result;
  while ((result = log_reader_next(reader, &frame, reason)) == LOG_FRAME) {
    *tokens += frame.count;
    if (other_shape(wanted, &frame))
      return error_set(reason, ERR_CORRUPT, "%s holds records of another geometry than its conversation", path);
    *stopped = check_frame(v, path, &frame);
    if (*stopped)
      break;
  }
  return result;
}

int verify_log(struct verify *v, const char *path, const struct log_expected *wanted, struct log_found *found,
               struct error *error) {
  struct log_reader *reader;
  struct error reason;
  bool torn, last = wanted->last;
  int stopped = 0;
  *found = (struct log_found){0};
  int result = log_reader_open(v->io, path, &reader, &torn, &reason);
  if (result)
    return torn && last ? 0 : verify_failure(v, path, &reason, error);
  v->report->logs++;
  v->report->bytes_done += LOG_HEADER_BYTES;
  if (foreign(wanted, log_reader_header(reader)))
    result = error_set(&reason, ERR_CORRUPT, "%s is the log of another conversation, or of other tokens", path);
  else
    result = check_frames(v, reader, path, wanted, &found->tokens, &stopped, &reason);
  uint64_t offset = found->bytes = log_reader_offset(reader);
  v->place.first = wanted->first + found->tokens; /* a problem is with what follows */
  v->place.count = 0;
  log_reader_close(reader);
  if (stopped)
    return stopped;
  if (result < 0)
    return verify_failure(v, path, &reason, error);
  if (result == LOG_TORN && !last)
    return verify_problem(v, path, "ends in the middle of a frame, at byte %llu, although another log follows",
                          (unsigned long long)offset);
  return 0;
}

/* --- models and metas ------------------------------------------------------------------------------------------- */

static void keep_model(struct found_model *found, const struct msg_model *message) {
  found->good = true;
  found->layers = (uint32_t)message->geometry.layers;
  found->kv_heads = (uint32_t)message->geometry.kv_heads;
  found->head_dim = (uint32_t)message->geometry.head_dim;
  memcpy(found->fingerprint, message->fingerprint.data, LIMIT_FINGERPRINT_BYTES);
}

int verify_model(struct verify *v, const char *path, struct found_model *model, struct error *error) {
  struct model_file file;
  struct error reason;
  if (model_read(v->io, path, &file, &reason))
    return verify_failure(v, path, &reason, error);
  v->report->models++;
  v->report->bytes_done += file.file.size;
  bool differs = name_differs(v, path, file.message.id.data);
  if (model && !differs)
    keep_model(model, &file.message);
  model_file_finish(&file);
  return differs ? verify_problem(v, path, "is the file of another model") : verify_progress(v, path);
}

static int verify_meta(struct verify *v, const char *path, struct error *error) {
  struct meta meta;
  struct error reason;
  if (meta_read(v->io, path, &meta, &reason))
    return verify_failure(v, path, &reason, error);
  v->report->metas++;
  v->report->bytes_done += meta.file.size;
  meta_finish(&meta);
  return verify_progress(v, path);
}

int verify_file(const struct io *io, const char *path, struct verify_report *report, verify_fn *tell, void *context,
                struct error *error) {
  struct verify v = {.io = io ? io : &io_system, .report = report, .tell = tell, .context = context};
  char magic[8] = "";
  struct log_found found;
  const struct log_expected any = {.last = true};
  *report = (struct verify_report){.files_total = 1};
  int fd = io_open(v.io, path, O_RDONLY, error);
  if (fd < 0)
    return fd;
  ssize_t got = v.io->pread(fd, magic, sizeof magic, 0);
  int result = got < 0 ? error_set_errno(error, errno, "cannot read %s", path) : 0;
  v.io->close(fd);
  if (result)
    return result;
  if (memcmp(magic, SEGMENT_MAGIC, sizeof magic) == 0)
    result = verify_segment(&v, path, error);
  else if (memcmp(magic, LOG_MAGIC, sizeof magic) == 0)
    result = verify_log(&v, path, &any, &found, error);
  else if (memcmp(magic, META_MAGIC, sizeof magic) == 0)
    result = verify_meta(&v, path, error);
  else if (memcmp(magic, MODEL_MAGIC, sizeof magic) == 0)
    result = verify_model(&v, path, NULL, error);
  else
    result = verify_problem(&v, path, "is no segment, log, meta or model file, or its beginning was overwritten");
  report->files_done = 1;
  return result;
}
