// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A segment file: up to 4096 tokens of all layers and kv heads, immutable, mapped for reading. FORMAT.md defines it.
// Works on a path alone, with no archive and no lock.
#ifndef COLDKV_STORE_SEGMENT_H
#define COLDKV_STORE_SEGMENT_H

#include <stdbool.h>

#include "proto/record.h"
#include "store/io.h"

#define SEGMENT_MAGIC "CKV-SEGM"
#define SEGMENT_VERSION 1u
#define SEGMENT_PAGE_BYTES 4096u

enum {
  SEGMENT_IDS_PAGES = 4,     /* u32 x 4096 */
  SEGMENT_SCAN_PAGES = 18,   /* per block: signature 16, k_scale 2 */
  SEGMENT_RESCORE_PAGES = 32, /* per block: k_mag */
  SEGMENT_VALUE_PAGES = 54,  /* per block: v_code 48, v_scale 2, crc 4 */
  SEGMENT_BLOCK_PAGES = SEGMENT_SCAN_PAGES + SEGMENT_RESCORE_PAGES + SEGMENT_VALUE_PAGES,
};
_Static_assert((int)SEGMENT_BLOCK_PAGES == (int)RECORD_BYTES, "a column of 4096 records has one page per byte");

/* Page 0. */
struct segment_header {
  uint32_t version;
  uint32_t compat, incompat; /* flags */
  uint8_t id[LIMIT_ID_BYTES];
  uint8_t model[LIMIT_ID_BYTES];
  uint8_t conversation[LIMIT_ID_BYTES]; /* that it was sealed for */
  uint32_t layers, kv_heads, head_dim, codec;
  uint64_t first; /* token index of entry 0 */
  uint32_t count; /* tokens, 1 to LIMIT_SEGMENT_TOKENS */
  uint64_t created_s; /* Unix time */
  uint32_t table_pages; /* of the page-CRC table, which begins at page 1 */
  uint32_t pages;       /* in the file, header and table included */
  uint32_t table_crc;
};

/* Where a page belongs, for inspection and for errors. */
enum segment_region { SEGMENT_HEADER, SEGMENT_TABLE, SEGMENT_IDS, SEGMENT_SCAN, SEGMENT_RESCORE, SEGMENT_VALUE };

/* A mapped segment, counted by references. */
struct segment;

/* Maps the file and checks size, header and page-CRC table; pages are checked when they are asked for.
 * ERR_CORRUPT, ERR_VERSION (newer format, unknown incompat flag), ERR_IO.
 *
 * A page that the disk cannot give (see mapped_fault.h) makes the whole segment unreadable for as long as it is open:
 * the functions that check answer ERR_IO. Whoever reads ids or columns does so inside of a guard, and asks
 * segment_check_readable afterwards. */
int segment_open(const struct io *io, const char *path, struct segment **segment, struct error *error);
struct segment *segment_ref(struct segment *segment);
void segment_unref(struct segment *segment); /* NULL is allowed */

const struct segment_header *segment_header(const struct segment *segment);
const char *segment_path(const struct segment *segment);

/* Token ids, u32 little endian [count]; not checked, see segment_check_ids. */
const uint8_t *segment_ids(const struct segment *segment);

/* Columns of one block; layer and head must be within the header's. Not checked. */
void segment_columns(const struct segment *segment, uint32_t layer, uint32_t head, struct record_columns *columns);

/* First page of a region's part that belongs to (layer, head); both are ignored for header, table and ids. */
uint32_t segment_page(const struct segment *segment, enum segment_region region, uint32_t layer, uint32_t head);
enum segment_region segment_page_region(const struct segment *segment, uint32_t page);
const char *segment_region_name(enum segment_region region);

/* After reading and before what was read is used: ERR_IO names file and page when the disk could not give it. *fresh
 * (NULL allowed) is set to true when this call found the first bad page of the segment. Any thread. */
int segment_check_readable(struct segment *segment, bool *fresh, struct error *error);

/* Compares one page after the table with its CRC: ERR_CORRUPT names page and file; ERR_IO. Any thread. */
int segment_check_page(const struct segment *segment, uint32_t page, struct error *error);

/* True when at least one page that record `i` of a block lies in, other than the scales', is as it was written. A
 * record whose own CRC fits is then this segment's, and not that of the same place in another one. Any thread. */
bool segment_proves(const struct segment *segment, uint32_t layer, uint32_t head, uint32_t i);

/* The page that made segment_check_layer, or (layer SEGMENT_NO_LAYER) segment_check_ids fail; 0: none. Any thread. */
#define SEGMENT_NO_LAYER UINT32_MAX
uint32_t segment_bad_page(const struct segment *segment, uint32_t layer);

/* Tokens whose ids, or fields of records, lie in a page; all of the segment's for header and table. */
void segment_page_tokens(const struct segment *segment, uint32_t page, uint64_t *first, uint32_t *count);

/* Check all scan pages of a layer, or the pages of the ids, the first time they are asked for, and remember the
 * outcome. *fresh (NULL allowed) is set to true when this call found the first bad page of the segment. Any thread. */
int segment_check_layer(struct segment *segment, uint32_t layer, bool *fresh, struct error *error);
int segment_check_ids(struct segment *segment, bool *fresh, struct error *error);

/* The file, open for reading, or -1 where descriptors are scarce; and where in it an address of the mapping lies. */
int segment_fd(const struct segment *segment);
uint64_t segment_offset(const struct segment *segment, const void *address);

/* Where its mapping begins, for calls that say what to do with its pages, and how long it is. */
void *segment_address(const struct segment *segment);
size_t segment_size(const struct segment *segment);

/* Brings the scan region into memory, once, if `kept` (bytes of all segments so kept) stays within the budget: locked
 * there as far as RLIMIT_MEMLOCK goes, else read and left to the kernel. It may take as long as reading it. Any thread;
 * `kept` has to outlive the segment. */
void segment_keep(struct segment *segment, _Atomic uint64_t *kept, uint64_t budget_bytes);

/* --- format, shared with the writer ----------------------------------------------------------------------------- */

uint32_t segment_table_pages(uint32_t layers, uint32_t kv_heads);
uint32_t segment_total_pages(uint32_t layers, uint32_t kv_heads);

/* CRC-32C of segment id, page number (u32) and the page. */
uint32_t segment_page_crc(const uint8_t id[LIMIT_ID_BYTES], uint32_t page, const uint8_t *bytes);

/* Page number of the first page of a block's part, by geometry. */
uint32_t segment_place(uint32_t layers, uint32_t kv_heads, enum segment_region region, uint32_t layer, uint32_t head);

void segment_header_pack(const struct segment_header *header, uint8_t page[SEGMENT_PAGE_BYTES]);
int segment_header_unpack(const uint8_t page[SEGMENT_PAGE_BYTES], struct segment_header *header, const char *path,
                          struct error *error);

#endif
