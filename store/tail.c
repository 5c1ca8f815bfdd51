// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "store/tail.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

/* Columns stand in the order of the record's fields: entry i of field f of a block is at offset(f) * tokens + i *
 * width(f). Ids follow the last block. */
struct tail {
  const struct io *io;
  atomic_uint refs;
  _Atomic uint32_t count;
  uint64_t first;
  uint32_t layers, kv_heads;
  uint8_t *bytes;
  size_t mapped, counted;
  _Atomic uint64_t *bytes_total;
};

static uint8_t *block_at(const struct tail *tail, uint32_t block) { return tail->bytes + block * RECORD_BLOCK_BYTES; }

static uint8_t *column_at(uint8_t *block, size_t field) { return block + field * LIMIT_SEGMENT_TOKENS; }

int tail_create(const struct io *io, uint64_t first, uint32_t layers, uint32_t kv_heads,
                _Atomic uint64_t *bytes_total, struct tail **out, struct error *error) {
  struct tail *tail = calloc(1, sizeof *tail);
  if (!tail)
    return error_set(error, ERR_MEMORY, "out of memory for the end of a conversation");
  tail->io = io;
  atomic_init(&tail->refs, 1);
  tail->first = first;
  tail->layers = layers;
  tail->kv_heads = kv_heads;
  tail->bytes_total = bytes_total;
  tail->counted = (size_t)layers * kv_heads * RECORD_BLOCK_BYTES;
  tail->mapped = tail->counted + 4 * (size_t)LIMIT_SEGMENT_TOKENS;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void *bytes = io->mmap(NULL, tail->mapped, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (bytes == MAP_FAILED) {
    int result = error_set_errno(error, errno, "cannot reserve %zu bytes for the end of a conversation", tail->mapped);
    free(tail);
    return result;
  }
  tail->bytes = bytes;
  atomic_fetch_add(bytes_total, tail->counted);
  *out = tail;
  return 0;
}

struct tail *tail_ref(struct tail *tail) {
  atomic_fetch_add_explicit(&tail->refs, 1, memory_order_relaxed);
  return tail;
}

void tail_unref(struct tail *tail) {
  if (!tail || atomic_fetch_sub_explicit(&tail->refs, 1, memory_order_acq_rel) != 1)
    return;
  tail->io->munmap(tail->bytes, tail->mapped);
  atomic_fetch_sub(tail->bytes_total, tail->counted);
  free(tail);
}

uint64_t tail_first(const struct tail *tail) { return tail->first; }

uint32_t tail_count(const struct tail *tail) { return atomic_load_explicit(&tail->count, memory_order_acquire); }

uint32_t tail_room(const struct tail *tail) { return LIMIT_SEGMENT_TOKENS - tail_count(tail); }

static void scatter(uint8_t *block, uint32_t i, const uint8_t *record) {
  size_t at = i;
  memcpy(column_at(block, RECORD_SIGNATURE) + at * RECORD_SIGNATURE_BYTES, record + RECORD_SIGNATURE,
         RECORD_SIGNATURE_BYTES);
  memcpy(column_at(block, RECORD_K_SCALE) + at * RECORD_K_SCALE_BYTES, record + RECORD_K_SCALE, RECORD_K_SCALE_BYTES);
  memcpy(column_at(block, RECORD_K_MAG) + at * RECORD_K_MAG_BYTES, record + RECORD_K_MAG, RECORD_K_MAG_BYTES);
  memcpy(column_at(block, RECORD_V_CODE) + at * RECORD_V_CODE_BYTES, record + RECORD_V_CODE, RECORD_V_CODE_BYTES);
  memcpy(column_at(block, RECORD_V_SCALE) + at * RECORD_V_SCALE_BYTES, record + RECORD_V_SCALE, RECORD_V_SCALE_BYTES);
  memcpy(column_at(block, RECORD_CRC) + at * RECORD_CRC_BYTES, record + RECORD_CRC, RECORD_CRC_BYTES);
}

void tail_append(struct tail *tail, const uint8_t *ids, const uint8_t *records, uint32_t count) {
  if (!count)
    return;
  uint32_t old = tail_count(tail), blocks = tail->layers * tail->kv_heads;
  memcpy(tail->bytes + tail->counted + 4 * (size_t)old, ids, 4 * (size_t)count);
  /* block by block, so that the columns written to stay in the cache */
  for (uint32_t block = 0; block < blocks; block++)
    for (uint32_t i = 0; i < count; i++)
      scatter(block_at(tail, block), old + i, records + ((size_t)i * blocks + block) * RECORD_BYTES);
  atomic_store_explicit(&tail->count, old + count, memory_order_release);
}

void tail_retract(struct tail *tail, uint32_t count) {
  atomic_store_explicit(&tail->count, tail_count(tail) - count, memory_order_release);
}

const uint8_t *tail_ids(const struct tail *tail) { return tail->bytes + tail->counted; }

void tail_columns(const struct tail *tail, uint32_t layer, uint32_t head, struct record_columns *columns) {
  uint8_t *block = block_at(tail, layer * tail->kv_heads + head);
  columns->count = tail_count(tail);
  columns->first = tail->first;
  columns->signature = column_at(block, RECORD_SIGNATURE);
  columns->k_scale = column_at(block, RECORD_K_SCALE);
  columns->k_mag = column_at(block, RECORD_K_MAG);
  columns->v_code = column_at(block, RECORD_V_CODE);
  columns->v_scale = column_at(block, RECORD_V_SCALE);
  columns->crc = column_at(block, RECORD_CRC);
}
