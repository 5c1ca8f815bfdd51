// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Writing a segment file.
#ifndef COLDKV_STORE_SEGMENT_WRITE_H
#define COLDKV_STORE_SEGMENT_WRITE_H

#include "store/segment.h"

/* Gives the columns of one block; their count must be header->count. */
typedef void segment_source_fn(const void *context, uint32_t layer, uint32_t head, struct record_columns *columns);

/* Writes a segment with the ids (u32 [count]) and the blocks that `source` gives as `path`: beside it, fdatasync,
 * rename, fsync of the directory. Version, codec, pages and CRCs of the header are filled in here. Pages without
 * tokens stay holes. *sync_failed tells whether it was a sync that failed. ERR_NO_SPACE, ERR_IO, ERR_MEMORY; nothing
 * is left then. */
int segment_write(const struct io *io, const char *path, struct segment_header *header, const uint8_t *ids,
                  segment_source_fn *source, const void *context, bool *sync_failed, struct error *error);

#endif
