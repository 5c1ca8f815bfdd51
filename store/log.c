// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "store/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "proto/crc32c.h"
#include "store/log_format.h"

enum { SCAN_BYTES = 1 << 20 };

struct log_reader {
  const struct io *io;
  char *path;
  int fd;
  struct log_header header;
  uint64_t size, offset, expected; /* expected: token index that the next frame must begin with */
  uint32_t layers, kv_heads;       /* of the frames so far, 0 before the first with tokens */
  uint8_t *body;
  size_t body_bytes;
};

/* What a header or a whole frame at some offset turned out to be. */
enum verdict { VERDICT_GOOD = 0, VERDICT_BAD = 1 };

const struct log_header *log_reader_header(const struct log_reader *reader) { return &reader->header; }
uint64_t log_reader_size(const struct log_reader *reader) { return reader->size; }
uint64_t log_reader_offset(const struct log_reader *reader) { return reader->offset; }

void log_reader_limit(struct log_reader *reader, uint64_t size) {
  if (size < reader->size)
    reader->size = size;
}

/* Looks in [from, size) for a frame header that tells that bytes from `bad` on had been synced. With salt NULL each
 * header is believed about its own salt. Returns 1 when there is one, 0 when not, negative for a failed read. */
static int find_proof(struct log_reader *r, uint64_t from, uint64_t bad, const uint64_t *salt, struct error *error) {
  uint8_t *chunk = malloc(SCAN_BYTES + LOG_FRAME_HEADER_BYTES);
  if (!chunk)
    return error_set(error, ERR_MEMORY, "out of memory while reading %s", r->path);
  int found = 0;
  for (uint64_t at = from; !found && at + LOG_FRAME_HEADER_BYTES <= r->size; at += SCAN_BYTES) {
    uint64_t left = r->size - at;
    size_t size = left < SCAN_BYTES + LOG_FRAME_HEADER_BYTES ? (size_t)left : SCAN_BYTES + LOG_FRAME_HEADER_BYTES;
    found = io_read_all(r->io, r->fd, chunk, size, (off_t)at, r->path, error);
    for (size_t i = 0; !found && i < SCAN_BYTES && i + LOG_FRAME_HEADER_BYTES <= size; i += 4) {
      struct log_frame frame;
      if (load_u32(chunk + i) == LOG_FRAME_MAGIC && log_frame_unpack(chunk + i, salt, at + i, &frame) == 0 &&
          frame.synced > bad)
        found = 1;
    }
  }
  free(chunk);
  return found;
}

/* A header is torn when there is none; bad bytes in its place are damage. */
static int judge_header(struct log_reader *r, const uint8_t *bytes, bool *torn, struct error *error) {
  static const uint8_t zeros[LOG_HEADER_BYTES];
  int proof = 0;
  *torn = r->size < LOG_HEADER_BYTES;
  if (!*torn && memcmp(bytes, zeros, sizeof zeros) == 0) {
    proof = find_proof(r, LOG_HEADER_BYTES, 0, NULL, error);
    *torn = proof == 0;
  }
  if (proof < 0)
    return proof;
  return error_set(error, ERR_CORRUPT,
                   *torn ? "%s has no header: it was torn while it was made and holds nothing acknowledged"
                         : "%s: the header fails its checks; restore the file from a backup",
                   r->path);
}

static int read_header(struct log_reader *r, bool *torn, struct error *error) {
  struct stat status;
  uint8_t bytes[LOG_HEADER_BYTES] = {0};
  if (r->io->fstat(r->fd, &status))
    return error_set_errno(error, errno, "cannot stat %s", r->path);
  r->size = (uint64_t)status.st_size;
  if (r->size >= LOG_HEADER_BYTES) {
    int result = io_read_all(r->io, r->fd, bytes, sizeof bytes, 0, r->path, error);
    if (result)
      return result;
  }
  int result = r->size < LOG_HEADER_BYTES ? -ERR_CORRUPT : log_header_unpack(bytes, &r->header, r->path, error);
  if (result == -ERR_CORRUPT)
    return judge_header(r, bytes, torn, error);
  r->offset = LOG_HEADER_BYTES;
  r->expected = r->header.first;
  return result;
}

int log_reader_open(const struct io *io, const char *path, struct log_reader **reader, bool *torn,
                    struct error *error) {
  bool ignored;
  torn = torn ? torn : &ignored;
  *torn = false;
  struct log_reader *r = calloc(1, sizeof *r);
  if (!r)
    return error_set(error, ERR_MEMORY, "out of memory for %s", path);
  *r = (struct log_reader){.io = io, .path = strdup(path), .fd = -1};
  int result = r->path ? 0 : error_set(error, ERR_MEMORY, "out of memory for %s", path);
  if (!result)
    result = r->fd = io_open(io, path, O_RDONLY, error);
  if (result >= 0)
    result = read_header(r, torn, error);
  if (result) {
    log_reader_close(r);
    return result;
  }
  *reader = r;
  return 0;
}

void log_reader_close(struct log_reader *r) {
  if (!r)
    return;
  if (r->fd >= 0)
    r->io->close(r->fd);
  free(r->path);
  free(r->body);
  free(r);
}

static int reserve_body(struct log_reader *r, uint64_t size, struct error *error) {
  if (size <= r->body_bytes)
    return 0;
  uint8_t *body = realloc(r->body, (size_t)size);
  if (!body)
    return error_set(error, ERR_MEMORY, "out of memory for a frame of %llu bytes of %s", (unsigned long long)size,
                     r->path);
  r->body = body;
  r->body_bytes = (size_t)size;
  return 0;
}

/* Reads the frame header at the reader's offset. Returns a verdict, or negative. */
static int read_frame_header(struct log_reader *r, struct log_frame *frame, uint8_t *bytes, struct error *error) {
  if (r->size - r->offset < LOG_FRAME_HEADER_BYTES)
    return VERDICT_BAD;
  int result = io_read_all(r->io, r->fd, bytes, LOG_FRAME_HEADER_BYTES, (off_t)r->offset, r->path, error);
  if (result)
    return result;
  result = log_frame_unpack(bytes, &r->header.salt, r->offset, frame);
  if (result == -ERR_VERSION)
    return error_set(error, ERR_VERSION, "%s has a frame of a kind that this program does not know; use a newer one",
                     r->path);
  return result ? VERDICT_BAD : VERDICT_GOOD;
}

/* Reads the rest of a frame whose header is good and inside the file. Returns a verdict, or negative. */
static int read_frame_body(struct log_reader *r, struct log_frame *frame, struct error *error) {
  int result = reserve_body(r, frame->size, error);
  if (!result)
    result = io_read_all(r->io, r->fd, r->body, (size_t)frame->size, (off_t)r->offset, r->path, error);
  if (result)
    return result;
  size_t body = (size_t)frame->size - LOG_FRAME_CRC_BYTES;
  if (crc32c(log_frame_seed(r->header.salt, r->offset), r->body, body) != load_u32(r->body + body))
    return VERDICT_BAD;
  frame->ids = r->body + LOG_FRAME_HEADER_BYTES;
  frame->ahead_ids = frame->ids + 4 * (size_t)frame->count;
  frame->records = frame->ahead_ids + 4 * (size_t)frame->ahead;
  return VERDICT_GOOD;
}

/* The frame at the offset is bad: torn or damaged? `resume` is where another frame may begin. */
static int judge(struct log_reader *r, uint64_t resume, struct error *error) {
  uint8_t bytes[LOG_FRAME_HEADER_BYTES];
  struct log_frame frame;
  int proof = find_proof(r, resume, r->offset, &r->header.salt, error);
  if (!proof && r->size - r->offset >= sizeof bytes) { /* a good frame of another log: no torn write looks so */
    proof = io_read_all(r->io, r->fd, bytes, sizeof bytes, (off_t)r->offset, r->path, error);
    if (!proof)
      proof = log_frame_unpack(bytes, &r->header.salt, r->offset, &frame) == -ERR_CORRUPT &&
              log_frame_unpack(bytes, NULL, r->offset, &frame) == 0;
  }
  if (proof < 0)
    return proof;
  if (!proof)
    return LOG_TORN;
  return error_set(error, ERR_CORRUPT,
                   "%s: the frame at byte %llu is damaged although it had been written and synced; restore the file "
                   "from a backup (what precedes it can be read with 'coldkv inspect')",
                   r->path, (unsigned long long)r->offset);
}

/* Frames follow each other without gaps, have one geometry and fit in one segment. */
static int check_sequence(struct log_reader *r, const struct log_frame *frame, struct error *error) {
  bool other = frame->count && r->layers && (frame->layers != r->layers || frame->kv_heads != r->kv_heads);
  if (frame->first != r->expected || frame->first + frame->count > r->header.first + LIMIT_SEGMENT_TOKENS || other)
    return error_set(error, ERR_CORRUPT,
                     "%s: the frame at byte %llu does not go on where the one before ended; restore the file from a "
                     "backup",
                     r->path, (unsigned long long)r->offset);
  if (frame->count) {
    r->layers = frame->layers;
    r->kv_heads = frame->kv_heads;
  }
  r->expected += frame->count;
  r->offset += frame->size;
  return LOG_FRAME;
}

static int reader_step(struct log_reader *r, struct log_frame *frame, bool with_body, struct error *error) {
  uint8_t bytes[LOG_FRAME_HEADER_BYTES];
  if (r->offset == r->size)
    return LOG_END;
  int result = read_frame_header(r, frame, bytes, error);
  if (result < 0)
    return result;
  uint64_t resume = r->offset + 4;
  if (result == VERDICT_GOOD) {
    bool inside = frame->size <= r->size - r->offset;
    bool last = frame->size == r->size - r->offset;
    if (inside)
      resume = r->offset + frame->size;
    result = !inside ? VERDICT_BAD : with_body || last ? read_frame_body(r, frame, error) : VERDICT_GOOD;
    if (result < 0)
      return result;
  }
  return result == VERDICT_GOOD ? check_sequence(r, frame, error) : judge(r, resume, error);
}

int log_reader_next(struct log_reader *reader, struct log_frame *frame, struct error *error) {
  return reader_step(reader, frame, true, error);
}

int log_reader_skip(struct log_reader *reader, struct log_frame *frame, struct error *error) {
  int result = reader_step(reader, frame, false, error);
  if (result == LOG_FRAME)
    frame->ids = frame->ahead_ids = frame->records = NULL;
  return result;
}
