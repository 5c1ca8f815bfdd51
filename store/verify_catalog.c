// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Checking the catalog, in a child process: every entry's CRC, and (when it was closed in good order, so that no
// daemon is at work and none has crashed) that it says the same as the files.
#include <stdio.h>
#include <string.h>

#include "store/catalog_check.h"
#include "store/verify_internal.h"

#define MAKE_AGAIN "remove the directory catalog, the daemon makes it again"

/* In the child: a difference, for people. */
static void differs(struct catalog_child *child, const char *what, const uint8_t *id, const char *how) {
  char line[256], text[PATH_ID_TEXT_BYTES];
  path_id_text(id, text);
  snprintf(line, sizeof line, "%s %s %s", what, text, how);
  catalog_child_tell(child, line);
}

/* What follows the last good frame had been synced: then it is damaged, not torn. The line begins with the file's
 * path. */
static void tell_lost_end(struct catalog_child *child, const struct found_conversation *c, uint64_t durable_bytes) {
  char line[512], path[PATH_BYTES];
  path_log(path, "", c->id, c->log_first);
  snprintf(line, sizeof line,
           "%.300s: is good up to byte %llu although %llu were durable when the archive was closed; see coldkv repair",
           path + 1, (unsigned long long)c->log_bytes, (unsigned long long)durable_bytes);
  catalog_child_tell(child, line);
}

static void tell_lost_tokens(struct catalog_child *child, const struct found_conversation *c, uint64_t durable) {
  char line[512], path[PATH_BYTES];
  if (c->log_bytes)
    path_log(path, "", c->id, c->log_first);
  else
    path_conversation(path, "", c->id);
  snprintf(line, sizeof line,
           "%.300s: the files end at token %llu although %llu were durable when the archive was closed; see coldkv "
           "repair",
           path + 1, (unsigned long long)c->tokens, (unsigned long long)durable);
  catalog_child_tell(child, line);
}

static int compare_models(const struct found *found, struct catalog *catalog, MDB_txn *txn,
                          struct catalog_child *child, struct error *error) {
  MDB_stat stat;
  for (size_t i = 0; i < found->model_count; i++) {
    struct model_entry entry;
    int result = catalog_get_model(catalog, txn, found->models[i].id, &entry, error);
    if (result < 0)
      return result;
    if (result)
      differs(child, "model", found->models[i].id, "is not in it; " MAKE_AGAIN);
  }
  if (mdb_stat(txn, catalog->models, &stat) == 0 && stat.ms_entries > found->model_count)
    catalog_child_tell(child, "it has models that have no file");
  return 0;
}

static int compare_conversations(const struct found *found, struct catalog *catalog, MDB_txn *txn,
                                 struct catalog_child *child, struct error *error) {
  MDB_stat stat;
  for (size_t i = 0; i < found->conversation_count; i++) {
    const struct found_conversation *c = &found->conversations[i];
    struct conversation_entry entry;
    int result = catalog_get_conversation(catalog, txn, c->id, &entry, error);
    if (result < 0)
      return result;
    if (result)
      differs(child, "conversation", c->id, "is not in it; " MAKE_AGAIN);
    else if (entry.message.uid != c->uid || strcmp(entry.name, c->name) != 0)
      differs(child, "conversation", c->id, "has another name or owner in it; " MAKE_AGAIN);
    else if (entry.message.durable > c->tokens)
      tell_lost_tokens(child, c, entry.message.durable);
    else if (entry.message.log_first == c->log_first && entry.message.log_bytes > c->log_bytes)
      tell_lost_end(child, c, entry.message.log_bytes);
    else if (c->tokens != UINT64_MAX && entry.message.tokens != c->tokens)
      differs(child, "conversation", c->id, "has another number of tokens in it than in its files; " MAKE_AGAIN);
  }
  if (!found->bad_meta && mdb_stat(txn, catalog->conversations, &stat) == 0 &&
      stat.ms_entries > found->conversation_count)
    catalog_child_tell(child, "it has conversations that have no directory");
  return 0;
}

static int compare_segments(const struct found *found, struct catalog *catalog, MDB_txn *txn,
                            struct catalog_child *child, struct error *error) {
  for (size_t i = 0; i < found->extent_count; i++) {
    struct catalog_segment segment;
    int result = catalog_get_segment(catalog, txn, found->extents[i].segment, &segment, error);
    if (result < 0)
      return result;
    if (result)
      differs(child, "segment", found->extents[i].segment, "is not in it; " MAKE_AGAIN);
  }
  return 0;
}

static int compare(void *context, struct catalog *catalog, struct catalog_child *child, struct error *error) {
  const struct verify *v = context;
  MDB_txn *txn;
  bool clean;
  int result = catalog_walk(catalog, error);
  if (!result)
    result = catalog_begin(catalog, false, &txn, error);
  if (result)
    return result;
  result = catalog_get_clean(catalog, txn, &clean, error);
  if (!result && clean) {
    result = compare_models(v->found, catalog, txn, child, error);
    if (!result)
      result = compare_conversations(v->found, catalog, txn, child, error);
    if (!result)
      result = compare_segments(v->found, catalog, txn, child, error);
  }
  catalog_abort(txn);
  return result;
}

static int take_line(void *context, const char *line) {
  struct verify *v = context;
  char path[PATH_BYTES];
  if (!line)
    return verify_progress(v, "catalog");
  const char *end = strstr(line, ": ");
  if (strncmp(line, "conversations/", strlen("conversations/")) != 0 || !end)
    return verify_problem(v, "catalog", "%s", line);
  snprintf(path, sizeof path, "%.*s", (int)(end - line), line);
  return verify_problem(v, path, "%s", end + 2);
}

int verify_catalog(struct verify *v, struct error *error) {
  char directory[PATH_BYTES], path[PATH_BYTES];
  struct error reason = {0};
  path_join(directory, v->dir, "catalog");
  path_join(path, directory, CATALOG_DATA_NAME);
  if (!io_exists(v->io, path))
    return 0; /* the next start makes it from the files */
  int result = catalog_in_child(directory, 0, compare, take_line, v, &reason);
  if (result == -ERR_CORRUPT || result == -ERR_VERSION || result == -ERR_NO_SPACE)
    return verify_problem(v, "catalog", "%s; the next start of the daemon makes it again from the files", reason.text);
  if (result < 0)
    return error_set(error, reason.code, "%s", reason.text);
  return result;
}
