// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "store/segment_write.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/crc32c.h"
#include "store/path.h"

enum { RUNS_MAX = 64 }; /* pieces gathered for one write call */

struct writer {
  const struct io *io;
  const char *path; /* beside the final one */
  int fd;
  const struct segment_header *header;
  uint8_t *table;
  struct iovec runs[RUNS_MAX]; /* consecutive in the file */
  uint8_t padded[RUNS_MAX][SEGMENT_PAGE_BYTES]; /* last pages that are not full of tokens */
  int run_count;
  uint32_t run_first, run_end; /* pages */
};

static int writer_flush(struct writer *w, struct error *error) {
  int count = w->run_count;
  w->run_count = 0;
  return io_write_all(w->io, w->fd, w->runs, count, (off_t)w->run_first * SEGMENT_PAGE_BYTES, w->path, error);
}

/* Adds whole pages from `page` on to what is written next. */
static int writer_pages(struct writer *w, uint32_t page, const uint8_t *bytes, uint32_t count, struct error *error) {
  int result = 0;
  if (!count)
    return 0;
  if (w->run_count && page != w->run_end)
    result = writer_flush(w, error);
  if (!w->run_count)
    w->run_first = page;
  w->runs[w->run_count++] =
      (struct iovec){.iov_base = (void *)(uintptr_t)bytes, .iov_len = (size_t)count * SEGMENT_PAGE_BYTES};
  w->run_end = page + count;
  uint32_t checked = page - 1 - w->header->table_pages;
  for (uint32_t i = 0; i < count; i++)
    store_u32(w->table + (size_t)(checked + i) * 4,
              segment_page_crc(w->header->id, page + i, bytes + (size_t)i * SEGMENT_PAGE_BYTES));
  return result;
}

/* One column: `width` bytes for each of count tokens in `width` pages; pages behind the last token stay holes. */
static int writer_column(struct writer *w, uint32_t page, const uint8_t *bytes, uint32_t width, struct error *error) {
  static const uint8_t zeros[SEGMENT_PAGE_BYTES];
  size_t used = (size_t)width * w->header->count;
  uint32_t full = (uint32_t)(used / SEGMENT_PAGE_BYTES);
  size_t rest = used % SEGMENT_PAGE_BYTES;
  int result = 0;
  if (w->run_count > RUNS_MAX - 2)
    result = writer_flush(w, error);
  if (!result)
    result = writer_pages(w, page, bytes, full, error);
  if (!result && rest) {
    if (w->run_count && page + full != w->run_end) /* so that the slot chosen here is the one used below */
      result = writer_flush(w, error);
    uint8_t *padded = w->padded[w->run_count];
    memset(padded, 0, SEGMENT_PAGE_BYTES);
    memcpy(padded, bytes + (size_t)full * SEGMENT_PAGE_BYTES, rest);
    if (!result)
      result = writer_pages(w, page + full++, padded, 1, error);
  }
  for (uint32_t hole = page + full; hole < page + width; hole++)
    store_u32(w->table + (size_t)(hole - 1 - w->header->table_pages) * 4,
              segment_page_crc(w->header->id, hole, zeros));
  return result;
}

static int write_region(struct writer *w, enum segment_region region, segment_source_fn *source, const void *context,
                        struct error *error) {
  const struct segment_header *h = w->header;
  int result = 0;
  for (uint32_t block = 0; block < h->layers * h->kv_heads && !result; block++) {
    struct record_columns c;
    uint32_t layer = block / h->kv_heads, head = block % h->kv_heads;
    uint32_t page = segment_place(h->layers, h->kv_heads, region, layer, head);
    source(context, layer, head, &c);
    if (region == SEGMENT_SCAN) {
      result = writer_column(w, page, c.signature, RECORD_SIGNATURE_BYTES, error);
      if (!result)
        result = writer_column(w, page + RECORD_SIGNATURE_BYTES, c.k_scale, RECORD_K_SCALE_BYTES, error);
    } else if (region == SEGMENT_RESCORE) {
      result = writer_column(w, page, c.k_mag, RECORD_K_MAG_BYTES, error);
    } else {
      result = writer_column(w, page, c.v_code, RECORD_V_CODE_BYTES, error);
      if (!result)
        result = writer_column(w, page + RECORD_V_CODE_BYTES, c.v_scale, RECORD_V_SCALE_BYTES, error);
      if (!result)
        result = writer_column(w, page + RECORD_V_CODE_BYTES + RECORD_V_SCALE_BYTES, c.crc, RECORD_CRC_BYTES, error);
    }
  }
  return result;
}

static int write_head(struct writer *w, struct segment_header *header, struct error *error) {
  uint8_t page[SEGMENT_PAGE_BYTES];
  size_t table_bytes = (size_t)header->table_pages * SEGMENT_PAGE_BYTES;
  header->table_crc = crc32c(0, w->table, table_bytes);
  segment_header_pack(header, page);
  struct iovec parts[] = {{.iov_base = page, .iov_len = sizeof page}, {.iov_base = w->table, .iov_len = table_bytes}};
  return io_write_all(w->io, w->fd, parts, 2, 0, w->path, error);
}

static int write_all(struct writer *w, struct segment_header *header, const uint8_t *ids, segment_source_fn *source,
                     const void *context, bool *sync_failed, struct error *error) {
  if (io_ftruncate(w->io, w->fd, (off_t)header->pages * SEGMENT_PAGE_BYTES))
    return error_set_errno(error, errno, "cannot size %s", w->path);
  uint32_t page = segment_place(header->layers, header->kv_heads, SEGMENT_IDS, 0, 0);
  int result = writer_column(w, page, ids, SEGMENT_IDS_PAGES, error);
  for (enum segment_region region = SEGMENT_SCAN; region <= SEGMENT_VALUE && !result; region++)
    result = write_region(w, region, source, context, error);
  if (!result)
    result = writer_flush(w, error);
  if (!result)
    result = write_head(w, header, error);
  if (!result && io_fdatasync(w->io, w->fd)) {
    *sync_failed = true;
    result = error_set_errno(error, errno, "cannot sync %s", w->path);
  }
  return result;
}

static int write_beside(struct writer *w, struct segment_header *header, const uint8_t *ids, segment_source_fn *source,
                        const void *context, bool *sync_failed, struct error *error) {
  w->fd = io_open(w->io, w->path, O_RDWR | O_CREAT | O_TRUNC, error);
  if (w->fd < 0)
    return w->fd;
  int result = write_all(w, header, ids, source, context, sync_failed, error);
  if (io_close(w->io, w->fd) && !result)
    result = error_set_errno(error, errno, "cannot close %s", w->path);
  return result;
}

int segment_write(const struct io *io, const char *path, struct segment_header *header, const uint8_t *ids,
                  segment_source_fn *source, const void *context, bool *sync_failed, struct error *error) {
  char beside[PATH_BYTES], parent[PATH_BYTES];
  *sync_failed = false;
  snprintf(beside, sizeof beside, "%s%s", path, PATH_TEMPORARY_SUFFIX);
  snprintf(parent, sizeof parent, "%.*s", (int)(strrchr(path, '/') - path), path);
  header->version = SEGMENT_VERSION;
  header->codec = 1;
  header->table_pages = segment_table_pages(header->layers, header->kv_heads);
  header->pages = segment_total_pages(header->layers, header->kv_heads);
  int directory = io_open_directory(io, parent, error);
  if (directory < 0)
    return directory;
  struct writer *w = calloc(1, sizeof *w);
  uint8_t *table = calloc(header->table_pages, SEGMENT_PAGE_BYTES);
  int result;
  if (!w || !table) {
    result = error_set(error, ERR_MEMORY, "out of memory while writing %s", path);
  } else {
    w->io = io;
    w->path = beside;
    w->header = header;
    w->table = table;
    result = write_beside(w, header, ids, source, context, sync_failed, error);
    if (!result && io->rename(beside, path))
      result = error_set_errno(error, errno, "cannot rename %s to its final name", beside);
    if (result)
      io->unlink(beside);
  }
  free(table);
  free(w);
  if (result) {
    io->close(directory);
    return result;
  }
  result = io_sync_opened(io, directory, parent, error);
  *sync_failed = result != 0;
  return result;
}
