// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The bytes of log headers and frame headers.
#ifndef COLDKV_STORE_LOG_FORMAT_H
#define COLDKV_STORE_LOG_FORMAT_H

#include "store/log.h"

void log_header_pack(const struct log_header *header, uint8_t bytes[LOG_HEADER_BYTES]);
int log_header_unpack(const uint8_t bytes[LOG_HEADER_BYTES], struct log_header *header, const char *path,
                      struct error *error);

/* The value that both CRCs of a frame at `offset` begin with. */
uint32_t log_frame_seed(uint64_t salt, uint64_t offset);

/* Size that a frame with these numbers has. */
uint64_t log_frame_size(uint32_t count, uint32_t ahead, uint32_t layers, uint32_t kv_heads);

/* Fills the frame's header bytes, its CRC included, from all numbers of `frame`. */
void log_frame_pack(const struct log_frame *frame, uint64_t salt, uint8_t bytes[LOG_FRAME_HEADER_BYTES]);

/* Reads a frame header that stands at `offset`; salt NULL takes the header's own word for it. Sets every number and no
 * pointer. Returns 0, -ERR_CORRUPT, or -ERR_VERSION for flags that are not known. */
int log_frame_unpack(const uint8_t bytes[LOG_FRAME_HEADER_BYTES], const uint64_t *salt, uint64_t offset,
                     struct log_frame *frame);

/* The salt that a good frame header tells. */
uint64_t log_frame_salt(const uint8_t bytes[LOG_FRAME_HEADER_BYTES]);

#endif
