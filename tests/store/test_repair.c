// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Damages an archive in many ways, repairs it, and expects: a dry run changes nothing and tells the same; afterwards
// verify finds nothing, what is answered is right or an error, only what was told is lost, appends go on, and a second
// repair finds nothing to do. Also with the repair cut short at every call.
#include "tests/store/rot.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "store/log.h"
#include "store/repair.h"
#include "store/segment.h"
#include "store/verify.h"
#include "tests/proto/random.h"
#include "tests/store/fault.h"

enum { PAGE = SEGMENT_PAGE_BYTES, CLOSED_FRAME = 256 };

static struct rot rot;
static struct random rng = {77};

static int setup(void **state) {
  (void)state;
  rot_make(&rot);
  return 0;
}

static int teardown(void **state) {
  (void)state;
  rot_finish(&rot);
  return 0;
}

/* Of one repair: what was told. */
struct told {
  unsigned mended, left;
  uint64_t records, ids, cut; /* from the lines */
  uint64_t first, count;      /* of the first lost run */
  char text[4096];
};

static int take(void *context, const struct repair_line *line) {
  struct told *told = context;
  const char *what = line->what;
  size_t at = strlen(told->text);
  snprintf(told->text + at, sizeof told->text - at, "%s: %s (%llu, %llu)\n", line->path, what,
           (unsigned long long)line->place.first, (unsigned long long)line->place.count);
  told->mended += line->kind == REPAIR_MENDED;
  told->left += line->kind == REPAIR_LEFT;
  if (line->kind != REPAIR_LOST)
    return 0;
  assert_true(line->place.owned && line->place.name[0]);
  if (!told->count) {
    told->first = line->place.first;
    told->count = line->place.count;
  }
  bool cut = strstr(what, "at the end") != NULL, tokens = strstr(what, "ids and records") != NULL;
  if (cut)
    told->cut += line->place.count;
  if (tokens || strstr(what, "token ids"))
    told->ids += line->place.count;
  if (tokens || (!cut && strstr(what, "records")))
    told->records += line->place.count * (line->layer == REPAIR_ALL ? TINY_BLOCKS : 1);
  return 0;
}

static struct repair_report repair(bool dry_run, struct told *told) {
  struct repair_report report;
  struct error error;
  *told = (struct told){.mended = 0};
  assert_ok(repair_archive(NULL, rot.dir, dry_run, take, told, &report, &error), &error);
  assert_int_equal(told->mended, report.mended);
  assert_int_equal(told->left, report.left);
  assert_int_equal(told->records, report.records_lost);
  assert_int_equal(told->ids, report.ids_lost);
  assert_int_equal(told->cut, report.tokens_cut);
  return report;
}

static char problems[2048];

static int note_problem(void *context, const char *path, const char *what, const struct verify_report *report) {
  size_t at = strlen(problems);
  (void)context;
  (void)report;
  if (what)
    snprintf(problems + at, sizeof problems - at, "%s: %s\n", path, what);
  return 0;
}

static struct verify_report verify(void) {
  struct verify_report report;
  struct error error;
  problems[0] = 0;
  assert_ok(verify_archive(NULL, rot.dir, &report, note_problem, NULL, &error), &error);
  return report;
}

/* Reads everything of one conversation; counts what is missing. Nothing may be wrong. */
static void ask(int conversation, uint64_t count, uint64_t *records_missing, uint64_t *ids_missing) {
  struct archive *archive = test_archive(rot.dir, NULL);
  struct model *model = test_model(archive, conversation == 2 ? 2 : 1);
  struct conversation *c;
  struct view *view;
  struct error error;
  uint8_t record[RECORD_BYTES], truth[RECORD_BYTES];
  bool wrote;
  assert_ok(test_open(archive, rot_name(conversation), model, false, &c, &error), &error);
  assert_int_equal(conversation_count(c), count);
  assert_ok(view_acquire(c, &view, &error), &error);
  *records_missing = *ids_missing = 0;
  for (uint64_t t = 0; t < count; t++) {
    uint32_t id;
    if (view_tokens(view, t, 1, &id, &error) == 0)
      assert_int_equal(id, test_token_id(t, rot_salt(conversation)));
    else
      ++*ids_missing;
    for (uint32_t layer = 0; layer < TINY_LAYERS; layer++) {
      test_record(truth, layer, 0, t, rot_salt(conversation));
      if (view_records(view, layer, 0, t, 1, record, &error) == 0)
        assert_memory_equal(record, truth, RECORD_BYTES);
      else
        ++*records_missing;
    }
  }
  view_release(view);
  /* it goes on, over the end of a segment, and is sealed */
  test_fill(c, count + 300, rot_salt(conversation));
  assert_ok(conversation_sync(c, &error), &error);
  while (conversation_wants_seal(c))
    assert_ok(conversation_seal(c, &error), &error);
  assert_ok(test_append(c, count + 300, 0, 1, rot_salt(conversation), &wrote, &error), &error);
  conversation_release(c);
  model_release(model);
  archive_close(archive);
}

/* Repairs what the caller has damaged in 'a' and checks everything that must hold then. `count`: tokens left. */
static struct told mend(const char *what, uint64_t count) {
  struct told dry, told, again;
  uint64_t records, ids;
  assert_true(verify().bad > 0);
  repair(true, &dry);
  assert_true(verify().bad > 0);
  assert_int_equal(test_count_entries(rot.dir, "quarantine"), 0);
  struct repair_report report = repair(false, &told);
  if (strcmp(dry.text, told.text) != 0 || !told.mended)
    fail_msg("%s: the dry run told\n%sand the repair\n%s", what, dry.text, told.text);
  if (strncmp(what, "no ", 3) != 0) /* a file that is not there leaves no bytes */
    assert_true(test_count_entries(test_path(rot.dir, "quarantine"), "") > 0);
  struct verify_report after = verify();
  if (after.bad || report.left)
    fail_msg("%s: %u problems afterwards, %u left:\n%s", what, (unsigned)after.bad, (unsigned)report.left, told.text);
  assert_int_equal(after.missing, report.records_lost + report.ids_lost);
  report = repair(false, &again);
  if (report.mended)
    fail_msg("%s: repaired twice:\n%s", what, again.text);
  ask(0, count, &records, &ids);
  if (records != told.records || ids != told.ids)
    fail_msg("%s: %llu records and %llu ids are missing, but told was\n%s", what, (unsigned long long)records,
             (unsigned long long)ids, told.text);
  assert_int_equal(verify().bad, 0);
  assert_int_equal(verify().missing, told.records + told.ids);
  ask(1, ROT_TOKENS, &records, &ids);
  assert_int_equal(records + ids, 0);
  rot_restore(&rot);
  return told;
}

/* --- segments ----------------------------------------------------------------------------------------------------- */

static void flip(const struct rot_file *file, uint64_t byte) { test_flip_bit(file->path, byte * 8 + 3); }

static uint64_t page_of(enum segment_region region, uint32_t layer) {
  return segment_place(TINY_LAYERS, TINY_HEADS, region, layer, 0);
}

static void single_bits_in_segments(void **state) {
  (void)state;
  struct rot_file *segment = rot_file(&rot, ROT_SEGMENT, 0);
  flip(segment, page_of(SEGMENT_VALUE, 1) * PAGE + 48 * 100 + 7);
  struct told told = mend("a value", ROT_TOKENS);
  assert_int_equal(told.records, 1);
  assert_int_equal(told.first, 100);
  flip(segment, page_of(SEGMENT_SCAN, 0) * PAGE + 16 * 5);
  assert_int_equal(mend("a signature", ROT_TOKENS).records, 1);
  flip(segment, (page_of(SEGMENT_RESCORE, 0) + 31) * PAGE + PAGE - 1);
  told = mend("a key code", ROT_TOKENS);
  assert_int_equal(told.first, 4095);
  flip(segment, page_of(SEGMENT_IDS, 0) * PAGE + 4 * 10);
  told = mend("an id", ROT_TOKENS); /* a page of ids proves itself or does not */
  assert_int_equal(told.ids, 1024);
  assert_int_equal(told.records, 0);
  flip(segment, PAGE + 4 * 30);
  told = mend("an entry of the table", ROT_TOKENS);
  assert_int_equal(told.ids + told.records, 0);
  flip(segment, 90);
  told = mend("the header", ROT_TOKENS);
  assert_int_equal(told.ids + told.records, 0);
}

static void write_bytes(const char *path, uint64_t at, const void *bytes, size_t size) {
  FILE *file = fopen(path, "r+b");
  assert_non_null(file);
  assert_int_equal(fseek(file, (long)at, SEEK_SET), 0);
  assert_int_equal(fwrite(bytes, 1, size, file), size);
  assert_int_equal(fclose(file), 0);
}

static void lost_pages_and_files(void **state) {
  (void)state;
  static const uint8_t zeros[PAGE];
  struct rot_file *a = rot_file(&rot, ROT_SEGMENT, 0), *b = rot_file(&rot, ROT_SEGMENT, 1);
  write_bytes(a->path, page_of(SEGMENT_RESCORE, 1) * PAGE, zeros, PAGE);
  struct told told = mend("a page of key codes", ROT_TOKENS);
  assert_int_equal(told.records, PAGE / RECORD_K_MAG_BYTES);
  /* all columns of a block from another conversation: every record passes its CRC, and none is this one's */
  write_bytes(a->path, page_of(SEGMENT_SCAN, 0) * PAGE, b->bytes + page_of(SEGMENT_SCAN, 0) * PAGE, 18 * PAGE);
  write_bytes(a->path, page_of(SEGMENT_RESCORE, 0) * PAGE, b->bytes + page_of(SEGMENT_RESCORE, 0) * PAGE, 32 * PAGE);
  write_bytes(a->path, page_of(SEGMENT_VALUE, 0) * PAGE, b->bytes + page_of(SEGMENT_VALUE, 0) * PAGE, 54 * PAGE);
  told = mend("a block of another conversation", ROT_TOKENS);
  assert_int_equal(told.records, 4096);
  rot_write(a->path, b->bytes, b->size);
  assert_int_equal(mend("the segment of another conversation", ROT_TOKENS).records, 4096 * TINY_BLOCKS);
  assert_int_equal(unlink(a->path), 0);
  assert_int_equal(mend("no segment", ROT_TOKENS).ids, 4096);
  assert_int_equal(truncate(a->path, (off_t)a->size / 2), 0);
  told = mend("half a segment", ROT_TOKENS);
  assert_true(told.records > 4096 && told.ids == 0);
}

/* --- logs --------------------------------------------------------------------------------------------------------- */

static void damaged_logs(void **state) {
  (void)state;
  struct rot_file *closed = rot_file(&rot, ROT_CLOSED, 0), *open_log = rot_file(&rot, ROT_OPEN, 0);
  struct rot_file *other = rot_file(&rot, ROT_CLOSED, 1);
  uint64_t frame = (closed->size - LOG_HEADER_BYTES) / 16;
  flip(closed, 40);
  assert_int_equal(mend("the header of a log", ROT_TOKENS).ids, 0);
  flip(closed, LOG_HEADER_BYTES + 3 * frame + 5000);
  struct told told = mend("a frame in the middle", ROT_TOKENS);
  assert_int_equal(told.first, 4096 + 3 * CLOSED_FRAME);
  assert_int_equal(told.ids, CLOSED_FRAME);
  flip(closed, LOG_HEADER_BYTES + 20);
  assert_int_equal(mend("the header of the first frame", ROT_TOKENS).first, 4096);
  flip(closed, closed->size - 1);
  assert_int_equal(mend("the last frame of a closed log", ROT_TOKENS).first, 8192 - CLOSED_FRAME);
  assert_int_equal(truncate(closed->path, LOG_HEADER_BYTES + (off_t)frame * 2 + 9), 0);
  assert_int_equal(mend("a closed log cut short", ROT_TOKENS).ids, 14 * CLOSED_FRAME);
  assert_int_equal(unlink(closed->path), 0);
  assert_int_equal(mend("no closed log", ROT_TOKENS).ids, 4096);
  rot_write(closed->path, other->bytes, other->size);
  assert_int_equal(mend("the log of another conversation", ROT_TOKENS).ids, 4096);
  flip(open_log, LOG_HEADER_BYTES + 500);
  told = mend("the first frame of the open log", ROT_TOKENS);
  assert_int_equal(told.first, 8192);
  assert_int_equal(told.ids, 8300 - 8192 < 64 ? 8300 - 8192 : 64);
}

/* At the end of the conversation the lost tokens are cut off: it goes on with the ids ahead of what is left. */
static void lost_ends(void **state) {
  (void)state;
  struct rot_file *open_log = rot_file(&rot, ROT_OPEN, 0);
  uint64_t ahead_frame = LOG_FRAME_HEADER_BYTES + 4 * ROT_AHEAD + 4;
  flip(open_log, open_log->size - 1); /* it holds ids ahead alone */
  struct told told = mend("the last ids ahead", ROT_TOKENS);
  assert_int_equal(told.cut + told.ids, 0);
  flip(open_log, open_log->size - ahead_frame - 100);
  told = mend("the last tokens", ROT_TOKENS);
  assert_true(told.cut == 0); /* the frame of ids ahead behind them tells that they had been there */
  assert_int_equal(told.first + told.count, ROT_TOKENS);
  assert_int_equal(truncate(open_log->path, (off_t)(open_log->size - ahead_frame - 100)), 0);
  struct told dry;
  repair(true, &dry);
  assert_true(dry.cut > 0 && dry.first + dry.cut == ROT_TOKENS);
  assert_int_equal(mend("the end of the open log", ROT_TOKENS - dry.cut).cut, dry.cut);
  assert_int_equal(unlink(open_log->path), 0);
  assert_int_equal(mend("no open log", 8192).cut, ROT_TOKENS - 8192);
}

/* --- metas, the catalog, models ----------------------------------------------------------------------------------- */

static void metas_are_made_again(void **state) {
  (void)state;
  struct rot_file *meta = rot_file(&rot, ROT_META, 0);
  flip(meta, 30);
  assert_int_equal(mend("a meta", ROT_TOKENS).ids, 0);
  assert_int_equal(unlink(meta->path), 0);
  assert_int_equal(mend("no meta", ROT_TOKENS).ids, 0);
  rot_write(meta->path, rot_file(&rot, ROT_META, 1)->bytes, rot_file(&rot, ROT_META, 1)->size);
  assert_int_equal(mend("another's meta", ROT_TOKENS).ids, 0);
  /* and without a catalog the conversation keeps everything but its name */
  assert_int_equal(unlink(meta->path), 0);
  assert_int_equal(unlink(rot_file(&rot, ROT_CATALOG, 0)->path), 0);
  struct told told;
  repair(false, &told);
  assert_int_equal(told.left, 0);
  assert_non_null(strstr(told.text, "recovered-"));
  assert_int_equal(verify().bad, 0);
  rot_restore(&rot);
}

static void what_cannot_be_repaired_is_left(void **state) {
  (void)state;
  struct rot_file *model = rot_file(&rot, ROT_MODEL, 0), *meta = rot_file(&rot, ROT_META, 0);
  struct told told;
  uint64_t records, ids;
  flip(model, model->size / 2);
  repair(false, &told);
  assert_int_equal(told.left, 1);
  assert_int_equal(told.mended, 0);
  flip(meta, 30);
  repair(false, &told);
  assert_int_equal(told.left, 2);
  assert_int_equal(told.mended, 0); /* its segment is not taken for one that belongs to nobody */
  flip(model, model->size / 2);
  repair(false, &told);
  assert_int_equal(told.left, 0);
  assert_int_equal(verify().bad, 0);
  ask(0, ROT_TOKENS, &records, &ids);
  assert_int_equal(records + ids, 0);
  rot_restore(&rot);
}

static void many_wounds_at_once(void **state) {
  (void)state;
  for (int round = 0; round < 3; round++) {
    struct rot_file *segment = rot_file(&rot, ROT_SEGMENT, 0), *closed = rot_file(&rot, ROT_CLOSED, 0);
    for (int i = 0; i < 20; i++)
      flip(segment, random_below(&rng, segment->size));
    for (int i = 0; i < 4; i++)
      flip(closed, random_below(&rng, closed->size));
    flip(rot_file(&rot, ROT_META, 0), 40);
    flip(rot_file(&rot, ROT_OPEN, 0), 3000);
    struct told told = mend("many wounds", ROT_TOKENS);
    assert_true(told.records > 0 && told.records < 9 * 256 * TINY_BLOCKS);
  }
}

/* Cut short at every call that changes something: run again, it ends the same, and nothing bad was ever thrown away. */
static void a_repair_cut_short_goes_on(void **state) {
  (void)state;
  struct told told;
  struct error error;
  struct repair_report report;
  uint64_t records, ids;
  unsigned at = 1;
  for (bool done = false; !done && at < 400; at++) {
    flip(rot_file(&rot, ROT_SEGMENT, 0), page_of(SEGMENT_VALUE, 1) * PAGE + 48 * 100);
    flip(rot_file(&rot, ROT_CLOSED, 0), LOG_HEADER_BYTES + 5000);
    flip(rot_file(&rot, ROT_META, 0), 30);
    fault_reset();
    fault.mode = FAULT_FAIL;
    fault.at = at;
    fault.error = EIO;
    done = repair_archive(&io_fault, rot.dir, false, NULL, NULL, &report, &error) == 0;
    fault_reset();
    if (at % 3 == 0 && !done)
      archive_close(test_archive(rot.dir, NULL)); /* a daemon was started in between */
    repair(false, &told);
    if (verify().bad)
      fail_msg("cut short at call %u: %s\nafter\n%s", at, problems, told.text);
    ask(0, ROT_TOKENS, &records, &ids);
    if (records != 1 + CLOSED_FRAME * TINY_BLOCKS || ids != CLOSED_FRAME)
      fail_msg("cut short at call %u: %llu records and %llu ids are missing", at, (unsigned long long)records,
               (unsigned long long)ids);
    assert_true(test_count_entries(test_path(rot.dir, "quarantine"), "segments+") > 0);
    assert_true(test_count_entries(test_path(rot.dir, "quarantine"), "conversations+") > 1);
    rot_restore(&rot);
  }
  assert_true(at > 10 && at < 400);
}

static void a_purge_empties_the_quarantine(void **state) {
  (void)state;
  struct told told;
  struct error error;
  uint64_t files;
  flip(rot_file(&rot, ROT_SEGMENT, 0), page_of(SEGMENT_VALUE, 1) * PAGE + 48 * 100);
  repair(false, &told);
  assert_ok(repair_purge(NULL, rot.dir, &files, &error), &error);
  assert_int_equal(files, 2); /* the segment and the catalog */
  assert_int_equal(test_count_entries(test_path(rot.dir, "quarantine"), ""), 0);
  assert_int_equal(verify().bad, 0);
  rot_restore(&rot);
}

static void a_running_daemon_keeps_it_away(void **state) {
  (void)state;
  struct repair_report report;
  struct error error;
  struct archive *archive = test_archive(rot.dir, NULL);
  assert_error(repair_archive(NULL, rot.dir, true, NULL, NULL, &report, &error), ERR_BUSY, &error);
  archive_close(archive);
  assert_error(repair_archive(NULL, test_path(rot.dir, "models"), true, NULL, NULL, &report, &error), ERR_BAD_PARAMS,
               &error);
  rot_restore(&rot);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(single_bits_in_segments),
      cmocka_unit_test(lost_pages_and_files),
      cmocka_unit_test(damaged_logs),
      cmocka_unit_test(lost_ends),
      cmocka_unit_test(metas_are_made_again),
      cmocka_unit_test(what_cannot_be_repaired_is_left),
      cmocka_unit_test(many_wounds_at_once),
      cmocka_unit_test(a_repair_cut_short_goes_on),
      cmocka_unit_test(a_purge_empties_the_quarantine),
      cmocka_unit_test(a_running_daemon_keeps_it_away),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
