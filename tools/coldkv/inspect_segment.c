// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// coldkv inspect of a segment: header, regions with the state of their pages, and figures by layer or block.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "store/segment.h"
#include "tools/coldkv/inspect.h"

/* Figures over the records of some blocks. */
struct figures {
  uint64_t records, bad_crc, bad_scale;
  double k_scale_sum, v_scale_sum;
};

static void report_header(struct report *report, const struct segment_header *h, const char *path) {
  report_text(report, "kind", "segment");
  report_text(report, "path", path);
  report_u64(report, "version", h->version);
  report_u64(report, "compat", h->compat);
  report_u64(report, "incompat", h->incompat);
  report_hex(report, "id", h->id, sizeof h->id);
  report_hex(report, "model", h->model, sizeof h->model);
  report_hex(report, "conversation", h->conversation, sizeof h->conversation);
  report_u64(report, "layers", h->layers);
  report_u64(report, "kv_heads", h->kv_heads);
  report_u64(report, "head_dim", h->head_dim);
  report_u64(report, "codec", h->codec);
  report_u64(report, "first", h->first);
  report_u64(report, "count", h->count);
  report_time(report, "created", h->created_s);
  report_u64(report, "pages", h->pages);
  report_size(report, "size", (uint64_t)h->pages * SEGMENT_PAGE_BYTES);
}

/* Reads every page; fills `error` with the first bad one. */
static uint64_t bad_pages(const struct segment *segment, uint32_t first, uint32_t count, struct error *error) {
  uint64_t bad = 0;
  for (uint32_t page = first; page < first + count; page++) {
    struct error reason = {0};
    if (!segment_check_page(segment, page, &reason))
      continue;
    bad++;
    if (!error->code)
      *error = reason;
  }
  return bad;
}

static void report_region(struct report *report, const char *name, uint32_t page, uint32_t pages) {
  report_row(report);
  report_text(report, "region", name);
  report_u64(report, "page", page);
  report_u64(report, "pages", pages);
  report_size(report, "size", (uint64_t)pages * SEGMENT_PAGE_BYTES);
}

static void report_regions(struct report *report, const struct segment *segment, struct error *error) {
  static const struct {
    enum segment_region region;
    uint32_t pages; /* of one block */
  } regions[] = {{SEGMENT_SCAN, SEGMENT_SCAN_PAGES},
                 {SEGMENT_RESCORE, SEGMENT_RESCORE_PAGES},
                 {SEGMENT_VALUE, SEGMENT_VALUE_PAGES}};
  const struct segment_header *h = segment_header(segment);
  report_table(report, "regions");
  /* segment_open has checked these two */
  report_region(report, segment_region_name(SEGMENT_HEADER), 0, 1);
  report_u64(report, "bad_pages", 0);
  report_region(report, segment_region_name(SEGMENT_TABLE), 1, h->table_pages);
  report_u64(report, "bad_pages", 0);
  uint32_t ids = segment_page(segment, SEGMENT_IDS, 0, 0);
  report_region(report, segment_region_name(SEGMENT_IDS), ids, SEGMENT_IDS_PAGES);
  report_u64(report, "bad_pages", bad_pages(segment, ids, SEGMENT_IDS_PAGES, error));
  for (size_t i = 0; i < sizeof regions / sizeof regions[0]; i++) {
    uint32_t first = segment_page(segment, regions[i].region, 0, 0);
    uint32_t pages = regions[i].pages * h->layers * h->kv_heads;
    report_region(report, segment_region_name(regions[i].region), first, pages);
    report_u64(report, "bad_pages", bad_pages(segment, first, pages, error));
  }
  report_table_end(report);
}

static void add_block(struct figures *figures, const struct segment *segment, uint32_t layer, uint32_t head) {
  struct record_columns columns;
  segment_columns(segment, layer, head, &columns);
  for (uint32_t i = 0; i < columns.count; i++) {
    uint8_t record[RECORD_BYTES];
    record_gather(&columns, i, record);
    uint16_t k_scale = load_u16(record + RECORD_K_SCALE), v_scale = load_u16(record + RECORD_V_SCALE);
    figures->records++;
    if (!record_scale_valid(k_scale) || !record_scale_valid(v_scale)) {
      figures->bad_scale++;
      continue;
    }
    figures->bad_crc += !record_check(record, layer, head, columns.first + i);
    figures->k_scale_sum += (double)f32_from_f16(k_scale);
    figures->v_scale_sum += (double)f32_from_f16(v_scale);
  }
}

static void report_figures(struct report *report, const struct figures *figures, const char *path,
                           struct error *error) {
  double scales = (double)(figures->records - figures->bad_scale);
  report_u64(report, "records", figures->records);
  report_u64(report, "bad_crc", figures->bad_crc);
  report_u64(report, "bad_scale", figures->bad_scale);
  report_real(report, "mean_k_scale", scales > 0 ? figures->k_scale_sum / scales : 0);
  report_real(report, "mean_v_scale", scales > 0 ? figures->v_scale_sum / scales : 0);
  if ((figures->bad_crc || figures->bad_scale) && !error->code)
    error_set(error, ERR_CORRUPT, "%s: records fail their CRC", path);
}

static void report_layers(struct report *report, const struct segment *segment, struct error *error) {
  const struct segment_header *h = segment_header(segment);
  report_table(report, "layer_statistics");
  for (uint32_t layer = 0; layer < h->layers; layer++) {
    struct figures figures = {0};
    for (uint32_t head = 0; head < h->kv_heads; head++)
      add_block(&figures, segment, layer, head);
    report_row(report);
    report_u64(report, "layer", layer);
    report_figures(report, &figures, segment_path(segment), error);
  }
  report_table_end(report);
}

static int report_blocks(struct report *report, const struct segment *segment, uint32_t layer, struct error *error) {
  const struct segment_header *h = segment_header(segment);
  if (layer >= h->layers)
    return error_set(error, ERR_RANGE, "%s has no layer %u: it has 0 to %u", segment_path(segment), layer,
                     h->layers - 1);
  report_table(report, "blocks");
  for (uint32_t head = 0; head < h->kv_heads; head++) {
    struct figures figures = {0};
    add_block(&figures, segment, layer, head);
    report_row(report);
    report_u64(report, "layer", layer);
    report_u64(report, "head", head);
    report_u64(report, "scan_page", segment_page(segment, SEGMENT_SCAN, layer, head));
    report_u64(report, "rescore_page", segment_page(segment, SEGMENT_RESCORE, layer, head));
    report_u64(report, "value_page", segment_page(segment, SEGMENT_VALUE, layer, head));
    report_figures(report, &figures, segment_path(segment), error);
  }
  report_table_end(report);
  return 0;
}

int inspect_segment(const struct options *options, const char *path, struct report *report, struct error *error) {
  struct segment *segment;
  if (inspect_wants_record(options)) {
    struct found_record found;
    int result = record_in_segment(options, path, &found, error);
    return result ? result : report_record(report, &found, error);
  }
  if (inspect_wants_ids(options)) {
    struct id_range range;
    id_range_begin(&range, options);
    int result = ids_of_segment(path, &range, error);
    if (!result)
      result = report_ids(report, options, &range, error);
    id_range_finish(&range);
    return result;
  }
  int result = segment_open(&io_system, path, &segment, error);
  if (result)
    return result;
  report_header(report, segment_header(segment), path);
  report_regions(report, segment, error);
  if (options->layer_given)
    report_blocks(report, segment, options->layer, error);
  else
    report_layers(report, segment, error);
  (void)segment_check_readable(segment, NULL, error); /* the sentence that says it best */
  segment_unref(segment);
  return -error->code;
}
