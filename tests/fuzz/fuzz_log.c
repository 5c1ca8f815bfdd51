// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A log: read frame by frame, then replayed by a conversation. Accepted frames lie in the file, follow each other and
// pack to the bytes that they were read from; a conversation that opens gives records that hold their CRC, takes an
// append, and holds the same after it was opened once more.
//
// Input: flags (1 byte), the file. Flags: 1 seals header and frames, 2 seals records too: the fuzzer cannot guess CRCs.
#include "tests/fuzz/fuzz.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "proto/crc32c.h"
#include "store/log_format.h"
#include "store/path.h"
#include "tests/fuzz/fuzz_store.h"

enum { SEAL_FRAMES = 1, SEAL_RECORDS = 2, FILE_BYTES_MAX = 1 << 16 };

static struct archive *archive;
static struct model *model;

/* --- sealing ------------------------------------------------------------------------------------------------------ */

static void seal_records(uint8_t *frame, uint64_t first, uint32_t count, uint32_t ahead) {
  uint8_t *record = frame + LOG_FRAME_HEADER_BYTES + 4 * ((size_t)count + ahead);
  for (uint32_t i = 0; i < count; i++)
    for (uint32_t b = 0; b < FUZZ_BLOCKS; b++, record += RECORD_BYTES)
      record_seal(record, b / FUZZ_HEADS, b % FUZZ_HEADS, first + i);
}

static void seal(uint8_t *bytes, size_t size, const uint8_t *id, unsigned flags) {
  if (!(flags & SEAL_FRAMES) || size < LOG_HEADER_BYTES)
    return;
  memcpy(bytes + 16, id, LIMIT_ID_BYTES);
  store_u32(bytes + 60, crc32c(0, bytes, 60));
  uint64_t salt = load_u64(bytes + 32);
  for (uint64_t at = LOG_HEADER_BYTES; size - at >= LOG_FRAME_HEADER_BYTES + LOG_FRAME_CRC_BYTES;) {
    uint8_t *frame = bytes + at;
    uint32_t seed = log_frame_seed(salt, at), count = load_u32(frame + 32), ahead = load_u32(frame + 36);
    store_u64(frame + 48, salt);
    store_u32(frame + 60, crc32c(seed, frame, 60));
    uint64_t length = load_u64(frame + 8);
    if (length < LOG_FRAME_HEADER_BYTES + LOG_FRAME_CRC_BYTES || length > size - at)
      return;
    if ((flags & SEAL_RECORDS) && count <= LIMIT_APPEND_TOKENS_MAX && ahead <= LIMIT_AHEAD_MAX &&
        length == log_frame_size(count, ahead, FUZZ_LAYERS, FUZZ_HEADS))
      seal_records(frame, load_u64(frame + 16), count, ahead);
    store_u32(frame + length - 4, crc32c(seed, frame, (size_t)length - 4));
    at += length;
  }
}

/* --- the reader --------------------------------------------------------------------------------------------------- */

static void check_frame(const struct log_reader *reader, const struct log_frame *frame, const uint8_t *bytes,
                        size_t size) {
  FUZZ_REQUIRE(frame->offset + frame->size <= size && log_reader_offset(reader) == frame->offset + frame->size);
  FUZZ_REQUIRE(frame->size == log_frame_size(frame->count, frame->ahead, frame->layers, frame->kv_heads));
  FUZZ_REQUIRE(memcmp(frame->ids, bytes + frame->offset + LOG_FRAME_HEADER_BYTES,
                      (size_t)frame->size - LOG_FRAME_HEADER_BYTES - LOG_FRAME_CRC_BYTES) == 0);
  uint8_t packed[LOG_FRAME_HEADER_BYTES];
  log_frame_pack(frame, log_reader_header(reader)->salt, packed);
  FUZZ_REQUIRE(memcmp(packed, bytes + frame->offset, 56) == 0); /* then 4 spare bytes, and the CRC of all */
}

/* Returns the tokens of all good frames; *end tells what follows them. */
static uint64_t read_frames(const char *path, bool skip, const uint8_t *bytes, size_t size, int *end) {
  struct log_reader *reader = NULL;
  struct log_frame frame;
  struct error error = {0};
  bool torn = false;
  uint64_t tokens = 0;
  *end = log_reader_open(&io_system, path, &reader, &torn, &error);
  if (*end) {
    FUZZ_REQUIRE(*end < 0 && error.text[0] && (!torn || *end == -ERR_CORRUPT));
    return 0;
  }
  uint64_t first = log_reader_header(reader)->first;
  while ((*end = (skip ? log_reader_skip : log_reader_next)(reader, &frame, &error)) == LOG_FRAME) {
    FUZZ_REQUIRE(frame.first == first + tokens);
    tokens += frame.count;
    if (!skip)
      check_frame(reader, &frame, bytes, size);
  }
  FUZZ_REQUIRE(tokens <= LIMIT_SEGMENT_TOKENS && (*end > 0 || error.text[0]));
  FUZZ_REQUIRE(*end != LOG_END || log_reader_offset(reader) == size);
  log_reader_close(reader);
  return tokens;
}

/* --- replay ------------------------------------------------------------------------------------------------------- */

static void write_log(const uint8_t *id, const uint8_t *bytes, size_t size) {
  char path[PATH_BYTES];
  path_log(path, archive_directory(archive), id, 0);
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  FUZZ_REQUIRE(fd >= 0 && write(fd, bytes, size) == (ssize_t)size && close(fd) == 0);
}

/* Its log is damaged: it is served up to there, takes nothing, and is the same when it is opened again. */
static void check_damaged(struct conversation *conversation) {
  uint64_t count = conversation_count(conversation), good = fuzz_read_all(conversation);
  uint32_t id = 0;
  struct msg_append append = {.first = count, .ahead = span_of(&id, sizeof id)};
  struct error error = {0};
  bool wrote = false;
  FUZZ_REQUIRE(conversation_append(conversation, &append, &wrote, &error) == -ERR_CORRUPT && !wrote);
  conversation_release(conversation);
  FUZZ_REQUIRE(fuzz_open(archive, model, "c", &conversation, &error) == 0 && conversation_damaged(conversation, NULL));
  FUZZ_REQUIRE(conversation_count(conversation) == count && fuzz_read_all(conversation) == good);
  conversation_release(conversation);
}

/* The reader found so many tokens, and `end` behind them. Releases the conversation. */
static void check_replayed(struct conversation *conversation, uint64_t tokens, int end) {
  uint64_t count = conversation_count(conversation);
  struct error error = {0};
  if (conversation_damaged(conversation, &error)) {
    FUZZ_REQUIRE(count <= tokens && error.text[0]);
    check_damaged(conversation);
    return;
  }
  FUZZ_REQUIRE(end >= 0 || !tokens);
  FUZZ_REQUIRE(count == tokens && conversation_durable(conversation) == count);
  uint64_t good = fuzz_read_all(conversation);
  fuzz_fill(conversation, count + 3, 2, 1);
  FUZZ_REQUIRE(conversation_sync(conversation, &error) == 0);
  conversation_release(conversation);
  if (fuzz_open(archive, model, "c", &conversation, &error))
    fuzz_fail(__FILE__, __LINE__, error.text);
  FUZZ_REQUIRE(conversation_count(conversation) == count + 3);
  /* the three are good, and what was good stays so; a bad one spoils the half that it is in */
  FUZZ_REQUIRE(fuzz_read_all(conversation) >= (good == count * FUZZ_BLOCKS ? good + 3ULL * FUZZ_BLOCKS : 0));
  conversation_release(conversation);
}

/* The conversation's id is drawn when it is made, and sealed into the log then. */
static void replay(uint8_t *bytes, size_t size, unsigned flags) {
  struct conversation *conversation;
  struct error error = {0};
  FUZZ_REQUIRE(fuzz_open(archive, model, "c", &conversation, &error) == 0);
  uint8_t id[LIMIT_ID_BYTES];
  memcpy(id, conversation_id(conversation), sizeof id);
  conversation_release(conversation);
  seal(bytes, size, id, flags);
  write_log(id, bytes, size);
  int end, result = fuzz_open(archive, model, "c", &conversation, &error);
  uint64_t tokens = read_frames(fuzz_file(0, bytes, size), false, bytes, size, &end);
  if (result)
    FUZZ_REQUIRE(result < 0 && error.text[0]);
  else
    check_replayed(conversation, tokens, end);
  if (conversation_delete(archive, FUZZ_UID, "c", &error))
    fuzz_fail(__FILE__, __LINE__, error.text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const uint8_t nobody[LIMIT_ID_BYTES];
  struct fuzz_input input = {data, size};
  unsigned flags = (unsigned)fuzz_take(&input, 1);
  if (input.size > FILE_BYTES_MAX)
    return 0;
  if (!archive)
    archive = fuzz_archive("log", &model);
  uint8_t *bytes = malloc(input.size + 1);
  FUZZ_REQUIRE(bytes);
  memcpy(bytes, input.data, input.size);
  seal(bytes, input.size, nobody, flags);
  const char *path = fuzz_file(0, bytes, input.size);
  int end, skipped;
  uint64_t tokens = read_frames(path, false, bytes, input.size, &end);
  uint64_t fewer = read_frames(path, true, bytes, input.size, &skipped);
  FUZZ_REQUIRE(fewer >= tokens && (skipped < 0 || end >= 0 || fewer > tokens || end != -ERR_VERSION));
  replay(bytes, input.size, flags);
  free(bytes);
  return 0;
}

/* --- seeds -------------------------------------------------------------------------------------------------------- */

static void seed(const char *name, uint32_t step, uint64_t end, uint32_t ahead, int damage) {
  struct conversation *conversation;
  struct error error = {0};
  static uint8_t bytes[FILE_BYTES_MAX];
  char path[PATH_BYTES];
  FUZZ_REQUIRE(fuzz_open(archive, model, "seed", &conversation, &error) == 0);
  for (uint64_t at = step; at <= end; at += step) {
    fuzz_fill(conversation, at, step, ahead);
    FUZZ_REQUIRE(conversation_sync(conversation, &error) == 0);
  }
  path_log(path, archive_directory(archive), conversation_id(conversation), 0);
  FILE *file = fopen(path, "rb");
  FUZZ_REQUIRE(file);
  size_t size = fread(bytes + 1, 1, sizeof bytes - 1, file);
  fclose(file);
  if (damage > 0)
    bytes[1 + damage] ^= 4;
  bytes[0] = damage ? 0 : SEAL_FRAMES | SEAL_RECORDS;
  fuzz_seed(name, bytes, 1 + size - (damage < 0 ? (size_t)-damage : 0));
  conversation_release(conversation);
  FUZZ_REQUIRE(conversation_delete(archive, FUZZ_UID, "seed", &error) == 0);
}

void fuzz_seeds(void) {
  archive = fuzz_archive("log", &model);
  seed("one", 1, 1, 0, 0);
  seed("three", 1, 3, 2, 0);
  seed("frames", 2, 8, 1, 0);
  seed("ahead", 1, 1, 40, 0);
  seed("torn", 1, 2, 0, -9);
  seed("torn-header", 1, 2, 0, -300);
  seed("bad-record", 1, 2, 0, 200);
  seed("bad-header", 1, 1, 0, 30);
  static const uint8_t zeros[200];
  fuzz_seed("zeros", zeros, sizeof zeros);
}
