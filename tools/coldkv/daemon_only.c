// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// coldkv delete and coldkv stats: what only the daemon can do.
#include <stdio.h>
#include <string.h>

#include "tools/coldkv/report.h"
#include "tools/coldkv/source.h"

int command_delete(const struct options *options) {
  if (strcmp(options->arguments[0], options->arguments[1]) != 0) {
    report_complain("the two names differ, nothing was deleted; give the same name twice");
    return STATUS_USAGE;
  }
  struct error error = {0};
  struct rpc_connection *connection;
  struct report report;
  struct msg_delete params = {span_str(options->arguments[0]), span_str(options->arguments[1])};
  struct msg_empty answer;
  report_begin(&report, options->json);
  int result = source_daemon(options, &connection, &error);
  if (!result)
    result = rpc_call(connection, METHOD_DELETE, &params, &answer, &error);
  if (!result)
    report_text(&report, "deleted", options->arguments[0]);
  rpc_disconnect(connection);
  return report_end(&report, &error);
}

static bool counts_bytes(const char *name) {
  size_t size = strlen(name), suffix = strlen("_bytes");
  return size > suffix && strcmp(name + size - suffix, "_bytes") == 0;
}

int command_stats(const struct options *options) {
  struct error error = {0};
  struct rpc_connection *connection;
  struct report report;
  struct msg_empty params = {0};
  struct msg_stats stats;
  report_begin(&report, options->json);
  int result = source_daemon(options, &connection, &error);
  if (!result)
    result = rpc_call(connection, METHOD_STATS, &params, &stats, &error);
  for (uint32_t i = 0; i < message_stats.field_count && !result; i++) {
    const struct field *field = &message_stats.fields[i];
    uint64_t value;
    if (field->kind == FIELD_STR)
      continue;
    memcpy(&value, (const uint8_t *)&stats + field->offset, sizeof value);
    if (counts_bytes(field->name))
      report_size(&report, field->name, value);
    else
      report_u64(&report, field->name, value);
  }
  if (!result && stats.read_only_reason.size)
    report_span(&report, "read_only_reason", stats.read_only_reason);
  rpc_disconnect(connection);
  return report_end(&report, &error);
}
