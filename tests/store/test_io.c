// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tests/store/fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/store/fault.h"

static int setup(void **state) {
  fault_reset();
  *state = test_directory_make();
  return 0;
}

static int teardown(void **state) {
  fault_reset();
  test_directory_remove(*state);
  return 0;
}

/* Calls that do a byte at a time, and are interrupted every second time. */
static unsigned trickle_calls;

static ssize_t trickle_pread(int fd, void *buffer, size_t size, off_t offset) {
  if (trickle_calls++ % 2 == 0) {
    errno = EINTR;
    return -1;
  }
  return pread(fd, buffer, size ? 1 : 0, offset);
}

static ssize_t trickle_pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
  if (trickle_calls++ % 2 == 0) {
    errno = EINTR;
    return -1;
  }
  size_t three = count && parts->iov_len < 3 ? parts->iov_len : 3;
  return pwrite(fd, parts->iov_base, three, offset);
}

static void short_and_interrupted_calls_are_gone_on_with(void **state) {
  struct io io = io_system;
  struct error error;
  char bytes[] = "0123456789", read_back[10];
  const char *path = test_path(*state, "file");
  io.pread = trickle_pread;
  io.pwritev = trickle_pwritev;
  int fd = io_open(&io, path, O_RDWR | O_CREAT, &error);
  assert_true(fd >= 0);
  struct iovec parts[] = {{bytes, 4}, {NULL, 0}, {bytes + 4, 1}, {bytes + 5, 5}, {NULL, 0}};
  assert_ok(io_write_all(&io, fd, parts, 5, 2, path, &error), &error);
  assert_int_equal(test_file_size(path), 12);
  assert_ok(io_read_all(&io, fd, read_back, 10, 2, path, &error), &error);
  assert_memory_equal(read_back, bytes, 10);
  assert_error(io_read_all(&io, fd, read_back, 10, 3, path, &error), ERR_CORRUPT, &error);
  assert_non_null(strstr(error.text, path));
  close(fd);
}

static void files_are_private_and_replaced_whole(void **state) {
  struct error error;
  struct stat status;
  uint8_t *data;
  size_t size;
  const char *path = test_path(*state, "file"), *directory = test_path(*state, "directory");
  assert_ok(io_replace_file(&io_system, path, "first", 5, &error), &error);
  assert_ok(io_replace_file(&io_system, path, "2nd", 3, &error), &error);
  assert_ok(io_read_file(&io_system, path, 3, &data, &size, &error), &error);
  assert_int_equal(size, 3);
  assert_memory_equal(data, "2nd", 3);
  free(data);
  assert_error(io_read_file(&io_system, path, 2, &data, &size, &error), ERR_CORRUPT, &error);
  assert_error(io_read_file(&io_system, test_path(*state, "none"), 2, &data, &size, &error), ERR_IO, &error);
  assert_error(io_read_file(&io_system, *state, 1 << 20, &data, &size, &error), ERR_IO, &error);
  assert_int_equal(stat(path, &status), 0);
  assert_int_equal(status.st_mode & 07777, 0600);
  assert_ok(io_make_directory(&io_system, directory, &error), &error);
  assert_ok(io_make_directory(&io_system, directory, &error), &error);
  assert_int_equal(stat(directory, &status), 0);
  assert_int_equal(status.st_mode & 07777, 0700);
  assert_true(io_exists(&io_system, path));
  assert_false(io_exists(&io_system, test_path(*state, "none")));
  assert_int_equal(test_count_entries(*state, ""), 2);
}

static void a_replacement_is_synced_before_it_is_renamed(void **state) {
  struct error error;
  assert_ok(io_replace_file(&io_fault, test_path(*state, "file"), "x", 1, &error), &error);
  assert_string_equal(fault.order, "owdrf"); /* open, write, fdatasync, rename, fsync of the directory */
}

static void a_failed_replacement_leaves_the_old_file(void **state) {
  struct error error;
  const char *path = test_path(*state, "file");
  for (unsigned at = 1; at <= 5; at++) {
    fault_reset();
    assert_ok(io_replace_file(&io_fault, path, "old", 3, &error), &error);
    fault_reset();
    fault.mode = FAULT_FAIL_ONCE;
    fault.at = at;
    fault.error = at == 2 ? ENOSPC : EIO;
    bool sync_failed;
    assert_error(io_replace_file_synced(&io_fault, path, "new", 3, &sync_failed, &error),
                 at == 2 ? ERR_NO_SPACE : ERR_IO, &error);
    assert_int_equal(sync_failed, at == 3 || at == 5);
    uint8_t *data;
    size_t size;
    assert_ok(io_read_file(&io_system, path, 3, &data, &size, &error), &error);
    assert_memory_equal(data, at == 5 ? "new" : "old", 3); /* the last failure is in syncing its name */
    free(data);
    assert_int_equal(test_count_entries(*state, ""), 1);
  }
}

static int stop_at_second(void *context, const char *name, struct error *error) {
  (void)name;
  (void)error;
  return ++*(int *)context == 2 ? 5 : 0;
}

static void directories_are_listed(void **state) {
  struct error error;
  int seen = 0;
  assert_ok(io_replace_file(&io_system, test_path(*state, "a"), "", 0, &error), &error);
  assert_ok(io_replace_file(&io_system, test_path(*state, "b"), "", 0, &error), &error);
  assert_int_equal(io_list_directory(&io_system, *state, stop_at_second, &seen, &error), 5);
  assert_int_equal(seen, 2);
  assert_error(io_list_directory(&io_system, test_path(*state, "none"), stop_at_second, &seen, &error), ERR_IO, &error);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(short_and_interrupted_calls_are_gone_on_with, setup, teardown),
      cmocka_unit_test_setup_teardown(files_are_private_and_replaced_whole, setup, teardown),
      cmocka_unit_test_setup_teardown(a_replacement_is_synced_before_it_is_renamed, setup, teardown),
      cmocka_unit_test_setup_teardown(a_failed_replacement_leaves_the_old_file, setup, teardown),
      cmocka_unit_test_setup_teardown(directories_are_listed, setup, teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
