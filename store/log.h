// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A log file: the appended tokens of a conversation that are not in a segment yet, one frame per append. FORMAT.md
// defines it. Reading works on a path alone, with no archive and no lock, and changes nothing.
#ifndef COLDKV_STORE_LOG_H
#define COLDKV_STORE_LOG_H

#include <stdbool.h>

#include "proto/record.h"
#include "store/io.h"

#define LOG_MAGIC "CKV-LOGS"
#define LOG_VERSION 1u
#define LOG_FRAME_MAGIC 0x46564b43u /* "CKVF" */

enum {
  LOG_HEADER_BYTES = 64,
  LOG_FRAME_HEADER_BYTES = 64,
  LOG_FRAME_CRC_BYTES = 4,
};

/* The largest frame that the limits allow. */
#define LOG_FRAME_BYTES_MAX                                                                                            \
  ((uint64_t)LOG_FRAME_HEADER_BYTES + 4 * LIMIT_APPEND_TOKENS_MAX + 4 * LIMIT_AHEAD_MAX +                              \
   (uint64_t)LIMIT_APPEND_TOKENS_MAX * LIMIT_BLOCKS_MAX * RECORD_BYTES + LOG_FRAME_CRC_BYTES)

struct log_header {
  uint32_t version, incompat;
  uint8_t conversation[LIMIT_ID_BYTES];
  uint64_t salt;  /* random; begins every CRC in this file */
  uint64_t first; /* token index of the first token */
  uint64_t created_s;
};

/* One frame. The pointers are set by log_reader_next and live until the reader's next call. */
struct log_frame {
  uint64_t offset; /* in the file */
  uint64_t size;   /* bytes, header and CRC included */
  uint64_t first;  /* token index of ids[0] */
  uint64_t synced; /* bytes of the file that were known to be on disk when this frame was written */
  uint32_t count;  /* tokens; 0: the frame only replaces the ahead ids */
  uint32_t ahead;  /* ids of tokens first + count ..., not stored yet; each frame replaces the ones before */
  uint32_t layers, kv_heads; /* 0 when count is 0 */
  const uint8_t *ids;       /* u32 little endian [count] */
  const uint8_t *ahead_ids; /* u32 little endian [ahead] */
  const uint8_t *records;   /* [count][layers][kv_heads][104] */
};

enum log_end {
  LOG_FRAME = 0, /* there is a frame */
  LOG_END = 1,   /* the file ends after its last frame */
  LOG_TORN = 2,  /* the rest of the file was being written when the machine stopped, and was never acknowledged */
};

struct log_reader;

/* Opens the file and checks its header. ERR_CORRUPT when that fails, ERR_VERSION. A file that was torn while it was
 * made (too short for a header, or zeros in its place and no frame that tells of a sync) is ERR_CORRUPT too; *torn
 * (NULL allowed) is then set to true. */
int log_reader_open(const struct io *io, const char *path, struct log_reader **reader, bool *torn,
                    struct error *error);
void log_reader_close(struct log_reader *reader); /* NULL is allowed */

const struct log_header *log_reader_header(const struct log_reader *reader);
uint64_t log_reader_size(const struct log_reader *reader);   /* of the file */
uint64_t log_reader_offset(const struct log_reader *reader); /* where the good frames seen so far end */

/* The file ends at `size` for this reader: what a failed write may have left behind that is not looked at. */
void log_reader_limit(struct log_reader *reader, uint64_t size);

/* Reads and checks the next frame: both CRCs, sizes, that it goes on where the one before ended. Returns LOG_FRAME,
 * LOG_END or LOG_TORN; -ERR_CORRUPT for damage: bytes that are bad although they had been synced, which a later frame
 * tells. The sentence names the offset. */
int log_reader_next(struct log_reader *reader, struct log_frame *frame, struct error *error);

/* The same from the frame's header alone: the body is neither read nor checked, unless it is the last in the file.
 * ids, ahead_ids and records are NULL. */
int log_reader_skip(struct log_reader *reader, struct log_frame *frame, struct error *error);

#endif
