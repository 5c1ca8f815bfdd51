// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The file conversations/<id>/meta: who a conversation is and which segments it consists of.
#ifndef COLDKV_STORE_META_H
#define COLDKV_STORE_META_H

#include "proto/messages.h"
#include "store/map_file.h"

#define META_MAGIC "CKV-META"
#define META_BYTES_MAX (256u << 20)

struct meta {
  struct msg_meta message;    /* spans live until meta_finish */
  struct msg_extent *extents; /* message.extents, unpacked */
  uint32_t extent_count;
  struct map_file file;
};

/* Reads and checks a meta file; works on a path alone. ERR_CORRUPT, ERR_VERSION, ERR_IO. */
int meta_read(const struct io *io, const char *path, struct meta *meta, struct error *error);

/* The same for bytes that meta_pack gave; they become the meta's, or are freed. */
int meta_parse(uint8_t *data, size_t size, const char *path, struct meta *meta, struct error *error);
void meta_finish(struct meta *meta);

/* Packs `message`, whose extents are items; what io_replace_file then writes. */
int meta_pack(const struct msg_meta *message, uint8_t **data, size_t *size, struct error *error);

#endif
