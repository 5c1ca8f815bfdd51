// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// coldkv status: is anything wrong with what the daemon keeps?
#include "tools/coldkv/report.h"
#include "tools/coldkv/source.h"

static void report_scrub(struct report *report, const struct msg_status *status) {
  report_size(report, "scrub_bytes_per_second", status->scrub_bytes_s);
  report_bool(report, "scrub_running", status->scrub_running != 0);
  report_u64(report, "scrub_files_done", status->scrub_files_done);
  report_u64(report, "scrub_files_total", status->scrub_files_total);
  report_size(report, "scrub_bytes_done", status->scrub_bytes_done);
  report_u64(report, "scrub_cycles", status->scrub_cycles);
  if (status->scrub_finished_s)
    report_time(report, "scrub_finished", status->scrub_finished_s);
  else
    report_none(report, "scrub_finished");
}

static void report_damage(struct report *report, const struct msg_damage *damage) {
  report_row(report);
  if (damage->conversation.size)
    report_span(report, "conversation", damage->conversation);
  else
    report_none(report, "conversation");
  if (damage->count || damage->first)
    report_u64(report, "first", damage->first);
  else
    report_none(report, "first");
  if (damage->count)
    report_u64(report, "count", damage->count);
  else
    report_none(report, "count");
  report_span(report, "path", damage->path);
  if (damage->page)
    report_u64(report, "page", damage->page);
  else
    report_none(report, "page");
  report_time(report, "found", damage->found_s);
  report_span(report, "what", damage->what);
}

int command_status(const struct options *options) {
  struct error error = {0};
  struct rpc_connection *connection;
  struct report report;
  struct msg_empty params = {0};
  struct msg_status status = {.read_only = 0};
  report_begin(&report, options->json);
  int result = source_daemon(options, &connection, &error);
  if (!result)
    result = rpc_call(connection, METHOD_STATUS, &params, &status, &error);
  if (!result) {
    report_bool(&report, "read_only", status.read_only != 0);
    report_scrub(&report, &status);
    report_u64(&report, "damaged", status.damage.count);
    report_table(&report, "damage");
  }
  for (uint32_t i = 0; i < status.damage.count && !result; i++) {
    struct msg_damage damage;
    result = message_unpack(&message_damage, &status.damage.objects[i], &damage, &error);
    if (!result)
      report_damage(&report, &damage);
  }
  rpc_disconnect(connection);
  int exit_status = report_end(&report, result ? &error : NULL);
  return exit_status ? exit_status : status.damage.count || status.read_only ? STATUS_FAILED : STATUS_GOOD;
}
