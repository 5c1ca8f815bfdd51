// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Files that are cut short under their mapping, which is how a page that the disk cannot give looks to a process.
#include "tests/store/fixture.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "store/internal.h"
#include "store/mapped_fault.h"

enum { SALT = 3, PAGE = 4096, FILE_PAGES = 64 };

static int before_each(void **state) {
  *state = test_directory_make();
  return 0;
}

static int after_each(void **state) {
  test_directory_remove(*state);
  return 0;
}

struct cut_file {
  struct mapped_file mapped;
  char path[1024];
  uint8_t *bytes;
};

/* cmocka catches SIGBUS for the length of a test, so that every test puts the handler over that. */
static void cut_file_open(struct cut_file *file, const char *dir) {
  mapped_fault_install();
  snprintf(file->path, sizeof file->path, "%s/file", dir);
  int fd = open(file->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  uint8_t page[PAGE];
  memset(page, 0xa5, sizeof page);
  for (int i = 0; i < FILE_PAGES; i++)
    assert_int_equal(write(fd, page, sizeof page), sizeof page);
  file->bytes = mmap(NULL, FILE_PAGES * PAGE, PROT_READ, MAP_SHARED, fd, 0);
  assert_true(file->bytes != MAP_FAILED);
  close(fd);
  mapped_file_register(&file->mapped, file->bytes, FILE_PAGES * PAGE);
}

static void cut_file_close(struct cut_file *file) {
  mapped_file_forget(&file->mapped);
  munmap(file->bytes, FILE_PAGES * PAGE);
}

static uint8_t look(const uint8_t *at) { return *(const volatile uint8_t *)at; }

static void a_guarded_read_goes_on_and_is_told(void **state) {
  struct cut_file file;
  cut_file_open(&file, *state);
  mapped_guard_begin();
  assert_int_equal(look(file.bytes + 9 * PAGE + 5), 0xa5);
  assert_int_equal(mapped_file_failed(&file.mapped), 0);
  assert_int_equal(truncate(file.path, 7 * PAGE), 0);
  assert_int_equal(look(file.bytes + 9 * PAGE + 5), 0);
  mapped_guard_end();
  assert_int_equal(mapped_file_failed(&file.mapped), 9 * PAGE + 5 + 1);
  /* from now on nothing of it is to be believed, and nothing raises a signal any more */
  assert_int_equal(look(file.bytes), 0);
  assert_int_equal(look(file.bytes + (FILE_PAGES - 1) * PAGE), 0);
  assert_int_equal(mapped_file_failed(&file.mapped), 9 * PAGE + 5 + 1);
  cut_file_close(&file);
}

static void leave_with_seven(int number) {
  (void)number;
  _exit(7);
}

enum child_kind { UNGUARDED, NOT_REGISTERED, FORGOTTEN, WITH_HANDLER, SENT };

/* Touches a page that is not there; returns the status of the child that did. */
static int touch_in_child(const char *dir, enum child_kind kind) {
  int status;
  pid_t pid = fork();
  if (pid == 0) {
    struct cut_file file;
    signal(SIGBUS, kind == WITH_HANDLER ? leave_with_seven : SIG_DFL);
    cut_file_open(&file, dir);
    if (kind == NOT_REGISTERED || kind == FORGOTTEN)
      mapped_file_forget(&file.mapped);
    if (kind != UNGUARDED && kind != WITH_HANDLER)
      mapped_guard_begin();
    if (kind == SENT)
      raise(SIGBUS);
    else if (truncate(file.path, 0) == 0)
      look(file.bytes);
    _exit(0);
  }
  assert_int_equal(waitpid(pid, &status, 0), pid);
  return status;
}

static void any_other_fault_ends_the_process(void **state) {
  static const enum child_kind kinds[] = {UNGUARDED, NOT_REGISTERED, FORGOTTEN, SENT};
  for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
    int status = touch_in_child(*state, kinds[i]);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGBUS);
  }
  int status = touch_in_child(*state, WITH_HANDLER);
  assert_true(WIFEXITED(status));
  assert_int_equal(WEXITSTATUS(status), 7);
}

/* --- many threads ------------------------------------------------------------------------------------------------- */

/* Reads over and over until the file has failed; what was read counts only while it has not. */
static void *read_until_cut(void *argument) {
  struct cut_file *file = argument;
  uint64_t believed_zeros = 0;
  for (;;) {
    uint64_t zeros = 0;
    mapped_guard_begin();
    for (int i = 0; i < FILE_PAGES; i++)
      zeros += look(file->bytes + i * PAGE) != 0xa5;
    mapped_guard_end();
    if (mapped_file_failed(&file->mapped))
      return (void *)(uintptr_t)believed_zeros;
    believed_zeros += zeros;
  }
}

static void no_thread_believes_the_zeros(void **state) {
  enum { THREADS = 4, ROUNDS = 40 };
  for (int round = 0; round < ROUNDS; round++) {
    struct cut_file file;
    pthread_t threads[THREADS];
    cut_file_open(&file, *state);
    for (int i = 0; i < THREADS; i++)
      assert_int_equal(pthread_create(&threads[i], NULL, read_until_cut, &file), 0);
    usleep(500);
    assert_int_equal(truncate(file.path, (round % FILE_PAGES) * PAGE), 0);
    for (int i = 0; i < THREADS; i++) {
      void *believed;
      assert_int_equal(pthread_join(threads[i], &believed), 0);
      assert_null(believed);
    }
    cut_file_close(&file);
    unlink(file.path);
  }
}

/* --- the store ---------------------------------------------------------------------------------------------------- */

struct world {
  struct archive *archive;
  struct model *model;
  struct conversation *cut, *sound; /* each a segment, then a tail */
  char segment[1024];               /* of `cut` */
};

static struct conversation *make(struct world *w, const char *name) {
  struct conversation *c;
  struct error error;
  assert_ok(test_open(w->archive, name, w->model, true, &c, &error), &error);
  test_fill(c, 4100, SALT);
  assert_ok(conversation_sync(c, &error), &error);
  assert_ok(conversation_seal(c, &error), &error);
  return c;
}

static void world_open(struct world *w, const char *dir) {
  mapped_fault_install();
  w->archive = test_archive(dir, NULL);
  w->model = test_model(w->archive, 1);
  w->cut = make(w, "cut");
  snprintf(w->segment, sizeof w->segment, "%s", segment_path(w->cut->segments[0]));
  w->sound = make(w, "sound");
}

static void world_close(struct world *w) {
  conversation_release(w->cut);
  conversation_release(w->sound);
  model_release(w->model);
  archive_close(w->archive);
}

static void assert_names_the_page(const struct world *w, const struct error *error) {
  assert_non_null(strstr(error->text, strrchr(w->segment, '/') + 1));
  assert_non_null(strstr(error->text, "page "));
  assert_non_null(strstr(error->text, "cannot be read"));
}

static void reads_of_a_cut_segment_fail_alone(void **state) {
  struct world w;
  struct view *view;
  struct error error;
  uint8_t records[8 * RECORD_BYTES];
  uint32_t ids[8];
  struct record_columns columns;
  world_open(&w, *state);
  assert_ok(view_acquire(w.cut, &view, &error), &error);
  assert_ok(view_records(view, 1, 0, 4090, 6, records, &error), &error);
  assert_int_equal(truncate(w.segment, 0), 0);
  assert_error(view_records(view, 1, 0, 4090, 6, records, &error), ERR_IO, &error);
  assert_names_the_page(&w, &error);
  assert_int_equal(archive_counters(w.archive)->bad_pages, 1);
  assert_error(view_tokens(view, 0, 8, ids, &error), ERR_IO, &error);
  assert_error(view_columns(view, 0, 0, 0, &columns, &error), ERR_IO, &error);
  assert_error(view_check_part(view, 0, &error), ERR_IO, &error);
  assert_int_equal(archive_counters(w.archive)->bad_pages, 1); /* one segment, counted once */
  /* what lies in the tail is still there, and so is the other conversation; appends go on */
  assert_ok(view_check_part(view, 1, &error), &error);
  assert_ok(view_records(view, 1, 0, 4096, 4, records, &error), &error);
  view_release(view);
  test_check(w.sound, 4100, SALT);
  test_fill(w.cut, 4200, SALT);
  assert_ok(conversation_sync(w.cut, &error), &error);
  world_close(&w);
}

static void a_repeated_token_is_not_called_another(void **state) {
  struct world w;
  struct error error;
  bool wrote;
  world_open(&w, *state);
  assert_int_equal(truncate(w.segment, PAGE), 0);
  /* these bytes are right: only the disk cannot say so */
  assert_error(test_append(w.cut, 100, 4, 0, SALT, &wrote, &error), ERR_IO, &error);
  assert_names_the_page(&w, &error);
  assert_int_equal(archive_counters(w.archive)->bad_pages, 1);
  assert_ok(test_append(w.sound, 100, 4, 0, SALT, &wrote, &error), &error);
  assert_false(wrote);
  world_close(&w);
}

/* A column that was good when the lookup began. */
static void columns_that_fail_while_they_are_read(void **state) {
  struct world w;
  struct view *view;
  struct error error;
  struct record_columns columns;
  uint32_t sum = 0;
  world_open(&w, *state);
  assert_ok(view_acquire(w.cut, &view, &error), &error);
  assert_ok(view_columns(view, 0, 0, 0, &columns, &error), &error);
  assert_int_equal(truncate(w.segment, 0), 0);
  mapped_guard_begin();
  for (uint32_t i = 0; i < columns.count; i++)
    sum += look(columns.signature + (size_t)i * RECORD_SIGNATURE_BYTES);
  mapped_guard_end();
  assert_int_equal(sum, 0);
  assert_error(view_check_part(view, 0, &error), ERR_IO, &error);
  assert_names_the_page(&w, &error);
  view_release(view);
  world_close(&w);
}

static void checks_of_a_cut_segment(void **state) {
  struct world w;
  struct error error;
  struct segment *segment;
  world_open(&w, *state);
  assert_ok(segment_open(&io_system, w.segment, &segment, &error), &error);
  uint32_t last = segment_header(segment)->pages - 1;
  assert_int_equal(truncate(w.segment, (off_t)last * PAGE), 0);
  assert_ok(segment_check_page(segment, last - 1, &error), &error);
  assert_error(segment_check_page(segment, last, &error), ERR_IO, &error);
  assert_error(segment_check_page(segment, last - 1, &error), ERR_IO, &error); /* not trusted any more */
  bool fresh;
  assert_error(segment_check_ids(segment, &fresh, &error), ERR_IO, &error);
  assert_true(fresh);
  assert_error(segment_check_layer(segment, 0, &fresh, &error), ERR_IO, &error);
  assert_false(fresh);
  segment_unref(segment);
  world_close(&w);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(a_guarded_read_goes_on_and_is_told, before_each, after_each),
      cmocka_unit_test_setup_teardown(any_other_fault_ends_the_process, before_each, after_each),
      cmocka_unit_test_setup_teardown(no_thread_believes_the_zeros, before_each, after_each),
      cmocka_unit_test_setup_teardown(reads_of_a_cut_segment_fail_alone, before_each, after_each),
      cmocka_unit_test_setup_teardown(a_repeated_token_is_not_called_another, before_each, after_each),
      cmocka_unit_test_setup_teardown(columns_that_fail_while_they_are_read, before_each, after_each),
      cmocka_unit_test_setup_teardown(checks_of_a_cut_segment, before_each, after_each),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
