// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/demo/process.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <libgen.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { START_MS = 20000, STOP_MS = 10000, POLL_MS = 10, OPEN_FILES = 16 };

/* Joins two parts of a path; ERR_LIMIT when they are too long together. */
static int join(char path[PATH_MAX], const char *folder, const char *name, struct error *error) {
  if (snprintf(path, PATH_MAX, "%s/%s", folder, name) >= PATH_MAX)
    return error_set(error, ERR_LIMIT, "%s: the path is too long", folder);
  return 0;
}

static int copy(char path[PATH_MAX], const char *from, struct error *error) {
  if (snprintf(path, PATH_MAX, "%s", from) >= PATH_MAX)
    return error_set(error, ERR_LIMIT, "%s: the path is too long", from);
  return 0;
}

int process_beside(char path[PATH_MAX], const char *relative, struct error *error) {
  char self[PATH_MAX];
  ssize_t size = readlink("/proc/self/exe", self, sizeof self - 1);
  if (size < 0)
    return error_set_errno(error, errno, "/proc/self/exe: cannot find out where this program lies");
  self[size] = 0;
  return join(path, dirname(self), relative, error);
}

int scratch_create(char path[PATH_MAX], struct error *error) {
  const char *parent = getenv("TMPDIR");
  int result = join(path, parent && *parent ? parent : "/tmp", "coldkv-XXXXXX", error);
  if (!result && !mkdtemp(path))
    result = error_set_errno(error, errno, "%s: cannot make a directory like that", path);
  if (result)
    path[0] = 0;
  return result;
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *walk) {
  (void)status, (void)kind, (void)walk;
  remove(path); /* what cannot be removed is left where it is */
  return 0;
}

void scratch_remove(const char *path) {
  if (*path)
    nftw(path, remove_entry, OPEN_FILES, FTW_DEPTH | FTW_PHYS);
}

static uint64_t bytes_seen; /* nftw passes no context */

static int add_bytes(const char *path, const struct stat *status, int kind, struct FTW *walk) {
  (void)path, (void)walk;
  if (kind == FTW_F)
    bytes_seen += (uint64_t)status->st_size;
  return 0;
}

uint64_t directory_bytes(const char *path) {
  bytes_seen = 0;
  nftw(path, add_bytes, OPEN_FILES, FTW_PHYS);
  return bytes_seen;
}

int service_init(struct service *service, const char *program, const char *scratch, const char *data,
                 struct error *error) {
  memset(service, 0, sizeof *service);
  int result = program ? copy(service->program, program, error)
                       : process_beside(service->program, "../../daemon/coldkvd", error);
  if (!result)
    result = join(service->socket, scratch, "coldkv.sock", error);
  if (!result)
    result = join(service->log, scratch, "coldkvd.log", error);
  if (!result)
    result = data ? copy(service->data, data, error) : join(service->data, scratch, "data", error);
  if (!result && strlen(service->socket) >= sizeof((struct sockaddr_un *)0)->sun_path)
    result = error_set(error, ERR_LIMIT, "%s: too long a path for a socket; set TMPDIR to a shorter one",
                       service->socket);
  return result;
}

void process_follow(pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) /* it died before we could say so */
    _exit(1);
}

/* In the child: becomes coldkvd. */
static void become(const struct service *service, pid_t parent) {
  process_follow(parent);
  int in = open("/dev/null", O_RDONLY), out = open(service->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (in >= 0 && out >= 0) {
    dup2(in, 0);
    dup2(out, 1);
    dup2(out, 2);
    const char *codes = service->vram_codes_limit ? "--vram-codes-limit" : NULL; /* else the list ends here */
    execl(service->program, "coldkvd", "--data", service->data, "--socket", service->socket, "--backend",
          service->backend ? service->backend : "auto", "--spin-us", service->spin_us ? service->spin_us : "0", codes,
          service->vram_codes_limit, (char *)NULL);
    dprintf(2, "%s: cannot be run: %s\n", service->program, strerror(errno));
  }
  _exit(127);
}

/* True when somebody takes connections at the socket. */
static int answers(const char *path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0)
    return 0;
  int good = connect(fd, (struct sockaddr *)&address, sizeof address) == 0;
  close(fd);
  return good;
}

static void rest(void) {
  struct timespec pause = {.tv_nsec = POLL_MS * 1000000L};
  nanosleep(&pause, NULL);
}

/* The last line the daemon printed, for an error sentence. */
static void last_line(const char *path, char line[160]) {
  FILE *log = fopen(path, "r");
  line[0] = 0;
  while (log && fgets(line, 160, log))
    continue;
  line[strcspn(line, "\n")] = 0;
  if (log)
    fclose(log);
}

int service_start(struct service *service, struct error *error) {
  pid_t parent = getpid();
  char line[160];
  service->pid = fork();
  if (service->pid < 0) {
    service->pid = 0;
    return error_set_errno(error, errno, "cannot start %s", service->program);
  }
  if (service->pid == 0)
    become(service, parent);
  for (int waited = 0; waited < START_MS; waited += POLL_MS) {
    if (waitpid(service->pid, NULL, WNOHANG) == service->pid) {
      service->pid = 0;
      last_line(service->log, line);
      return error_set(error, ERR_UNREACHABLE, "coldkvd did not start: %s", line);
    }
    if (answers(service->socket))
      return 0;
    rest();
  }
  service_kill(service);
  last_line(service->log, line);
  return error_set(error, ERR_TIMEOUT, "coldkvd does not answer at %s: %s", service->socket, line);
}

void service_kill(struct service *service) {
  if (!service->pid)
    return;
  kill(service->pid, SIGKILL);
  while (waitpid(service->pid, NULL, 0) < 0 && errno == EINTR)
    continue;
  service->pid = 0;
}

int service_stop(struct service *service, struct error *error) {
  if (!service->pid)
    return 0;
  kill(service->pid, SIGTERM);
  for (int waited = 0; waited < STOP_MS; waited += POLL_MS) {
    int status;
    if (waitpid(service->pid, &status, WNOHANG) == service->pid) {
      service->pid = 0;
      if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
      char line[160];
      last_line(service->log, line);
      return error_set(error, ERR_INTERNAL, "coldkvd did not stop cleanly: %s", line);
    }
    rest();
  }
  service_kill(service);
  return error_set(error, ERR_TIMEOUT, "coldkvd did not stop within %d s of SIGTERM", STOP_MS / 1000);
}
