// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "proto/text.h"
#include "store/internal.h"

enum { LOG_LINE_BYTES = 1024, LOCK_PAUSE_NS = 20 * 1000 * 1000, LOCK_WAITS_MAX = 250 };

void archive_log(struct archive *archive, const char *format, ...) {
  if (!archive->options.log)
    return;
  char line[LOG_LINE_BYTES];
  va_list args;
  va_start(args, format);
  vsnprintf(line, sizeof line, format, args);
  va_end(args);
  archive->options.log(archive->options.log_context, line);
}

const struct archive_counters *archive_counters(const struct archive *archive) { return &archive->counters; }

const char *archive_directory(const struct archive *archive) { return archive->dir; }

bool archive_read_only(const struct archive *archive) { return atomic_load(&archive->read_only); }

void archive_damaged(struct archive *archive, const char *path, const struct damage_place *place, bool by_open,
                     const char *what) {
  struct damage damage = {.by_open = by_open, .found_s = archive_now_s()};
  size_t size = strlen(archive->dir);
  bool inside = strncmp(path, archive->dir, size) == 0 && path[size] == '/';
  damage.seen_s = damage.found_s;
  snprintf(damage.path, sizeof damage.path, "%s", inside ? path + size + 1 : path);
  snprintf(damage.what, sizeof damage.what, "%s", what);
  if (place)
    damage.place = *place;
  if (!damage_list_add(&archive->damage, &damage))
    return;
  atomic_fetch_add(&archive->counters.quarantined, 1);
  if (damage.place.name[0])
    archive_log(archive, "damaged, conversation '%s': %s", damage.place.name, what);
  else
    archive_log(archive, "damaged: %s", what);
}

void archive_damage_add(struct archive *archive, const char *path, const struct damage_place *place, const char *what) {
  archive_damaged(archive, path, place, false, what);
}

struct damage_list *archive_damage(struct archive *archive) { return &archive->damage; }

/* Set once, before read_only is. */
const char *archive_read_only_reason(const struct archive *archive) {
  return archive_read_only(archive) ? archive->read_only_reason.text : "";
}

int archive_check_writable(struct archive *archive, struct error *error) {
  if (!atomic_load(&archive->read_only))
    return 0;
  pthread_mutex_lock(&archive->lock);
  int result = error_set(error, ERR_READ_ONLY,
                         "the archive takes no writes since the disk failed (%s); check the disk and restart the "
                         "daemon",
                         archive->read_only_reason.text);
  pthread_mutex_unlock(&archive->lock);
  return result;
}

int archive_sync_failed(struct archive *archive, const struct error *error) {
  pthread_mutex_lock(&archive->lock);
  bool first = !atomic_load(&archive->read_only);
  if (first) {
    archive->read_only_reason = *error;
    text_repair(archive->read_only_reason.text, strlen(archive->read_only_reason.text));
    atomic_store(&archive->read_only, true);
  }
  pthread_mutex_unlock(&archive->lock);
  if (first)
    archive_log(archive, "no more writes: %s; lookups and reads go on; check the disk and restart the daemon",
                error->text);
  return -error->code;
}

int archive_replace_file(struct archive *archive, const char *path, const void *data, size_t size,
                         struct error *error) {
  bool sync_failed;
  struct error reason;
  int result = io_replace_file_synced(archive->io, path, data, size, &sync_failed, &reason);
  if (result && sync_failed)
    archive_sync_failed(archive, &reason);
  if (result && error)
    *error = reason;
  return result;
}

int archive_sync_directory(struct archive *archive, const char *path, struct error *error) {
  struct error reason;
  bool sync_failed;
  int result = io_sync_directory(archive->io, path, &sync_failed, &reason);
  if (!result)
    return 0;
  if (sync_failed)
    archive_sync_failed(archive, &reason);
  if (error)
    *error = reason;
  return result;
}

uint64_t archive_now_s(void) { return (uint64_t)time(NULL); }

int archive_random_id(uint8_t id[LIMIT_ID_BYTES], struct error *error) {
  if (getrandom(id, LIMIT_ID_BYTES, 0) == (ssize_t)LIMIT_ID_BYTES)
    return 0;
  return error_set_errno(error, errno, "cannot get random bytes");
}

/* Syncs the directory that names the archive: without it a new archive may vanish with all that is in it. One that must
 * not be read cannot be synced; then the archive was made by somebody else, who may. */
static int sync_parent(struct archive *archive, struct error *error) {
  char parent[PATH_BYTES];
  io_parent(archive->dir, parent);
  int fd = io_open_directory(archive->io, parent, error);
  if (fd < 0)
    return errno == EACCES ? 0 : fd;
  return io_sync_opened(archive->io, fd, parent, error);
}

/* Makes the directory and what stands in every archive. */
static int make_directories(struct archive *archive, struct error *error) {
  static const char *const names[] = {"models", "conversations", "segments", "catalog"};
  char path[PATH_BYTES];
  int result = io_make_directory(archive->io, archive->dir, error);
  if (!result)
    result = sync_parent(archive, error);
  for (size_t i = 0; i < sizeof names / sizeof names[0] && !result; i++) {
    path_join(path, archive->dir, names[i]);
    result = io_make_directory(archive->io, path, error);
  }
  return result ? result : archive_sync_directory(archive, archive->dir, error);
}

/* Locks the file. A daemon that was killed may leave a child that has not come to letting go of the lock, and will in a
 * moment: then the number in the file is that of no process. */
static int lock_file(const struct io *io, const char *dir, int fd, const char *path, struct error *error) {
  for (unsigned waits = 0; flock(fd, LOCK_EX | LOCK_NB); waits++) {
    const struct timespec pause = {.tv_nsec = LOCK_PAUSE_NS};
    char pid[24] = "";
    if (errno == EINTR)
      continue;
    if (errno != EWOULDBLOCK)
      return error_set_errno(error, errno, "cannot lock %s", path);
    ssize_t got = io->pread(fd, pid, sizeof pid - 1, 0);
    pid[got > 0 ? got : 0] = 0;
    pid[strcspn(pid, "\n")] = 0;
    long holder = strtol(pid, NULL, 10);
    bool gone = holder > 0 && kill((pid_t)holder, 0) && errno == ESRCH;
    if (!gone || waits >= LOCK_WAITS_MAX)
      return error_set(error, ERR_BUSY, "archive %s is in use by process %s; stop it first, or name another directory",
                       dir, pid[0] ? pid : "(unknown)");
    nanosleep(&pause, NULL);
  }
  return 0;
}

int archive_take_lock(const struct io *io, const char *dir, int *lock, struct error *error) {
  char path[PATH_BYTES], pid[24];
  path_join(path, dir, "LOCK");
  int fd = io_open(io, path, O_RDWR | O_CREAT, error);
  *lock = -1;
  if (fd < 0)
    return fd;
  int result = lock_file(io, dir, fd, path, error);
  struct iovec part = {.iov_base = pid, .iov_len = (size_t)snprintf(pid, sizeof pid, "%ld\n", (long)getpid())};
  if (!result && io_ftruncate(io, fd, 0))
    result = error_set_errno(error, errno, "cannot write %s", path);
  if (!result)
    result = io_write_all(io, fd, &part, 1, 0, path, error);
  if (result)
    io_close(io, fd);
  else
    *lock = fd;
  return result;
}

static int archive_allocate(struct archive **out, const char *dir, const struct archive_options *options,
                            struct error *error) {
  size_t size = strlen(dir);
  while (size > 1 && dir[size - 1] == '/')
    size--;
  if (!size || size > PATH_ARCHIVE_BYTES_MAX)
    return error_set(error, ERR_BAD_PARAMS, "the archive's path has %zu bytes, wanted 1 to %u", size,
                     PATH_ARCHIVE_BYTES_MAX);
  struct archive *archive = calloc(1, sizeof *archive);
  if (!archive)
    return error_set(error, ERR_MEMORY, "out of memory for an archive");
  if (options)
    archive->options = *options;
  archive->io = archive->options.io ? archive->options.io : &io_system;
  archive->lock_fd = -1;
  pthread_mutex_init(&archive->lock, NULL);
  damage_list_init(&archive->damage);
  archive->dir = strndup(dir, size);
  if (!archive->dir) {
    archive_close(archive);
    return error_set(error, ERR_MEMORY, "out of memory for an archive");
  }
  *out = archive;
  return 0;
}

int archive_open(struct archive **out, const char *dir, const struct archive_options *options, struct error *error) {
  struct archive *archive;
  int result = archive_allocate(&archive, dir, options, error);
  if (result)
    return result;
  result = make_directories(archive, error);
  if (!result)
    result = archive_take_lock(archive->io, archive->dir, &archive->lock_fd, error);
  if (!result)
    result = recovery_run(archive, error);
  if (result) {
    atomic_store(&archive->catalog_stale, true);
    archive_close(archive);
    return result;
  }
  *out = archive;
  return 0;
}

/* The catalog agrees with the files: the next start need not read them all. */
static void mark_clean(struct archive *archive) {
  MDB_txn *txn;
  struct error error;
  int result = catalog_begin(&archive->catalog, true, &txn, &error);
  if (result)
    return;
  if (catalog_set_clean(&archive->catalog, txn, true, &error))
    catalog_abort(txn);
  else if (catalog_commit(txn, &error))
    archive_log(archive, "%s", error.text);
}

void archive_close(struct archive *archive) {
  if (!archive)
    return;
  assert(!archive->conversations && !archive->models);
  if (archive->catalog.env && !archive->catalog_stale && !archive->read_only)
    mark_clean(archive);
  catalog_close(&archive->catalog);
  if (archive->lock_fd >= 0)
    archive->io->close(archive->lock_fd); /* lets go of the lock */
  pthread_mutex_destroy(&archive->lock);
  damage_list_finish(&archive->damage);
  free(archive->dir);
  free(archive);
}
