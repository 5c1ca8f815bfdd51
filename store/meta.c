// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "store/meta.h"

#include <stdlib.h>

static int unpack_extents(struct meta *meta, const char *path, struct error *error) {
  const struct list *list = &meta->message.extents;
  meta->extents = calloc(list->count ? list->count : 1, sizeof *meta->extents);
  if (!meta->extents)
    return error_set(error, ERR_MEMORY, "out of memory for %u extents of %s", list->count, path);
  uint64_t expected = 0;
  for (uint32_t i = 0; i < list->count; i++) {
    struct msg_extent *extent = &meta->extents[i];
    struct error reason = {0};
    if (message_unpack(&message_extent, &list->objects[i], extent, &reason))
      return error_set(error, ERR_CORRUPT, "%s: extent %u: %s", path, i, reason.text);
    if (extent->kind != 0 || extent->first != expected || extent->origin > extent->first)
      return error_set(error, ERR_CORRUPT, "%s: extent %u does not go on where the one before ends", path, i);
    expected += extent->count;
  }
  meta->extent_count = list->count;
  return 0;
}

int meta_read(const struct io *io, const char *path, struct meta *meta, struct error *error) {
  uint8_t *data;
  size_t size;
  *meta = (struct meta){0};
  int result = io_read_file(io, path, META_BYTES_MAX, &data, &size, error);
  return result ? result : meta_parse(data, size, path, meta, error);
}

int meta_parse(uint8_t *data, size_t size, const char *path, struct meta *meta, struct error *error) {
  *meta = (struct meta){0};
  int result = map_file_parse(data, size, path, META_MAGIC, &message_meta, &meta->message, &meta->file, error);
  if (result)
    return result;
  struct error reason = {0};
  if (geometry_check(&meta->message.geometry, &reason))
    result = error_set(error, ERR_CORRUPT, "%s: %s", path, reason.text);
  if (!result)
    result = unpack_extents(meta, path, error);
  if (result)
    meta_finish(meta);
  return result;
}

void meta_finish(struct meta *meta) {
  free(meta->extents);
  map_file_finish(&meta->file);
  *meta = (struct meta){0};
}

int meta_pack(const struct msg_meta *message, uint8_t **data, size_t *size, struct error *error) {
  int result = map_file_pack(META_MAGIC, &message_meta, message, data, size, error);
  if (!result && *size > META_BYTES_MAX) {
    free(*data);
    return error_set(error, ERR_LIMIT, "the list of %u extents does not fit in a meta file of %u bytes",
                     message->extents.count, META_BYTES_MAX);
  }
  return result;
}
