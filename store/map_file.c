// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "store/map_file.h"

#include <stdlib.h>
#include <string.h>

#include "proto/crc32c.h"
#include "proto/validator.h"

/* A file of ours passed its CRC, so that only the number of elements its size allows has to be bounded. */
static int check_shape(const void *data, size_t size, const char *path, struct error *error) {
  const struct validator_limits limits = {
      .bytes_max = size, .depth_max = LIMIT_MESSAGE_DEPTH_MAX, .elements_max = UINT32_MAX};
  struct validator validator;
  size_t used = 0;
  validator_init(&validator, &limits);
  if (validator_feed(&validator, data, size, &used, NULL) || !validator.done || used != size)
    return error_set(error, ERR_CORRUPT, "%s: not one well-formed MessagePack value", path);
  return 0;
}

int map_unpack(const void *data, size_t size, const struct message *type, void *value, msgpack_zone *zone,
               const char *path, struct error *error) {
  int result = check_shape(data, size, path, error);
  if (result)
    return result;
  msgpack_object root;
  size_t used = 0;
  msgpack_unpack_return unpacked = msgpack_unpack(data, size, &used, zone, &root);
  if (unpacked == MSGPACK_UNPACK_NOMEM_ERROR)
    return error_set(error, ERR_MEMORY, "out of memory for %s", path);
  if (unpacked != MSGPACK_UNPACK_SUCCESS && unpacked != MSGPACK_UNPACK_EXTRA_BYTES)
    return error_set(error, ERR_CORRUPT, "%s: MessagePack that cannot be read", path);
  struct error reason = {0};
  if (message_unpack(type, &root, value, &reason))
    return error_set(error, ERR_CORRUPT, "%s: %s", path, reason.text);
  return 0;
}

/* Checks the envelope; *body then points to the map. */
static int check_envelope(const uint8_t *data, size_t size, const char magic[8], const char *path, struct span *body,
                          struct error *error) {
  if (size < MAP_FILE_HEAD_BYTES + MAP_FILE_CRC_BYTES || memcmp(data, magic, 8) != 0)
    return error_set(error, ERR_CORRUPT, "%s does not begin with %.8s: it is no such file, or was overwritten", path,
                     magic);
  uint32_t version = load_u32(data + 8);
  size_t length = load_u32(data + 12);
  if (version != MAP_FILE_VERSION)
    return error_set(error, ERR_VERSION, "%s has format version %u, this program reads %u; use a newer one", path,
                     version, MAP_FILE_VERSION);
  if (length != size - MAP_FILE_HEAD_BYTES - MAP_FILE_CRC_BYTES ||
      load_u32(data + MAP_FILE_HEAD_BYTES + length) != crc32c(0, data, MAP_FILE_HEAD_BYTES + length))
    return error_set(error, ERR_CORRUPT, "%s fails its CRC; restore it from a backup", path);
  *body = span_of(data + MAP_FILE_HEAD_BYTES, length);
  return 0;
}

int map_file_read(const struct io *io, const char *path, const char magic[8], uint64_t bytes_max,
                  const struct message *type, void *value, struct map_file *file, struct error *error) {
  uint8_t *data;
  size_t size;
  *file = (struct map_file){0};
  int result = io_read_file(io, path, (size_t)bytes_max, &data, &size, error);
  return result ? result : map_file_parse(data, size, path, magic, type, value, file, error);
}

int map_file_parse(uint8_t *data, size_t size, const char *path, const char magic[8], const struct message *type,
                   void *value, struct map_file *file, struct error *error) {
  struct span body = {0};
  *file = (struct map_file){.data = data, .size = size};
  int result = check_envelope(file->data, file->size, magic, path, &body, error);
  if (!result) {
    file->zone = msgpack_zone_new(MSGPACK_ZONE_CHUNK_SIZE);
    result = file->zone ? map_unpack(body.data, body.size, type, value, file->zone, path, error)
                        : error_set(error, ERR_MEMORY, "out of memory for %s", path);
  }
  if (result)
    map_file_finish(file);
  return result;
}

void map_file_finish(struct map_file *file) {
  if (file->zone)
    msgpack_zone_free(file->zone);
  free(file->data);
  *file = (struct map_file){0};
}

int map_file_pack(const char magic[8], const struct message *type, const void *value, uint8_t **data, size_t *size,
                  struct error *error) {
  msgpack_sbuffer buffer;
  msgpack_packer packer;
  uint8_t head[MAP_FILE_HEAD_BYTES] = {0}, tail[MAP_FILE_CRC_BYTES];
  msgpack_sbuffer_init(&buffer);
  msgpack_packer_init(&packer, &buffer, msgpack_sbuffer_write);
  int result = msgpack_sbuffer_write(&buffer, (const char *)head, sizeof head);
  if (!result)
    result = message_pack(&packer, type, value);
  if (!result) {
    memcpy(buffer.data, magic, 8);
    store_u32((uint8_t *)buffer.data + 8, MAP_FILE_VERSION);
    store_u32((uint8_t *)buffer.data + 12, (uint32_t)(buffer.size - sizeof head));
    store_u32(tail, crc32c(0, buffer.data, buffer.size));
    result = msgpack_sbuffer_write(&buffer, (const char *)tail, sizeof tail);
  }
  if (result) {
    msgpack_sbuffer_destroy(&buffer);
    return error_set(error, ERR_MEMORY, "out of memory while packing a %s", type->name);
  }
  *size = buffer.size;
  *data = (uint8_t *)msgpack_sbuffer_release(&buffer);
  return 0;
}
