// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "proto/validator.h"

#include <string.h>

const struct validator_limits validator_limits_default = {
    .bytes_max = LIMIT_MESSAGE_BYTES_MAX,
    .depth_max = LIMIT_MESSAGE_DEPTH_MAX,
    .elements_max = LIMIT_MESSAGE_ELEMENTS_MAX,
};

/* One MessagePack header: how long it is, and what it announces. */
struct header {
  uint32_t size;     /* bytes of the header: 1 to 5 */
  uint64_t body;     /* bytes that follow it */
  uint64_t children; /* values that follow it */
  bool container;
};

/* Bytes of the length field that follows the type byte, by (type - 0xc4), or 0: bin, ext, float, uint, int, fixext,
 * str, array, map. Source: the MessagePack specification, "Formats". */
static uint32_t header_size(uint8_t type) {
  switch (type) {
  case 0xc4: case 0xc7: case 0xd9:
    return 2;
  case 0xc5: case 0xc8: case 0xda: case 0xdc: case 0xde:
    return 3;
  case 0xc6: case 0xc9: case 0xdb: case 0xdd: case 0xdf:
    return 5;
  default:
    return 1;
  }
}

static uint64_t big_endian(const uint8_t *p, uint32_t size) {
  uint64_t v = 0;
  for (uint32_t i = 0; i < size; i++)
    v = v << 8 | p[i];
  return v;
}

/* Reads the complete header at `p`; returns false for the one type byte that MessagePack never uses. */
static bool header_read(const uint8_t *p, struct header *header) {
  uint8_t type = p[0];
  *header = (struct header){.size = header_size(type)};
  uint64_t length = big_endian(p + 1, header->size - 1);
  if (type <= 0x7f || type >= 0xe0) /* fixint */
    return true;
  if (type <= 0x8f) {
    header->container = true;
    header->children = 2u * (type & 15u);
  } else if (type <= 0x9f) {
    header->container = true;
    header->children = type & 15u;
  } else if (type <= 0xbf) {
    header->body = type & 31u;
  } else if (type == 0xc1) {
    return false;
  } else if (type >= 0xc4 && type <= 0xc6) {
    header->body = length;
  } else if (type >= 0xc7 && type <= 0xc9) {
    header->body = length + 1;
  } else if (type == 0xca || type == 0xcb) {
    header->body = type == 0xca ? 4 : 8;
  } else if (type >= 0xcc && type <= 0xd3) {
    header->body = UINT64_C(1) << (type & 3u);
  } else if (type >= 0xd4 && type <= 0xd8) {
    header->body = (UINT64_C(1) << (type - 0xd4u)) + 1;
  } else if (type >= 0xd9 && type <= 0xdb) {
    header->body = length;
  } else if (type >= 0xdc) {
    header->container = true;
    header->children = type >= 0xde ? 2 * length : length;
  }
  return true;
}

void validator_init(struct validator *v, const struct validator_limits *limits) {
  memset(v, 0, sizeof *v);
  v->limits = *limits;
  if (v->limits.depth_max > LIMIT_MESSAGE_DEPTH_MAX)
    v->limits.depth_max = LIMIT_MESSAGE_DEPTH_MAX;
}

/* A value that opened no container is complete: closes every container that it completes. */
static void close_value(struct validator *v) {
  while (v->depth && --v->open[v->depth - 1] == 0)
    v->depth--;
  v->done = v->depth == 0;
}

static int accept_header(struct validator *v, const struct header *header, struct error *error) {
  v->bytes += header->size + header->body;
  if (v->bytes > v->limits.bytes_max)
    return error_set(error, ERR_LIMIT, "message of more than %llu bytes; send less at a time",
                     (unsigned long long)v->limits.bytes_max);
  if (header->children > v->limits.elements_max - v->elements)
    return error_set(error, ERR_LIMIT, "message of more than %u elements; send less at a time",
                     v->limits.elements_max);
  v->elements += (uint32_t)header->children;
  /* every element takes a byte at least, so that a count alone can break the size limit */
  if (v->bytes + header->children > v->limits.bytes_max)
    return error_set(error, ERR_LIMIT, "message announces more elements than fit in %llu bytes",
                     (unsigned long long)v->limits.bytes_max);
  if (header->container && header->children) {
    if (v->depth == v->limits.depth_max)
      return error_set(error, ERR_LIMIT, "message nested deeper than %u", v->limits.depth_max);
    v->open[v->depth++] = header->children;
    return 0;
  }
  v->skip = header->body;
  if (!v->skip)
    close_value(v);
  return 0;
}

/* Gathers one header, over piece borders if need be. Returns bytes taken from `data`; *complete tells the rest. */
static size_t take_header(struct validator *v, const uint8_t *data, size_t size, bool *complete) {
  size_t taken = 0;
  if (v->head_size == 0 && size)
    v->head[v->head_size++] = data[taken++];
  uint32_t wanted = header_size(v->head[0]);
  while (v->head_size < wanted && taken < size)
    v->head[v->head_size++] = data[taken++];
  *complete = v->head_size == wanted;
  return taken;
}

int validator_feed(struct validator *v, const uint8_t *data, size_t size, size_t *used, struct error *error) {
  size_t at = 0;
  while (at < size && !v->done) {
    if (v->skip) {
      size_t step = size - at < v->skip ? size - at : (size_t)v->skip;
      at += step;
      v->skip -= step;
      if (!v->skip)
        close_value(v);
      continue;
    }
    bool complete;
    at += take_header(v, data + at, size - at, &complete);
    if (!complete)
      break;
    struct header header;
    if (!header_read(v->head, &header))
      return error_set(error, ERR_BAD_MESSAGE, "byte 0xc1 is no MessagePack");
    v->head_size = 0;
    int result = accept_header(v, &header, error);
    if (result)
      return result;
  }
  *used = at;
  return 0;
}
