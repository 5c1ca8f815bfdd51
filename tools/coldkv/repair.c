// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// coldkv repair
#include "store/repair.h"

#include <inttypes.h>
#include <stdio.h>

#include "tools/coldkv/command.h"
#include "tools/coldkv/report.h"

static int tell(void *context, const struct repair_line *line) {
  static const char *const kinds[] = {
      [REPAIR_MENDED] = "mended", [REPAIR_LOST] = "lost", [REPAIR_LEFT] = "left as it is"};
  struct report *report = context;
  const struct damage_place *place = &line->place;
  bool tokens = line->kind == REPAIR_LOST;
  report_row(report);
  report_text(report, "result", kinds[line->kind]);
  if (place->name[0])
    report_text(report, "conversation", place->name);
  else
    report_none(report, "conversation");
  if (tokens)
    report_u64(report, "first", place->first);
  else
    report_none(report, "first");
  if (tokens)
    report_u64(report, "count", place->count);
  else
    report_none(report, "count");
  if (line->layer != REPAIR_ALL)
    report_u64(report, "layer", line->layer);
  else
    report_none(report, "layer");
  if (line->head != REPAIR_ALL)
    report_u64(report, "head", line->head);
  else
    report_none(report, "head");
  report_text(report, "path", line->path);
  report_text(report, "what", line->what);
  return 0;
}

static void report_totals(struct report *report, const struct repair_report *f, bool dry_run) {
  report_bool(report, "dry_run", dry_run);
  report_u64(report, "conversations", f->conversations);
  report_u64(report, "files_mended", f->mended);
  report_u64(report, "files_left", f->left);
  report_u64(report, "records_lost", f->records_lost);
  report_u64(report, "ids_lost", f->ids_lost);
  report_u64(report, "tokens_cut", f->tokens_cut);
}

int command_repair(const struct options *options) {
  struct error error = {0};
  struct report report;
  struct repair_report figures = {0};
  uint64_t purged = 0;
  const char *dir = options->argument_count ? options->arguments[0] : options->data;
  report_begin(&report, options->json);
  report_table(&report, "lines");
  int result = dir[0] ? repair_archive(NULL, dir, options->dry_run, tell, &report, &figures, &error)
                      : error_set(&error, ERR_ARGUMENT, "no place for the archive; give its directory, or set HOME");
  report_table_end(&report);
  if (!result && options->purge)
    result = repair_purge(NULL, dir, &purged, &error);
  if (!result) {
    report_totals(&report, &figures, options->dry_run);
    if (options->purge)
      report_u64(&report, "files_purged", purged);
  }
  int status = report_end(&report, result ? &error : NULL);
  bool work_left = figures.left || (options->dry_run && figures.mended);
  return status ? status : work_left ? STATUS_FAILED : STATUS_GOOD;
}
