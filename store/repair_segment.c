// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Repairing segments. A segment is never changed: what is good of a damaged one is written to a new one, in which the
// rest is marked as missing; then the meta names the new one, and then the old one goes into quarantine.
//
// A record is good when its own CRC fits and at least one page that it lies in (but for the scales') is as it was
// written: its own CRC alone does not tell it from the record of the same place in another conversation. An id is good
// when its page is.
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "store/repair_internal.h"
#include "store/segment_write.h"
#include "store/verify.h"

enum { BATCH_TOKENS = 64 };

/* A damaged file, as far as it can be read. */
struct raw {
  uint8_t *bytes, *good; /* good: for each page */
  uint32_t table_pages, pages, layers, heads;
};

static void raw_finish(struct raw *raw) {
  free(raw->bytes);
  free(raw->good);
}

static void read_raw(const struct io *io, const char *path, struct raw *raw) {
  struct error ignored;
  int fd = io_open(io, path, O_RDONLY, &ignored);
  for (uint32_t page = 0; fd >= 0 && page < raw->pages; page++) {
    uint8_t *to = raw->bytes + (size_t)page * SEGMENT_PAGE_BYTES;
    if (io_read_all(io, fd, to, SEGMENT_PAGE_BYTES, (off_t)page * SEGMENT_PAGE_BYTES, path, &ignored))
      memset(to, 0, SEGMENT_PAGE_BYTES);
  }
  if (fd >= 0)
    io_close(io, fd);
}

/* A page proves itself by its entry in the table, whether the table as a whole is good or not. */
static int raw_read(struct raw *raw, const struct io *io, const char *path, const struct msg_geometry *g,
                    const uint8_t *id, struct error *error) {
  *raw = (struct raw){.layers = (uint32_t)g->layers, .heads = (uint32_t)g->kv_heads};
  raw->table_pages = segment_table_pages(raw->layers, raw->heads);
  raw->pages = segment_total_pages(raw->layers, raw->heads);
  raw->bytes = calloc(raw->pages, SEGMENT_PAGE_BYTES);
  raw->good = calloc(raw->pages, 1);
  if (!raw->bytes || !raw->good) {
    raw_finish(raw);
    return error_set(error, ERR_MEMORY, "out of memory for the repair of %s", path);
  }
  read_raw(io, path, raw);
  for (uint32_t page = 1 + raw->table_pages; page < raw->pages; page++) {
    uint32_t wanted = load_u32(raw->bytes + SEGMENT_PAGE_BYTES + 4 * (size_t)(page - 1 - raw->table_pages));
    raw->good[page] = segment_page_crc(id, page, raw->bytes + (size_t)page * SEGMENT_PAGE_BYTES) == wanted;
  }
  return 0;
}

static bool page_holds(const struct raw *raw, uint32_t column, uint32_t width, uint32_t i) {
  return raw->good[column + i * width / SEGMENT_PAGE_BYTES];
}

/* Copies record i of a block out; false when it is lost. */
static bool raw_record(const struct raw *raw, uint32_t layer, uint32_t head, uint32_t i, uint64_t token,
                       uint8_t record[RECORD_BYTES]) {
  uint32_t scan = segment_place(raw->layers, raw->heads, SEGMENT_SCAN, layer, head);
  uint32_t rescore = segment_place(raw->layers, raw->heads, SEGMENT_RESCORE, layer, head);
  uint32_t value = segment_place(raw->layers, raw->heads, SEGMENT_VALUE, layer, head);
  uint32_t v_scale = value + RECORD_V_CODE_BYTES, crc = v_scale + RECORD_V_SCALE_BYTES;
  const uint8_t *pages = raw->bytes;
  const struct record_columns columns = {
      .signature = pages + (size_t)scan * SEGMENT_PAGE_BYTES,
      .k_scale = pages + (size_t)(scan + RECORD_SIGNATURE_BYTES) * SEGMENT_PAGE_BYTES,
      .k_mag = pages + (size_t)rescore * SEGMENT_PAGE_BYTES,
      .v_code = pages + (size_t)value * SEGMENT_PAGE_BYTES,
      .v_scale = pages + (size_t)v_scale * SEGMENT_PAGE_BYTES,
      .crc = pages + (size_t)crc * SEGMENT_PAGE_BYTES,
  };
  record_gather(&columns, i, record);
  bool proven = page_holds(raw, scan, RECORD_SIGNATURE_BYTES, i) || page_holds(raw, rescore, RECORD_K_MAG_BYTES, i) ||
                page_holds(raw, value, RECORD_V_CODE_BYTES, i) || page_holds(raw, crc, RECORD_CRC_BYTES, i);
  if (proven && (record_check(record, layer, head, token) || record_missing(record)))
    return true;
  memset(record, 0xff, RECORD_BYTES);
  return false;
}

static void salvage_token(const struct raw *raw, uint32_t i, struct losses *losses, uint8_t *id, uint8_t *records) {
  uint32_t ids = segment_place(raw->layers, raw->heads, SEGMENT_IDS, 0, 0);
  losses->ids[i] = !page_holds(raw, ids, 4, i);
  store_u32(id, losses->ids[i] ? TOKEN_ID_MISSING
                               : load_u32(raw->bytes + (size_t)ids * SEGMENT_PAGE_BYTES + 4 * (size_t)i));
  for (uint32_t b = 0; b < losses->blocks; b++)
    losses->records[(size_t)i * losses->blocks + b] =
        !raw_record(raw, b / raw->heads, b % raw->heads, i, losses->first + i, records + (size_t)b * RECORD_BYTES);
}

static int salvage(const struct raw *raw, struct losses *losses, struct tail *tail, struct error *error) {
  uint8_t ids[4 * BATCH_TOKENS];
  size_t token_bytes = (size_t)losses->blocks * RECORD_BYTES;
  uint8_t *records = malloc(BATCH_TOKENS * token_bytes);
  if (!records)
    return error_set(error, ERR_MEMORY, "out of memory for the repair of a segment");
  for (uint32_t from = 0; from < losses->tokens; from += BATCH_TOKENS) {
    uint32_t some = losses->tokens - from < BATCH_TOKENS ? losses->tokens - from : BATCH_TOKENS;
    for (uint32_t i = 0; i < some; i++)
      salvage_token(raw, from + i, losses, ids + 4 * (size_t)i, records + i * token_bytes);
    tail_append(tail, ids, records, some);
  }
  free(records);
  return 0;
}

static void tail_source(const void *context, uint32_t layer, uint32_t head, struct record_columns *columns) {
  tail_columns(context, layer, head, columns);
}

static int write_new(struct repair *r, const struct patient *p, const struct tail *tail, uint8_t *id,
                     struct error *error) {
  const struct msg_geometry *g = &p->meta.message.geometry;
  char path[PATH_BYTES], directory[PATH_BYTES], parent[PATH_BYTES];
  bool sync_failed;
  struct segment_header header = {.layers = (uint32_t)g->layers,
                                  .kv_heads = (uint32_t)g->kv_heads,
                                  .head_dim = (uint32_t)g->head_dim,
                                  .first = tail_first(tail),
                                  .count = tail_count(tail),
                                  .created_s = archive_now_s()};
  int result = archive_random_id(header.id, error);
  memcpy(id, header.id, LIMIT_ID_BYTES);
  memcpy(header.model, p->meta.message.model.data, LIMIT_ID_BYTES);
  memcpy(header.conversation, p->id, LIMIT_ID_BYTES);
  path_segment(path, r->dir, header.id);
  path_segment_directory(directory, r->dir, header.id);
  path_join(parent, r->dir, "segments");
  if (!result)
    result = io_make_directory(r->io, directory, error);
  if (!result)
    result = io_sync_directory(r->io, parent, NULL, error);
  return result ? result
                : segment_write(r->io, path, &header, tail_ids(tail), tail_source, tail, &sync_failed, error);
}

/* Writes the new segment of a damaged one, whose place the caller then gives it. */
static int mend_segment(struct repair *r, const struct patient *p, const struct msg_extent *extent, const char *path,
                        uint8_t *id, struct error *error) {
  const struct msg_geometry *g = &p->meta.message.geometry;
  uint32_t tokens = (uint32_t)(extent->first + extent->count - extent->origin);
  _Atomic uint64_t counted = 0;
  struct raw raw;
  struct losses losses;
  struct tail *tail = NULL;
  int result = raw_read(&raw, r->io, path, g, extent->id.data, error);
  if (result)
    return result;
  result = losses_init(&losses, extent->origin, tokens, raw.layers, raw.heads, error);
  if (!result)
    result = tail_create(r->io, extent->origin, raw.layers, raw.heads, &counted, &tail, error);
  if (!result)
    result = salvage(&raw, &losses, tail, error);
  if (!result && !r->dry_run)
    result = write_new(r, p, tail, id, error);
  if (!result)
    result = losses_tell(&losses, r, p, path);
  tail_unref(tail);
  losses_finish(&losses);
  raw_finish(&raw);
  return result;
}

/* The same checks as verify's, of a segment and of what the meta says about it. */
static int check(struct repair *r, const struct patient *p, const struct msg_extent *extent, const char *path,
                 struct error *reason, struct error *error) {
  const struct msg_meta *m = &p->meta.message;
  struct verify_report report;
  struct segment *segment;
  int result = segment_open(r->io, path, &segment, reason);
  if (result)
    return result;
  const struct segment_header *h = segment_header(segment);
  bool same = memcmp(h->id, extent->id.data, LIMIT_ID_BYTES) == 0 && h->layers == m->geometry.layers &&
              h->kv_heads == m->geometry.kv_heads && h->head_dim == m->geometry.head_dim &&
              h->first == extent->origin && extent->first + extent->count <= h->first + h->count &&
              memcmp(h->model, m->model.data, LIMIT_ID_BYTES) == 0;
  segment_unref(segment);
  if (!same)
    return error_set(reason, ERR_CORRUPT, "is another segment than the meta says");
  result = verify_file(r->io, path, &report, NULL, NULL, error);
  return result ? result : report.bad ? error_set(reason, ERR_CORRUPT, "pages or records fail their CRC") : 0;
}

/* Gives the meta the new ids, on disk, and then takes the old files away. */
static int adopt(struct repair *r, struct patient *p, uint8_t (*ids)[LIMIT_ID_BYTES], const bool *mended,
                 struct error *error) {
  struct msg_meta message = p->meta.message;
  uint8_t *data;
  size_t size;
  char path[PATH_BYTES], meta[PATH_BYTES];
  int result = 0;
  for (uint32_t i = 0; i < p->meta.extent_count && !result; i++)
    if (mended[i]) {
      path_segment(path, r->dir, p->meta.extents[i].id.data);
      result = repair_keep_copy(r, path, error);
    }
  struct msg_extent *extents = calloc(p->meta.extent_count + 1, sizeof *extents);
  if (!result && !extents)
    result = error_set(error, ERR_MEMORY, "out of memory for a meta");
  for (uint32_t i = 0; extents && i < p->meta.extent_count; i++) {
    extents[i] = p->meta.extents[i];
    if (mended[i])
      extents[i].id = span_of(ids[i], LIMIT_ID_BYTES);
  }
  message.extents = (struct list){.count = p->meta.extent_count, .items = extents};
  if (!result)
    result = meta_pack(&message, &data, &size, error);
  if (!result) {
    path_meta(meta, r->dir, p->id);
    result = io_replace_file(r->io, meta, data, size, error);
    free(data);
  }
  for (uint32_t i = 0; i < p->meta.extent_count && !result; i++)
    if (mended[i]) {
      path_segment(path, r->dir, p->meta.extents[i].id.data);
      r->io->unlink(path); /* a copy is kept; one that stays is found as belonging to nobody */
      memcpy((uint8_t *)(uintptr_t)p->meta.extents[i].id.data, ids[i], LIMIT_ID_BYTES);
    }
  free(extents);
  return result;
}

static int mend_all(struct repair *r, struct patient *p, uint8_t (*ids)[LIMIT_ID_BYTES], bool *mended, bool *any,
                    struct error *error) {
  int result = 0;
  for (uint32_t i = 0; i < p->meta.extent_count && !result; i++) {
    const struct msg_extent *extent = &p->meta.extents[i];
    struct error reason = {0};
    char path[PATH_BYTES];
    path_segment(path, r->dir, extent->id.data);
    p->sealed = extent->first + extent->count;
    result = check(r, p, extent, path, &reason, error);
    if (!result)
      continue;
    if (!reason.code)
      return result; /* the check itself failed */
    if (reason.code == ERR_VERSION || reason.code == ERR_MEMORY || !p->meta.message.model.size) {
      result = repair_left(r, p, path, "%s", reason.text);
      continue;
    }
    *any = mended[i] = true;
    result = repair_mended(r, p, path, "%s; what is good of it goes into a new segment", reason.text);
    if (!result)
      result = mend_segment(r, p, extent, path, ids[i], error);
  }
  return result;
}

int repair_segments(struct repair *r, struct patient *p, struct error *error) {
  bool any = false;
  uint32_t count = p->meta.extent_count;
  uint8_t(*ids)[LIMIT_ID_BYTES] = calloc(count + 1, sizeof *ids);
  bool *mended = calloc(count + 1, sizeof *mended);
  int result = ids && mended ? 0 : error_set(error, ERR_MEMORY, "out of memory for %u segments", count);
  if (!result)
    result = mend_all(r, p, ids, mended, &any, error);
  r->catalog_stale |= any;
  if (!result && any && !r->dry_run)
    result = adopt(r, p, ids, mended, error);
  free(ids);
  free(mended);
  return result;
}
