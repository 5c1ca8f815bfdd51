// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// coldkv inspect of a whole conversation: the files it consists of, and records and ids wherever they lie in them.
#include <stdio.h>
#include <string.h>

#include "store/segment.h"
#include "tools/coldkv/inspect.h"
#include "tools/coldkv/offline.h"

static void report_head(struct report *report, const struct offline *o) {
  struct msg_conversation c;
  char text[PATH_BYTES];
  offline_describe(o, &c);
  path_conversation(text, o->dir, o->id);
  report_text(report, "kind", "conversation");
  report_text(report, "path", text);
  report_span(report, "name", c.name);
  report_hex(report, "id", c.id.data, c.id.size);
  if (c.model.size)
    report_hex(report, "model", c.model.data, c.model.size);
  else
    report_none(report, "model");
  report_text(report, "model_name", o->model_name);
  report_geometry(report, &o->meta.message.geometry);
  report_u64(report, "tokens", c.tokens);
  report_u64(report, "sealed", o->sealed);
  report_u64(report, "ahead", c.ahead);
  report_size(report, "size", c.bytes);
  report_time(report, "created", c.created_s);
  report_time(report, "last_use", c.used_s);
}

/* Opens the segment, which checks its header and table; the pages are verify's. */
static const char *segment_state(const char *path, const struct msg_extent *extent, struct error *error) {
  struct segment *segment;
  struct error reason = {0};
  if (segment_open(&io_system, path, &segment, &reason)) {
    if (!error->code)
      *error = reason;
    return error_name(reason.code);
  }
  bool same = memcmp(segment_header(segment)->id, extent->id.data, LIMIT_ID_BYTES) == 0;
  segment_unref(segment);
  if (!same && !error->code)
    error_set(error, ERR_CORRUPT, "%s is another segment than its name says", path);
  return same ? "good" : "corrupt";
}

static void report_file(struct report *report, const char *kind, uint64_t first, uint64_t count, const char *state,
                        const char *path) {
  report_row(report);
  report_text(report, "kind", kind);
  report_u64(report, "first", first);
  report_u64(report, "count", count);
  report_text(report, "state", state);
  report_text(report, "path", path);
}

static int inspect_files(const struct offline *o, struct report *report, struct error *error) {
  char path[PATH_BYTES];
  report_head(report, o);
  report_table(report, "files");
  for (uint32_t i = 0; i < o->meta.extent_count; i++) {
    const struct msg_extent *extent = &o->meta.extents[i];
    path_segment(path, o->dir, extent->id.data);
    report_file(report, "segment", extent->first, extent->count, segment_state(path, extent, error), path);
  }
  for (uint32_t i = 0; i < o->log_count; i++) {
    const struct offline_log *log = &o->logs[i];
    path_log(path, o->dir, o->id, log->first);
    report_file(report, "log", log->first, log->tokens,
                log->damaged                              ? "damaged"
                : log->torn                               ? "torn"
                : log->first + log->tokens <= o->sealed && log->tokens ? "sealed"
                                                          : "good",
                path);
  }
  report_table_end(report);
  if (o->problem.code && !error->code)
    *error = o->problem;
  return -error->code;
}

static int inspect_ids(const struct options *options, const struct offline *o, struct report *report,
                       struct error *error) {
  struct id_range range;
  char path[PATH_BYTES];
  int result = 0;
  id_range_begin(&range, options);
  for (uint32_t i = 0; i < o->meta.extent_count && !result; i++) {
    path_segment(path, o->dir, o->meta.extents[i].id.data);
    result = ids_of_segment(path, &range, error);
  }
  for (uint32_t i = 0; i < o->log_count && !result; i++) {
    path_log(path, o->dir, o->id, o->logs[i].first);
    if (!(o->logs[i].torn && o->logs[i].frames == 0))
      result = ids_of_log(path, &range, error);
  }
  if (!result)
    result = report_ids(report, options, &range, error);
  id_range_finish(&range);
  return result;
}

static int inspect_record(const struct options *options, const struct offline *o, struct report *report,
                          struct error *error) {
  struct found_record found;
  char path[PATH_BYTES];
  int result = error_set(error, ERR_RANGE, "the conversation has no token %llu: it has %llu",
                         (unsigned long long)options->token, (unsigned long long)o->tokens);
  for (uint32_t i = 0; i < o->meta.extent_count && options->token < o->sealed; i++) {
    const struct msg_extent *extent = &o->meta.extents[i];
    if (options->token >= extent->first && options->token - extent->first < extent->count) {
      path_segment(path, o->dir, extent->id.data);
      result = record_in_segment(options, path, &found, error);
    }
  }
  for (uint32_t i = 0; i < o->log_count && options->token >= o->sealed; i++) {
    const struct offline_log *log = &o->logs[i];
    if (options->token >= log->first && options->token - log->first < log->tokens) {
      path_log(path, o->dir, o->id, log->first);
      result = record_in_log(options, path, &found, error);
    }
  }
  if (result)
    return result;
  *error = (struct error){0};
  snprintf(found.archive, sizeof found.archive, "%s", o->dir);
  return report_record(report, &found, error);
}

int inspect_conversation(const struct options *options, const char *name, struct report *report,
                         struct error *error) {
  struct offline offline;
  int result = offline_find(&offline, options->data, name, error);
  if (result)
    return result;
  if (inspect_wants_record(options))
    result = inspect_record(options, &offline, report, error);
  else if (inspect_wants_ids(options))
    result = inspect_ids(options, &offline, report, error);
  else if (options->layer_given)
    result = error_set(error, ERR_ARGUMENT, "--layer alone is for a segment file; give --head and --token too");
  else
    result = inspect_files(&offline, report, error);
  offline_close(&offline);
  return result;
}
