// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// coldkv verify
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "store/verify.h"
#include "tools/coldkv/command.h"
#include "tools/coldkv/human.h"
#include "tools/coldkv/report.h"

struct verification {
  struct report report;
  struct verify_report figures;
  bool progress;       /* standard error is a terminal */
  bool progress_shown; /* a line of it stands there */
};

static void clear_progress(struct verification *v) {
  if (v->progress_shown)
    fputs("\r\033[K", stderr);
  v->progress_shown = false;
}

static void show_progress(struct verification *v, const struct verify_report *figures) {
  char size[HUMAN_BYTES];
  if (!v->progress)
    return;
  human_size(figures->bytes_done, size);
  fprintf(stderr, "\r\033[K%" PRIu64 " of %" PRIu64 " files, %s, %" PRIu64 " problem%s", figures->files_done,
          figures->files_total, size, figures->bad, figures->bad == 1 ? "" : "s");
  fflush(stderr);
  v->progress_shown = true;
}

static int tell(void *context, const char *path, const char *what, const struct verify_report *figures) {
  struct verification *v = context;
  if (!what) {
    show_progress(v, figures);
    return 0;
  }
  clear_progress(v);
  if (v->report.as_json) {
    report_row(&v->report);
    report_text(&v->report, "path", path);
    report_text(&v->report, "what", what);
  } else {
    report_problem(path, what);
  }
  return 0;
}

static void print_summary(const struct verify_report *f) {
  char size[HUMAN_BYTES];
  human_size(f->bytes_done, size);
  printf("checked %" PRIu64 " files (%" PRIu64 " segments, %" PRIu64 " logs, %" PRIu64 " metas, %" PRIu64
         " models), %s, %" PRIu64 " records: ",
         f->files_done, f->segments, f->logs, f->metas, f->models, size, f->records);
  if (f->missing)
    printf("%" PRIu64 " given up by a repair; ", f->missing);
  if (f->bad)
    printf("%" PRIu64 " problem%s\n", f->bad, f->bad == 1 ? "" : "s");
  else
    puts("all good");
}

static void report_summary(struct report *report, const struct verify_report *f) {
  report_table_end(report);
  report_u64(report, "files", f->files_done);
  report_u64(report, "segments", f->segments);
  report_u64(report, "logs", f->logs);
  report_u64(report, "metas", f->metas);
  report_u64(report, "models", f->models);
  report_u64(report, "bytes", f->bytes_done);
  report_u64(report, "records", f->records);
  report_u64(report, "missing", f->missing);
  report_u64(report, "bad", f->bad);
  report_bool(report, "good", f->bad == 0);
}

static int check(struct verification *v, const char *path, struct error *error) {
  struct stat status;
  if (!path[0])
    return error_set(error, ERR_ARGUMENT, "no place for the archive; give its directory, or set HOME");
  if (stat(path, &status))
    return error_set_errno(error, errno, "cannot check %s", path);
  if (S_ISDIR(status.st_mode))
    return verify_archive(&io_system, path, &v->figures, tell, v, error);
  if (!S_ISREG(status.st_mode))
    return error_set(error, ERR_ARGUMENT, "%s is neither a directory nor a regular file", path);
  return verify_file(&io_system, path, &v->figures, tell, v, error);
}

int command_verify(const struct options *options) {
  struct verification v = {.progress = isatty(STDERR_FILENO) == 1};
  struct error error = {0};
  report_begin(&v.report, options->json);
  if (options->json)
    report_table(&v.report, "problems");
  int result = check(&v, options->argument_count ? options->arguments[0] : options->data, &error);
  clear_progress(&v);
  if (!result && options->json)
    report_summary(&v.report, &v.figures);
  else if (!result)
    print_summary(&v.figures);
  int status = report_end(&v.report, result ? &error : NULL);
  return status ? status : v.figures.bad ? STATUS_FAILED : STATUS_GOOD;
}
