// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/coldkv/inspect.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "store/io.h"
#include "store/log.h"
#include "store/meta.h"
#include "store/model_file.h"
#include "store/segment.h"

enum { MAGIC_BYTES = 8 };

void archive_of(const char *path, unsigned up, char archive[PATH_BYTES]) {
  char *whole = realpath(path, NULL);
  archive[0] = '\0';
  for (; whole && up; up--) {
    char *slash = strrchr(whole, '/');
    if (!slash)
      break;
    *slash = '\0';
  }
  if (whole && !up && strlen(whole) <= PATH_ARCHIVE_BYTES_MAX)
    strcpy(archive, whole[0] ? whole : "/");
  free(whole);
}

void report_geometry(struct report *report, const struct msg_geometry *g) {
  static const char *const layouts[] = {"none", "half-split", "interleaved"};
  report_u64(report, "layers", g->layers);
  report_u64(report, "kv_heads", g->kv_heads);
  report_u64(report, "group", g->group);
  report_u64(report, "head_dim", g->head_dim);
  report_u64(report, "window", g->window);
  report_text(report, "rope", layouts[g->rope_layout]);
  report_u64(report, "rope_dims", g->rope_dims);
}

static int read_magic(const char *path, char magic[MAGIC_BYTES], struct error *error) {
  struct stat status;
  if (stat(path, &status))
    return error_set_errno(error, errno, "cannot read %s", path);
  if (S_ISDIR(status.st_mode))
    return error_set(error, ERR_ARGUMENT, "%s is a directory; give a file, a conversation's name, or use coldkv verify",
                     path);
  if (!S_ISREG(status.st_mode))
    return error_set(error, ERR_ARGUMENT, "%s is no regular file", path);
  FILE *file = fopen(path, "re");
  if (!file)
    return error_set_errno(error, errno, "cannot read %s", path);
  size_t got = fread(magic, 1, MAGIC_BYTES, file);
  fclose(file);
  if (got < MAGIC_BYTES)
    return error_set(error, ERR_CORRUPT, "%s has only %zu bytes: no file of an archive, or cut short", path, got);
  return 0;
}

static bool is(const char magic[MAGIC_BYTES], const char *wanted) { return memcmp(magic, wanted, MAGIC_BYTES) == 0; }

static int inspect_file(const struct options *options, const char *path, struct report *report, struct error *error) {
  char magic[MAGIC_BYTES];
  int result = read_magic(path, magic, error);
  if (result)
    return result;
  bool described = is(magic, META_MAGIC) || is(magic, MODEL_MAGIC);
  if (described && (options->layer_given || inspect_wants_ids(options)))
    return error_set(error, ERR_ARGUMENT, "%s holds no tokens", path);
  if (is(magic, SEGMENT_MAGIC))
    return inspect_segment(options, path, report, error);
  if (is(magic, LOG_MAGIC))
    return inspect_log(options, path, report, error);
  if (is(magic, META_MAGIC))
    return inspect_meta(path, report, error);
  if (is(magic, MODEL_MAGIC))
    return inspect_model(path, report, error);
  return error_set(error, ERR_CORRUPT, "%s is no segment, log, meta or model file, or its beginning was overwritten",
                   path);
}

int command_inspect(const struct options *options) {
  struct error error = {0};
  struct report report;
  struct stat status;
  const char *what = options->arguments[0];
  report_begin(&report, options->json);
  if (stat(what, &status) == 0)
    inspect_file(options, what, &report, &error);
  else if (!options->data[0])
    error_set(&error, ERR_ARGUMENT, "no file %s, and no place for an archive to look in; give --data DIR", what);
  else
    inspect_conversation(options, what, &report, &error);
  return report_end(&report, &error);
}
