// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// coldkv ls
#include <stdlib.h>
#include <string.h>

#include "tools/coldkv/offline.h"
#include "tools/coldkv/report.h"
#include "tools/coldkv/source.h"

/* One line of the list, kept until all are there to be sorted. */
struct line {
  char name[LIMIT_NAME_BYTES_MAX + 1], model_name[LIMIT_NAME_BYTES_MAX + 1];
  uint8_t id[LIMIT_ID_BYTES], model[LIMIT_ID_BYTES];
  bool model_known;
  uint64_t tokens, durable, ahead, bytes, created_s, used_s;
  bool open;
};

struct lines {
  struct line *line;
  size_t count, room;
  struct error problem; /* the first conversation that could not be read */
};

static void copy_text(char *out, struct span text) {
  if (text.size)
    memcpy(out, text.data, text.size);
  out[text.size] = '\0';
}

static int add_line(struct lines *lines, const struct msg_conversation *c, struct error *error) {
  if (lines->count == lines->room) {
    size_t room = lines->room ? 2 * lines->room : 64;
    struct line *grown = realloc(lines->line, room * sizeof *grown);
    if (!grown)
      return error_set(error, ERR_MEMORY, "out of memory for a list of conversations");
    lines->line = grown;
    lines->room = room;
  }
  struct line *line = &lines->line[lines->count++];
  *line = (struct line){.tokens = c->tokens, .durable = c->durable, .ahead = c->ahead, .bytes = c->bytes,
                        .created_s = c->created_s, .used_s = c->used_s, .open = c->open != 0};
  copy_text(line->name, c->name);
  copy_text(line->model_name, c->model_name);
  memcpy(line->id, c->id.data, sizeof line->id);
  line->model_known = c->model.size == sizeof line->model;
  if (line->model_known)
    memcpy(line->model, c->model.data, sizeof line->model);
  return 0;
}

static int list_daemon(struct rpc_connection *connection, struct lines *lines, struct error *error) {
  char after[LIMIT_NAME_BYTES_MAX + 1] = "";
  bool more = true;
  while (more) {
    struct msg_list params = {.after = span_str(after), .limit = LIMIT_LIST_MAX};
    struct msg_conversation_list_ok page;
    struct msg_conversation conversation;
    int result = rpc_call(connection, METHOD_LIST, &params, &page, error);
    for (uint32_t i = 0; i < page.conversations.count && !result; i++) {
      result = message_unpack(&message_conversation, &page.conversations.objects[i], &conversation, error);
      if (!result)
        result = add_line(lines, &conversation, error);
    }
    if (result)
      return result;
    /* names only grow, so that a daemon that says "more" for ever is noticed */
    const char *last = lines->count ? lines->line[lines->count - 1].name : "";
    more = page.more && page.conversations.count;
    if (more && strcmp(last, after) <= 0)
      return error_set(error, ERR_BAD_MESSAGE, "the daemon's list does not end");
    memcpy(after, last, strlen(last) + 1);
  }
  return 0;
}

static int add_offline(void *context, const struct offline *offline, const struct error *reason, struct error *error) {
  struct lines *lines = context;
  struct msg_conversation message;
  if (!offline) {
    report_complain(reason->text);
    lines->problem = lines->problem.code ? lines->problem : *reason;
    return 0;
  }
  offline_describe(offline, &message);
  if (offline->problem.code) {
    struct error problem = offline->problem;
    error_prefix(&problem, "conversation '%.*s'", (int)message.name.size, (const char *)message.name.data);
    report_complain(problem.text);
    lines->problem = lines->problem.code ? lines->problem : problem;
  }
  return add_line(lines, &message, error);
}

static int by_name(const void *a, const void *b) {
  return strcmp(((const struct line *)a)->name, ((const struct line *)b)->name);
}

/* What only JSON tells; files do not tell what is synced, nor who has a conversation open. */
static void report_more(struct report *report, const struct line *line, bool from_daemon) {
  report_hex(report, "id", line->id, sizeof line->id);
  if (line->model_known)
    report_hex(report, "model_id", line->model, sizeof line->model);
  else
    report_none(report, "model_id");
  report_u64(report, "ahead", line->ahead);
  report_u64(report, "created", line->created_s);
  if (from_daemon) {
    report_u64(report, "durable", line->durable);
    report_bool(report, "open", line->open);
  }
}

static void report_lines(struct report *report, const struct lines *lines, bool from_daemon) {
  report_table(report, "conversations");
  for (size_t i = 0; i < lines->count; i++) {
    const struct line *line = &lines->line[i];
    report_row(report);
    report_text(report, "name", line->name);
    if (line->model_name[0])
      report_text(report, "model", line->model_name);
    else
      report_none(report, "model");
    report_u64(report, "tokens", line->tokens);
    report_size(report, "size", line->bytes);
    report_age(report, "last_use", line->used_s);
    if (report->as_json)
      report_more(report, line, from_daemon);
  }
  report_table_end(report);
}

int command_ls(const struct options *options) {
  struct error error = {0};
  struct rpc_connection *connection;
  struct lines lines = {0};
  struct report report;
  report_begin(&report, options->json);
  int result = source_open(options, &connection, &error);
  if (!result) {
    if (report.as_json)
      report_text(&report, "source", connection ? "daemon" : options->data);
    result = connection ? list_daemon(connection, &lines, &error)
                        : offline_each(options->data, add_offline, &lines, &error);
  }
  if (!result) {
    if (lines.count)
      qsort(lines.line, lines.count, sizeof lines.line[0], by_name);
    report_lines(&report, &lines, connection != NULL);
    if (!lines.count && !options->json)
      fputs("no conversations\n", stderr);
    if (lines.problem.code)
      error_set(&error, lines.problem.code, "not everything could be read; see coldkv verify");
  }
  rpc_disconnect(connection);
  free(lines.line);
  return report_end(&report, &error);
}
