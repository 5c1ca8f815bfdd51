// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Making a conversation's meta again: its name and owner from the catalog, its sealed part from the headers of
// segments, its shape from its model's file.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/catalog_check.h"
#include "store/repair_internal.h"

/* --- what the catalog knows --------------------------------------------------------------------------------------- */

/* In the child: one line for each conversation, the name last. */
static int tell_entry(const struct conversation_entry *entry, struct catalog_child *child) {
  const struct msg_conversation *m = &entry->message;
  char line[1024], id[PATH_ID_TEXT_BYTES], model[PATH_ID_TEXT_BYTES] = "-";
  path_id_text(entry->id, id);
  if (m->model.size)
    path_id_text(m->model.data, model);
  snprintf(line, sizeof line, "%s %s %llu %llu %llu %llu %llu %llu %s", id, model, (unsigned long long)m->uid,
           (unsigned long long)m->tokens, (unsigned long long)m->durable, (unsigned long long)m->log_first,
           (unsigned long long)m->log_bytes, (unsigned long long)m->created_s, entry->name);
  catalog_child_tell(child, line);
  return 0;
}

static int tell_segments(struct catalog *catalog, MDB_txn *txn, struct catalog_child *child, struct error *error) {
  struct catalog_segment segment;
  uint8_t after[LIMIT_ID_BYTES];
  int result = catalog_next_segment(catalog, txn, NULL, &segment, error);
  while (!result) {
    char line[16 + PATH_ID_TEXT_BYTES] = "segment ";
    path_id_text(segment.id, line + strlen(line));
    catalog_child_tell(child, line);
    memcpy(after, segment.id, sizeof after);
    result = catalog_next_segment(catalog, txn, after, &segment, error);
  }
  return result < 0 ? result : 0;
}

static int tell_entries(void *context, struct catalog *catalog, struct catalog_child *child, struct error *error) {
  struct conversation_entry entry;
  uint8_t after[LIMIT_ID_BYTES];
  MDB_txn *txn;
  (void)context;
  bool clean;
  int result = catalog_walk(catalog, error);
  if (!result)
    result = catalog_begin(catalog, false, &txn, error);
  if (result)
    return result;
  if (catalog_get_clean(catalog, txn, &clean, error) == 0 && clean)
    catalog_child_tell(child, "clean");
  result = catalog_next_conversation(catalog, txn, NULL, &entry, error);
  while (!result) {
    tell_entry(&entry, child);
    memcpy(after, entry.id, sizeof after);
    result = catalog_next_conversation(catalog, txn, after, &entry, error);
  }
  if (result > 0)
    result = tell_segments(catalog, txn, child, error);
  catalog_abort(txn);
  return result < 0 ? result : 0;
}

static int take_entry(void *context, const char *line) {
  struct repair *r = context;
  struct repair_known known = {.has_model = false};
  char id[PATH_ID_TEXT_BYTES + 1], model[PATH_ID_TEXT_BYTES + 1];
  unsigned long long numbers[6];
  int name = 0;
  if (!line)
    return 0;
  if (strcmp(line, "clean") == 0) {
    r->catalog_clean = true;
    return 0;
  }
  if (strncmp(line, "segment ", 8) == 0)
    return path_id_parse(line + 8, known.id) && id_list_add(&r->indexed, known.id, NULL) ? 1 : 0;
  if (r->known_count == r->known_room) {
    size_t room = r->known_room ? 2 * r->known_room : 64;
    struct repair_known *grown = realloc(r->known, room * sizeof *grown);
    if (!grown)
      return 1;
    r->known = grown;
    r->known_room = room;
  }
  if (sscanf(line, "%33s %33s %llu %llu %llu %llu %llu %llu %n", id, model, &numbers[0], &numbers[1], &numbers[2],
             &numbers[3], &numbers[4], &numbers[5], &name) != 8 ||
      !name || !path_id_parse(id, known.id))
    return 0;
  known.has_model = path_id_parse(model, known.model);
  known.uid = (uint32_t)numbers[0];
  known.tokens = numbers[1];
  known.durable = numbers[2];
  known.log_first = numbers[3];
  known.log_bytes = numbers[4];
  known.created_s = numbers[5];
  snprintf(known.name, sizeof known.name, "%s", line + name);
  r->known[r->known_count++] = known;
  return 0;
}

int repair_read_catalog(struct repair *r, struct error *error) {
  char directory[PATH_BYTES], path[PATH_BYTES];
  struct error reason = {0};
  path_join(directory, r->dir, "catalog");
  path_join(path, directory, CATALOG_DATA_NAME);
  if (!io_exists(r->io, path))
    return 0;
  int result = catalog_in_child(directory, 0, tell_entries, take_entry, r, &reason);
  if (result > 0)
    return error_set(error, ERR_MEMORY, "out of memory for what the catalog knows");
  if (result == -ERR_CORRUPT || result == -ERR_VERSION) {
    r->catalog_bad = true;
    return 0;
  }
  return result ? error_set(error, reason.code, "%s", reason.text) : 0;
}

/* --- making a meta ------------------------------------------------------------------------------------------------ */

/* Segments of one conversation, by their headers. */
struct gathering {
  struct repair *r;
  const uint8_t *id;
  struct segment_header *headers;
  uint32_t count, room;
};

static int gather_one(void *context, const char *name, struct error *error) {
  struct gathering *g = context;
  uint8_t id[LIMIT_ID_BYTES];
  char path[PATH_BYTES];
  struct segment *segment;
  struct error ignored;
  if (!path_segment_parse(name, id))
    return 0;
  path_segment(path, g->r->dir, id);
  if (segment_open(g->r->io, path, &segment, &ignored))
    return 0;
  struct segment_header header = *segment_header(segment);
  segment_unref(segment);
  if (memcmp(header.conversation, g->id, LIMIT_ID_BYTES) != 0 || memcmp(header.id, id, LIMIT_ID_BYTES) != 0)
    return 0;
  if (g->count == g->room) {
    uint32_t room = g->room ? 2 * g->room : 16;
    struct segment_header *grown = realloc(g->headers, room * sizeof *grown);
    if (!grown)
      return error_set(error, ERR_MEMORY, "out of memory for a list of segments");
    g->headers = grown;
    g->room = room;
  }
  g->headers[g->count++] = header;
  return 0;
}

static int gather_directory(void *context, const char *name, struct error *error) {
  struct gathering *g = context;
  char segments[PATH_BYTES], path[PATH_BYTES];
  if (strlen(name) != 2)
    return 0;
  path_join(segments, g->r->dir, "segments");
  path_join(path, segments, name);
  return io_list_directory(g->r->io, path, gather_one, g, error);
}

static int by_first(const void *a, const void *b) {
  const struct segment_header *x = a, *y = b;
  return x->first != y->first ? (x->first > y->first) - (x->first < y->first)
                              : (x->created_s > y->created_s) - (x->created_s < y->created_s);
}

/* Lays the segments out from token 0; of two with the same tokens (a crash left one) either will do. False when tokens
 * are missing in between. */
static bool lay_out(const struct gathering *g, struct msg_extent *extents, uint32_t *count) {
  uint64_t next = 0;
  *count = 0;
  for (uint32_t i = 0; i < g->count; i++) {
    const struct segment_header *h = &g->headers[i];
    if (h->first + h->count <= next)
      continue;
    if (h->first != next)
      return false;
    extents[(*count)++] = (struct msg_extent){
        .id = span_of(h->id, LIMIT_ID_BYTES), .origin = h->first, .first = h->first, .count = h->count};
    next += h->count;
  }
  return true;
}

static void name_it(const struct repair *r, const struct patient *p, char name[LIMIT_NAME_BYTES_MAX + 1],
                    uint32_t *uid) {
  char text[PATH_ID_TEXT_BYTES], path[PATH_BYTES];
  struct stat status;
  struct error ignored;
  path_id_text(p->id, text);
  snprintf(name, LIMIT_NAME_BYTES_MAX + 1, "%s%.8s", "recovered-", text);
  path_conversation(path, r->dir, p->id);
  int fd = io_open(r->io, path, 0, &ignored);
  *uid = fd >= 0 && r->io->fstat(fd, &status) == 0 ? (uint32_t)status.st_uid : 0;
  if (fd >= 0)
    io_close(r->io, fd);
  if (!p->known)
    return;
  memcpy(name, p->known->name, sizeof p->known->name);
  *uid = p->known->uid;
}

static int write_meta(struct repair *r, struct patient *p, const struct msg_model *model,
                      const struct msg_extent *extents, uint32_t count, struct error *error) {
  char name[LIMIT_NAME_BYTES_MAX + 1], path[PATH_BYTES];
  uint32_t uid;
  uint8_t *data;
  size_t size;
  name_it(r, p, name, &uid);
  struct msg_meta message = {.id = span_of(p->id, LIMIT_ID_BYTES),
                             .name = span_str(name),
                             .uid = uid,
                             .fingerprint = model->fingerprint,
                             .model = model->id,
                             .geometry = model->geometry,
                             .created_s = p->known ? p->known->created_s : archive_now_s(),
                             .extents = {.count = count, .items = extents}};
  path_meta(path, r->dir, p->id);
  int result = repair_mended(r, p, path, "is made again, from %s, %u segments and the model's file; its name is '%s'",
                             p->known ? "the catalog" : "what the files tell", count, name);
  if (result)
    return result;
  r->catalog_stale |= !p->known;
  result = meta_pack(&message, &data, &size, error);
  if (result)
    return result;
  if (!r->dry_run)
    result = repair_keep_copy(r, path, error);
  if (!result && !r->dry_run)
    result = io_replace_file(r->io, path, data, size, error);
  if (!result)
    return meta_parse(data, size, path, &p->meta, error);
  free(data);
  return result;
}

static int from_parts(struct repair *r, struct patient *p, struct gathering *g, const struct error *reason,
                      struct error *error) {
  char path[PATH_BYTES], file[PATH_BYTES];
  struct model_file model;
  struct error ignored;
  uint32_t count = 0;
  const uint8_t *id = p->known && p->known->has_model ? p->known->model : g->count ? g->headers[0].model : NULL;
  path_meta(path, r->dir, p->id);
  if (g->count)
    qsort(g->headers, g->count, sizeof g->headers[0], by_first);
  struct msg_extent *extents = calloc(g->count + 1, sizeof *extents);
  if (!extents)
    return error_set(error, ERR_MEMORY, "out of memory for a meta");
  if (id)
    path_model(file, r->dir, id);
  int result;
  if (!id || model_read(r->io, file, &model, &ignored)) {
    r->meta_left = true;
    result = repair_left(r, p, path, "%s; without its model's file it cannot be made again, restore it from a backup",
                         reason->text);
  } else {
    if (lay_out(g, extents, &count)) {
      result = write_meta(r, p, &model.message, extents, count, error);
    } else {
      r->meta_left = true;
      result = repair_left(r, p, path, "%s; segments in between are missing, so that it cannot be made again: restore "
                           "it from a backup", reason->text);
    }
    model_file_finish(&model);
  }
  free(extents);
  return result ? result : p->meta.message.id.size ? 0 : 1;
}

int repair_meta(struct repair *r, struct patient *p, const struct error *reason, struct error *error) {
  struct gathering g = {.r = r, .id = p->id};
  char segments[PATH_BYTES];
  path_join(segments, r->dir, "segments");
  int result = io_list_directory(r->io, segments, gather_directory, &g, error);
  if (!result)
    result = from_parts(r, p, &g, reason, error);
  free(g.headers);
  return result;
}
