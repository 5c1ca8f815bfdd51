// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Where everything lies in a segment file, and its header page.
#include <string.h>

#include "proto/crc32c.h"
#include "store/segment.h"

/* Byte offsets in page 0; what lies between SEGMENT_END and the CRC is zero. */
enum {
  AT_MAGIC = 0,
  AT_VERSION = 8,
  AT_COMPAT = 12,
  AT_INCOMPAT = 16,
  AT_PAGE_BYTES = 20,
  AT_ID = 24,
  AT_MODEL = 40,
  AT_CONVERSATION = 56,
  AT_LAYERS = 72,
  AT_KV_HEADS = 76,
  AT_HEAD_DIM = 80,
  AT_CODEC = 84,
  AT_FIRST = 88,
  AT_COUNT = 96,
  AT_COLUMN_TOKENS = 100,
  AT_CREATED = 104,
  AT_TABLE_PAGES = 112,
  AT_PAGES = 116,
  AT_TABLE_CRC = 120,
  AT_CRC = SEGMENT_PAGE_BYTES - 4,
};

static uint32_t checked_pages(uint32_t layers, uint32_t kv_heads) {
  return SEGMENT_IDS_PAGES + layers * kv_heads * SEGMENT_BLOCK_PAGES;
}

uint32_t segment_table_pages(uint32_t layers, uint32_t kv_heads) {
  return (4 * checked_pages(layers, kv_heads) + SEGMENT_PAGE_BYTES - 1) / SEGMENT_PAGE_BYTES;
}

uint32_t segment_total_pages(uint32_t layers, uint32_t kv_heads) {
  return 1 + segment_table_pages(layers, kv_heads) + checked_pages(layers, kv_heads);
}

uint32_t segment_place(uint32_t layers, uint32_t kv_heads, enum segment_region region, uint32_t layer, uint32_t head) {
  uint32_t blocks = layers * kv_heads, block = layer * kv_heads + head;
  uint32_t ids = 1 + segment_table_pages(layers, kv_heads);
  uint32_t scan = ids + SEGMENT_IDS_PAGES;
  uint32_t rescore = scan + blocks * SEGMENT_SCAN_PAGES;
  uint32_t value = rescore + blocks * SEGMENT_RESCORE_PAGES;
  switch (region) {
  case SEGMENT_HEADER:
    return 0;
  case SEGMENT_TABLE:
    return 1;
  case SEGMENT_IDS:
    return ids;
  case SEGMENT_SCAN:
    return scan + block * SEGMENT_SCAN_PAGES;
  case SEGMENT_RESCORE:
    return rescore + block * SEGMENT_RESCORE_PAGES;
  case SEGMENT_VALUE:
    break;
  }
  return value + block * SEGMENT_VALUE_PAGES;
}

const char *segment_region_name(enum segment_region region) {
  static const char *const names[] = {"header", "CRC table", "token ids", "scan", "rescore", "value"};
  return names[region];
}

uint32_t segment_page_crc(const uint8_t id[LIMIT_ID_BYTES], uint32_t page, const uint8_t *bytes) {
  uint8_t number[4];
  store_u32(number, page);
  uint32_t seed = crc32c(crc32c(0, id, LIMIT_ID_BYTES), number, sizeof number);
  return crc32c(seed, bytes, SEGMENT_PAGE_BYTES);
}

void segment_header_pack(const struct segment_header *h, uint8_t page[SEGMENT_PAGE_BYTES]) {
  memset(page, 0, SEGMENT_PAGE_BYTES);
  memcpy(page + AT_MAGIC, SEGMENT_MAGIC, 8);
  store_u32(page + AT_VERSION, h->version);
  store_u32(page + AT_COMPAT, h->compat);
  store_u32(page + AT_INCOMPAT, h->incompat);
  store_u32(page + AT_PAGE_BYTES, SEGMENT_PAGE_BYTES);
  memcpy(page + AT_ID, h->id, LIMIT_ID_BYTES);
  memcpy(page + AT_MODEL, h->model, LIMIT_ID_BYTES);
  memcpy(page + AT_CONVERSATION, h->conversation, LIMIT_ID_BYTES);
  store_u32(page + AT_LAYERS, h->layers);
  store_u32(page + AT_KV_HEADS, h->kv_heads);
  store_u32(page + AT_HEAD_DIM, h->head_dim);
  store_u32(page + AT_CODEC, h->codec);
  store_u64(page + AT_FIRST, h->first);
  store_u32(page + AT_COUNT, h->count);
  store_u32(page + AT_COLUMN_TOKENS, LIMIT_SEGMENT_TOKENS);
  store_u64(page + AT_CREATED, h->created_s);
  store_u32(page + AT_TABLE_PAGES, h->table_pages);
  store_u32(page + AT_PAGES, h->pages);
  store_u32(page + AT_TABLE_CRC, h->table_crc);
  store_u32(page + AT_CRC, crc32c(0, page, AT_CRC));
}

static void header_load(const uint8_t *page, struct segment_header *h) {
  h->version = load_u32(page + AT_VERSION);
  h->compat = load_u32(page + AT_COMPAT);
  h->incompat = load_u32(page + AT_INCOMPAT);
  memcpy(h->id, page + AT_ID, LIMIT_ID_BYTES);
  memcpy(h->model, page + AT_MODEL, LIMIT_ID_BYTES);
  memcpy(h->conversation, page + AT_CONVERSATION, LIMIT_ID_BYTES);
  h->layers = load_u32(page + AT_LAYERS);
  h->kv_heads = load_u32(page + AT_KV_HEADS);
  h->head_dim = load_u32(page + AT_HEAD_DIM);
  h->codec = load_u32(page + AT_CODEC);
  h->first = load_u64(page + AT_FIRST);
  h->count = load_u32(page + AT_COUNT);
  h->created_s = load_u64(page + AT_CREATED);
  h->table_pages = load_u32(page + AT_TABLE_PAGES);
  h->pages = load_u32(page + AT_PAGES);
  h->table_crc = load_u32(page + AT_TABLE_CRC);
}

/* Bounds every number before anything is computed from it. */
static bool header_sound(const uint8_t *page, const struct segment_header *h) {
  if (!h->layers || h->layers > LIMIT_LAYERS_MAX || !h->kv_heads || h->kv_heads > LIMIT_KV_HEADS_MAX ||
      h->layers * h->kv_heads > LIMIT_BLOCKS_MAX || !record_head_dim_valid(h->head_dim))
    return false;
  if (!h->count || h->count > LIMIT_SEGMENT_TOKENS || h->first > LIMIT_TOKEN_INDEX_MAX - h->count)
    return false;
  return load_u32(page + AT_PAGE_BYTES) == SEGMENT_PAGE_BYTES &&
         load_u32(page + AT_COLUMN_TOKENS) == LIMIT_SEGMENT_TOKENS &&
         h->table_pages == segment_table_pages(h->layers, h->kv_heads) &&
         h->pages == segment_total_pages(h->layers, h->kv_heads);
}

int segment_header_unpack(const uint8_t page[SEGMENT_PAGE_BYTES], struct segment_header *h, const char *path,
                          struct error *error) {
  if (memcmp(page + AT_MAGIC, SEGMENT_MAGIC, 8) != 0)
    return error_set(error, ERR_CORRUPT, "%s does not begin with %s: it is no segment, or was overwritten", path,
                     SEGMENT_MAGIC);
  if (load_u32(page + AT_CRC) != crc32c(0, page, AT_CRC))
    return error_set(error, ERR_CORRUPT, "%s: the header fails its CRC; restore the file from a backup", path);
  header_load(page, h);
  if (h->version != SEGMENT_VERSION)
    return error_set(error, ERR_VERSION, "%s has format version %u, this program reads %u; use a newer one", path,
                     h->version, SEGMENT_VERSION);
  if (h->incompat)
    return error_set(error, ERR_VERSION,
                     "%s needs features that this program does not have (incompat flags 0x%x); use a newer one", path,
                     h->incompat);
  if (h->codec != 1)
    return error_set(error, ERR_VERSION, "%s has records of codec version %u, this program reads 1; use a newer one",
                     path, h->codec);
  if (!header_sound(page, h))
    return error_set(error, ERR_CORRUPT, "%s: the header contradicts itself", path);
  return 0;
}
