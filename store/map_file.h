// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The envelope of meta and model files: magic, version, one MessagePack map, CRC. FORMAT.md defines it.
#ifndef COLDKV_STORE_MAP_FILE_H
#define COLDKV_STORE_MAP_FILE_H

#include "proto/message.h"
#include "store/io.h"

#define MAP_FILE_VERSION 1u

enum {
  MAP_FILE_HEAD_BYTES = 16, /* magic 8, version 4, length of the map 4 */
  MAP_FILE_CRC_BYTES = 4,
};

/* What a read map points into. */
struct map_file {
  uint8_t *data;
  size_t size;
  msgpack_zone *zone;
};

/* Reads a file of at most bytes_max, checks it and unpacks the map as `type` into `value`; spans in it live until
 * map_file_finish. ERR_CORRUPT, ERR_VERSION, ERR_IO, ERR_MEMORY. */
int map_file_read(const struct io *io, const char *path, const char magic[8], uint64_t bytes_max,
                  const struct message *type, void *value, struct map_file *file, struct error *error);

/* The same for bytes that are in memory, malloc'd; they become the file's, or are freed. */
int map_file_parse(uint8_t *data, size_t size, const char *path, const char magic[8], const struct message *type,
                   void *value, struct map_file *file, struct error *error);
void map_file_finish(struct map_file *file);

/* The same for the bytes of a map without the envelope, as the catalog keeps them; `data` is not copied. */
int map_unpack(const void *data, size_t size, const struct message *type, void *value, msgpack_zone *zone,
               const char *path, struct error *error);

/* Packs a whole file into malloc'd *data. */
int map_file_pack(const char magic[8], const struct message *type, const void *value, uint8_t **data, size_t *size,
                  struct error *error);

#endif
