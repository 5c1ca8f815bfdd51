// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "store/catalog_check.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* In the child: where it tells its lines. */
enum { CHILD_FD = 3 };

enum {
  CHILD_SECONDS_MAX = 600, /* rotten pages may lead LMDB round in a circle */
  ASK_EVERY_MS = 200,
  LINE_BYTES = 4096 + ERROR_TEXT_BYTES,
};

/* First byte of a line: told by the work, or the sentence of its failure. */
enum { LINE_TOLD = 't', LINE_FAILED = 'f' };

struct catalog_child {
  int fd;
};

static void send_line(int fd, char kind, const char *line) {
  char text[LINE_BYTES + 2];
  int size = snprintf(text, sizeof text, "%c%s", kind, line);
  size = size < LINE_BYTES ? size : LINE_BYTES;
  text[size++] = '\n';
  for (int at = 0; at < size;) {
    ssize_t put = write(fd, text + at, (size_t)(size - at));
    if (put < 0 && errno != EINTR)
      return;
    at += put > 0 ? (int)put : 0;
  }
}

void catalog_child_tell(struct catalog_child *child, const char *line) { send_line(child->fd, LINE_TOLD, line); }

/* LMDB's own assertions would write to standard error and leave a core file behind. */
static void quiet_assert(MDB_env *env, const char *text) {
  (void)env;
  (void)text;
  _exit(3);
}

/* The child may outlive a daemon that is killed, and must not hold its lock, its socket or its clients' connections
 * then. Returns the descriptor that is left of them. */
static int child_keep_only(int fd) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (fd != CHILD_FD && dup2(fd, CHILD_FD) < 0)
    _exit(ERR_IO);
  close_range(CHILD_FD + 1, ~0u, 0);
  return CHILD_FD;
}

static void child_settings(void) {
  static const int faults[] = {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL, SIGALRM, SIGTERM, SIGPIPE};
  sigset_t none;
  struct rlimit no_core = {0, 0};
  for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++)
    signal(faults[i], SIG_DFL);
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  setrlimit(RLIMIT_CORE, &no_core);
  alarm(CHILD_SECONDS_MAX);
}

static int child_run(const char *path, uint64_t map_bytes, catalog_child_fn *work, void *context, int fd) {
  struct catalog catalog;
  struct catalog_child child = {.fd = fd};
  struct error error = {0};
  child_settings();
  int result = catalog_open(&catalog, path, map_bytes, CATALOG_READ, &error);
  if (result) {
    result = -ERR_CORRUPT; /* rot makes LMDB fail in many ways: out of memory for a map of any size, and so on */
  } else {
    mdb_env_set_assert(catalog.env, quiet_assert);
    result = work(context, &catalog, &child, &error);
    catalog_close(&catalog);
  }
  if (result)
    send_line(fd, LINE_FAILED, error.text);
  return -result; /* the code is the exit status */
}

struct received {
  char line[LINE_BYTES + 2];
  size_t size;
  char reason[ERROR_TEXT_BYTES];
  int stop; /* what `line` returned */
};

static void take_line(struct received *in, catalog_line_fn *line, void *context) {
  in->line[in->size] = 0;
  if (in->line[0] == LINE_FAILED)
    snprintf(in->reason, sizeof in->reason, "%s", in->line + 1);
  else if (line && !in->stop)
    in->stop = line(context, in->line + 1);
  in->size = 0;
}

/* Until the child is done, or `line` wants no more. */
static void receive(int fd, struct received *in, catalog_line_fn *line, void *context) {
  char bytes[4096];
  while (!in->stop) {
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    if (poll(&wait, 1, ASK_EVERY_MS) == 0) {
      in->stop = line ? line(context, NULL) : 0;
      continue;
    }
    ssize_t got = read(fd, bytes, sizeof bytes);
    if (got < 0 && errno == EINTR)
      continue;
    if (got <= 0)
      return;
    for (ssize_t i = 0; i < got; i++) {
      if (bytes[i] == '\n')
        take_line(in, line, context);
      else if (in->size < sizeof in->line - 1)
        in->line[in->size++] = bytes[i];
    }
  }
}

static int outcome(int status, const struct received *in, struct error *error) {
  if (in->stop)
    return in->stop;
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
    return 0;
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
    return error_set(error, ERR_CORRUPT, "reading the catalog took more than %d seconds", CHILD_SECONDS_MAX);
  if (WIFSIGNALED(status))
    return error_set(error, ERR_CORRUPT, "reading the catalog crashed with signal %d", WTERMSIG(status));
  if (in->reason[0])
    return error_set(error, WEXITSTATUS(status), "%s", in->reason);
  return error_set(error, ERR_CORRUPT, "the catalog's pages make no sense");
}

int catalog_in_child(const char *path, uint64_t map_bytes, catalog_child_fn *work, catalog_line_fn *line,
                     void *context, struct error *error) {
  int ends[2], status = 0;
  struct received in = {.size = 0};
  if (pipe2(ends, O_CLOEXEC))
    return error_set_errno(error, errno, "cannot make a pipe to check the catalog");
  pid_t pid = fork();
  if (pid == 0) {
    close(ends[0]);
    _exit(child_run(path, map_bytes, work, context, child_keep_only(ends[1])));
  }
  int fork_error = errno;
  close(ends[1]);
  if (pid > 0)
    receive(ends[0], &in, line, context);
  close(ends[0]);
  if (pid > 0 && in.stop)
    kill(pid, SIGKILL);
  if (pid < 0)
    return error_set_errno(error, fork_error, "cannot fork to check the catalog");
  while (waitpid(pid, &status, 0) < 0)
    if (errno != EINTR)
      return error_set_errno(error, errno, "cannot wait for the check of the catalog");
  return outcome(status, &in, error);
}

struct check {
  const char *copy;
  uint64_t map_bytes;
};

static int walk_and_copy(void *context, struct catalog *catalog, struct catalog_child *child, struct error *error) {
  const struct check *check = context;
  (void)child;
  if (catalog_walk(catalog, error))
    return -ERR_CORRUPT;
  return catalog_copy(catalog, check->copy, check->map_bytes, error);
}

int catalog_check(const char *path, uint64_t map_bytes, const char *copy, struct error *error) {
  struct check check = {.copy = copy, .map_bytes = map_bytes};
  return catalog_in_child(path, map_bytes, walk_and_copy, NULL, &check, error);
}
