// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "store/log_format.h"

#include <string.h>

#include "proto/crc32c.h"

/* Byte offsets in the file's header. */
enum {
  HEADER_MAGIC = 0,
  HEADER_VERSION = 8,
  HEADER_INCOMPAT = 12,
  HEADER_CONVERSATION = 16,
  HEADER_SALT = 32,
  HEADER_FIRST = 40,
  HEADER_CREATED = 48,
  HEADER_CRC = LOG_HEADER_BYTES - 4,
};

/* Byte offsets in a frame's header. */
enum {
  FRAME_MAGIC = 0,
  FRAME_FLAGS = 4,
  FRAME_SIZE = 8,
  FRAME_FIRST = 16,
  FRAME_SYNCED = 24,
  FRAME_COUNT = 32,
  FRAME_AHEAD = 36,
  FRAME_LAYERS = 40,
  FRAME_KV_HEADS = 44,
  FRAME_SALT = 48,
  FRAME_CRC = LOG_FRAME_HEADER_BYTES - 4,
};

void log_header_pack(const struct log_header *h, uint8_t bytes[LOG_HEADER_BYTES]) {
  memset(bytes, 0, LOG_HEADER_BYTES);
  memcpy(bytes + HEADER_MAGIC, LOG_MAGIC, 8);
  store_u32(bytes + HEADER_VERSION, h->version);
  store_u32(bytes + HEADER_INCOMPAT, h->incompat);
  memcpy(bytes + HEADER_CONVERSATION, h->conversation, LIMIT_ID_BYTES);
  store_u64(bytes + HEADER_SALT, h->salt);
  store_u64(bytes + HEADER_FIRST, h->first);
  store_u64(bytes + HEADER_CREATED, h->created_s);
  store_u32(bytes + HEADER_CRC, crc32c(0, bytes, HEADER_CRC));
}

int log_header_unpack(const uint8_t bytes[LOG_HEADER_BYTES], struct log_header *h, const char *path,
                      struct error *error) {
  if (memcmp(bytes + HEADER_MAGIC, LOG_MAGIC, 8) != 0)
    return error_set(error, ERR_CORRUPT, "%s does not begin with %s: it is no log, or was overwritten", path,
                     LOG_MAGIC);
  if (load_u32(bytes + HEADER_CRC) != crc32c(0, bytes, HEADER_CRC))
    return error_set(error, ERR_CORRUPT, "%s: the header fails its CRC; restore the file from a backup", path);
  h->version = load_u32(bytes + HEADER_VERSION);
  h->incompat = load_u32(bytes + HEADER_INCOMPAT);
  memcpy(h->conversation, bytes + HEADER_CONVERSATION, LIMIT_ID_BYTES);
  h->salt = load_u64(bytes + HEADER_SALT);
  h->first = load_u64(bytes + HEADER_FIRST);
  h->created_s = load_u64(bytes + HEADER_CREATED);
  if (h->version != LOG_VERSION)
    return error_set(error, ERR_VERSION, "%s has format version %u, this program reads %u; use a newer one", path,
                     h->version, LOG_VERSION);
  if (h->incompat)
    return error_set(error, ERR_VERSION,
                     "%s needs features that this program does not have (incompat flags 0x%x); use a newer one", path,
                     h->incompat);
  if (h->first > LIMIT_TOKEN_INDEX_MAX)
    return error_set(error, ERR_CORRUPT, "%s: the header contradicts itself", path);
  return 0;
}

uint32_t log_frame_seed(uint64_t salt, uint64_t offset) {
  uint8_t place[16];
  store_u64(place, salt);
  store_u64(place + 8, offset);
  return crc32c(0, place, sizeof place);
}

uint64_t log_frame_size(uint32_t count, uint32_t ahead, uint32_t layers, uint32_t kv_heads) {
  return (uint64_t)LOG_FRAME_HEADER_BYTES + 4 * (uint64_t)count + 4 * (uint64_t)ahead +
         (uint64_t)count * layers * kv_heads * RECORD_BYTES + LOG_FRAME_CRC_BYTES;
}

void log_frame_pack(const struct log_frame *f, uint64_t salt, uint8_t bytes[LOG_FRAME_HEADER_BYTES]) {
  memset(bytes, 0, LOG_FRAME_HEADER_BYTES);
  store_u32(bytes + FRAME_MAGIC, LOG_FRAME_MAGIC);
  store_u64(bytes + FRAME_SIZE, f->size);
  store_u64(bytes + FRAME_FIRST, f->first);
  store_u64(bytes + FRAME_SYNCED, f->synced);
  store_u32(bytes + FRAME_COUNT, f->count);
  store_u32(bytes + FRAME_AHEAD, f->ahead);
  store_u32(bytes + FRAME_LAYERS, f->layers);
  store_u32(bytes + FRAME_KV_HEADS, f->kv_heads);
  store_u64(bytes + FRAME_SALT, salt);
  store_u32(bytes + FRAME_CRC, crc32c(log_frame_seed(salt, f->offset), bytes, FRAME_CRC));
}

/* Bounds every number before anything is computed from it. */
static bool frame_sound(const struct log_frame *f) {
  if (f->count > LIMIT_APPEND_TOKENS_MAX || f->ahead > LIMIT_AHEAD_MAX || f->layers > LIMIT_LAYERS_MAX ||
      f->kv_heads > LIMIT_KV_HEADS_MAX || f->layers * f->kv_heads > LIMIT_BLOCKS_MAX)
    return false;
  if (f->count && (!f->layers || !f->kv_heads))
    return false;
  return f->first <= LIMIT_TOKEN_INDEX_MAX - f->count &&
         f->size == log_frame_size(f->count, f->ahead, f->layers, f->kv_heads);
}

int log_frame_unpack(const uint8_t bytes[LOG_FRAME_HEADER_BYTES], const uint64_t *salt, uint64_t offset,
                     struct log_frame *f) {
  uint64_t own = load_u64(bytes + FRAME_SALT);
  if (load_u32(bytes + FRAME_MAGIC) != LOG_FRAME_MAGIC || (salt && own != *salt) ||
      load_u32(bytes + FRAME_CRC) != crc32c(log_frame_seed(own, offset), bytes, FRAME_CRC))
    return -ERR_CORRUPT;
  if (load_u32(bytes + FRAME_FLAGS))
    return -ERR_VERSION;
  *f = (struct log_frame){
      .offset = offset,
      .size = load_u64(bytes + FRAME_SIZE),
      .first = load_u64(bytes + FRAME_FIRST),
      .synced = load_u64(bytes + FRAME_SYNCED),
      .count = load_u32(bytes + FRAME_COUNT),
      .ahead = load_u32(bytes + FRAME_AHEAD),
      .layers = load_u32(bytes + FRAME_LAYERS),
      .kv_heads = load_u32(bytes + FRAME_KV_HEADS),
  };
  return frame_sound(f) ? 0 : -ERR_CORRUPT;
}

uint64_t log_frame_salt(const uint8_t bytes[LOG_FRAME_HEADER_BYTES]) { return load_u64(bytes + FRAME_SALT); }
