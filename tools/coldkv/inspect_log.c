// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// coldkv inspect of a log: header and frames.
#include <stdio.h>
#include <string.h>

#include "store/log.h"
#include "tools/coldkv/inspect.h"

static void report_header(struct report *report, const struct log_reader *reader, const char *path) {
  const struct log_header *h = log_reader_header(reader);
  char salt[20];
  snprintf(salt, sizeof salt, "%016llx", (unsigned long long)h->salt);
  report_text(report, "kind", "log");
  report_text(report, "path", path);
  report_u64(report, "version", h->version);
  report_u64(report, "incompat", h->incompat);
  report_hex(report, "conversation", h->conversation, sizeof h->conversation);
  report_text(report, "salt", salt);
  report_u64(report, "first", h->first);
  report_time(report, "created", h->created_s);
  report_size(report, "size", log_reader_size(reader));
}

/* Scales and CRCs of one frame's records. */
static uint64_t bad_records(const struct log_frame *frame) {
  uint64_t bad = 0;
  const uint8_t *record = frame->records;
  for (uint32_t i = 0; i < frame->count; i++)
    for (uint32_t layer = 0; layer < frame->layers; layer++)
      for (uint32_t head = 0; head < frame->kv_heads; head++, record += RECORD_BYTES)
        bad += !record_check(record, layer, head, frame->first + i);
  return bad;
}

/* Returns LOG_END, LOG_TORN or -code. */
static int report_frames(struct report *report, struct log_reader *reader, const char *path, uint64_t *tokens,
                         struct error *error) {
  struct log_frame frame;
  uint64_t bad = 0;
  int result;
  report_table(report, "frames");
  while ((result = log_reader_next(reader, &frame, error)) == LOG_FRAME) {
    uint64_t bad_here = bad_records(&frame);
    bad += bad_here;
    *tokens += frame.count;
    report_row(report);
    report_u64(report, "offset", frame.offset);
    report_size(report, "size", frame.size);
    report_u64(report, "first", frame.first);
    report_u64(report, "count", frame.count);
    report_u64(report, "ahead", frame.ahead);
    report_u64(report, "layers", frame.layers);
    report_u64(report, "kv_heads", frame.kv_heads);
    report_u64(report, "synced", frame.synced);
    report_u64(report, "bad_records", bad_here);
  }
  report_table_end(report);
  if (result >= 0 && bad)
    return error_set(error, ERR_CORRUPT, "%s: %llu records fail their CRC", path, (unsigned long long)bad);
  return result;
}

static int inspect_frames(const char *path, struct report *report, struct error *error) {
  struct log_reader *reader;
  bool torn = false;
  uint64_t tokens = 0;
  int result = log_reader_open(&io_system, path, &reader, &torn, error);
  if (result) {
    if (torn)
      error_prefix(error, "torn while it was made, recovery will drop it");
    return result;
  }
  report_header(report, reader, path);
  result = report_frames(report, reader, path, &tokens, error);
  report_u64(report, "tokens", tokens);
  report_u64(report, "good_bytes", log_reader_offset(reader));
  report_text(report, "end", result == LOG_END    ? "whole"
                             : result == LOG_TORN ? "torn: recovery drops what follows the last good frame"
                                                  : "damaged");
  log_reader_close(reader);
  return result < 0 ? result : 0;
}

int inspect_log(const struct options *options, const char *path, struct report *report, struct error *error) {
  if (inspect_wants_record(options)) {
    struct found_record found;
    int result = record_in_log(options, path, &found, error);
    return result ? result : report_record(report, &found, error);
  }
  if (inspect_wants_ids(options)) {
    struct id_range range;
    id_range_begin(&range, options);
    int result = ids_of_log(path, &range, error);
    if (!result)
      result = report_ids(report, options, &range, error);
    id_range_finish(&range);
    return result;
  }
  if (options->layer_given)
    return error_set(error, ERR_ARGUMENT, "a log has no blocks; give --head and --token too for one record");
  return inspect_frames(path, report, error);
}
