// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// coldkv info
#include <string.h>

#include "tools/coldkv/offline.h"
#include "tools/coldkv/report.h"
#include "tools/coldkv/source.h"

/* Files do not tell what is synced, nor who has a conversation open. */
static void report_conversation(struct report *report, const struct msg_conversation *c, bool from_daemon) {
  report_span(report, "name", c->name);
  report_hex(report, "id", c->id.data, c->id.size);
  if (c->model.size)
    report_hex(report, "model", c->model.data, c->model.size);
  else
    report_none(report, "model");
  if (c->model_name.size)
    report_span(report, "model_name", c->model_name);
  else
    report_none(report, "model_name");
  report_u64(report, "uid", c->uid);
  report_u64(report, "tokens", c->tokens);
  if (from_daemon)
    report_u64(report, "durable", c->durable);
  report_u64(report, "ahead", c->ahead);
  report_size(report, "size", c->bytes);
  report_time(report, "created", c->created_s);
  report_time(report, "last_use", c->used_s);
  if (from_daemon)
    report_bool(report, "open", c->open != 0);
}

static void report_extent(struct report *report, const struct msg_extent *extent) {
  report_row(report);
  report_text(report, "kind", extent->kind ? "log" : "segment");
  report_u64(report, "first", extent->first);
  report_u64(report, "count", extent->count);
  report_u64(report, "origin", extent->origin);
  report_hex(report, "id", extent->id.data, extent->id.size);
}

static void report_open_log(struct report *report, const struct msg_conversation *c) {
  report_row(report);
  report_text(report, "kind", "open log");
  report_u64(report, "first", c->log_first);
  report_u64(report, "count", c->log_tokens);
  report_u64(report, "origin", c->log_first);
  report_hex(report, "id", c->id.data, c->id.size);
}

static int info_daemon(struct rpc_connection *connection, const char *name, struct report *report,
                       struct error *error) {
  struct msg_name params = {.name = span_str(name)};
  struct msg_conversation conversation;
  int result = rpc_call(connection, METHOD_INFO, &params, &conversation, error);
  if (result)
    return result;
  report_conversation(report, &conversation, true);
  report_table(report, "extents");
  for (uint32_t i = 0; i < conversation.extents.count && !result; i++) {
    struct msg_extent extent;
    result = message_unpack(&message_extent, &conversation.extents.objects[i], &extent, error);
    if (!result)
      report_extent(report, &extent);
  }
  if (!result)
    report_open_log(report, &conversation);
  report_table_end(report);
  return result;
}

static int info_files(const char *dir, const char *name, struct report *report, struct error *error) {
  struct offline offline;
  struct msg_conversation conversation;
  int result = offline_find(&offline, dir, name, error);
  if (result)
    return result;
  offline_describe(&offline, &conversation);
  report_conversation(report, &conversation, false);
  report_table(report, "extents");
  for (uint32_t i = 0; i < offline.meta.extent_count; i++)
    report_extent(report, &offline.meta.extents[i]);
  for (uint32_t i = 0; i + 1 < offline.log_count; i++) {
    const struct offline_log *log = &offline.logs[i];
    struct msg_extent extent = {.kind = 1, .id = conversation.id, .origin = log->first, .first = log->first,
                                .count = log->tokens};
    if (log->first >= offline.sealed)
      report_extent(report, &extent);
  }
  report_open_log(report, &conversation);
  report_table_end(report);
  *error = offline.problem;
  offline_close(&offline);
  return -error->code;
}

int command_info(const struct options *options) {
  struct error error = {0};
  struct rpc_connection *connection;
  struct report report;
  const char *name = options->arguments[0];
  report_begin(&report, options->json);
  int result = source_open(options, &connection, &error);
  if (!result && connection)
    info_daemon(connection, name, &report, &error);
  else if (!result)
    info_files(options->data, name, &report, &error);
  rpc_disconnect(connection);
  return report_end(&report, &error);
}
