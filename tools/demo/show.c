// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/demo/show.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { NUMBER_BYTES = 32, NUMBERS = 8, BAR_CELLS = 40 };

const char *show_number(uint64_t number) {
  static char texts[NUMBERS][NUMBER_BYTES];
  static unsigned turn;
  char *text = texts[turn++ % NUMBERS], *at = text + NUMBER_BYTES - 1;
  *at = 0;
  for (unsigned digits = 0; number || !digits; digits++, number /= 10) {
    if (digits && digits % 3 == 0)
      *--at = ',';
    *--at = (char)('0' + number % 10);
  }
  return at;
}

void show_progress(uint32_t done, uint32_t all, const char *note) {
  if (!isatty(STDERR_FILENO))
    return;
  char bar[BAR_CELLS + 1];
  uint32_t full = (uint32_t)((uint64_t)done * BAR_CELLS / all);
  memset(bar, '.', BAR_CELLS);
  memset(bar, '#', full);
  bar[BAR_CELLS] = 0;
  fprintf(stderr, "\rreading [%s] %s of %s bytes %s\033[K", bar, show_number(done), show_number(all), note);
}

void show_progress_end(void) {
  if (isatty(STDERR_FILENO))
    fprintf(stderr, "\r\033[K");
}

int show_answer(const struct document *document, uint32_t fact, const char *answer) {
  const struct fact *f = &document->facts[fact];
  int right = strcmp(answer, f->digits) == 0;
  const char *question = f->question + strspn(f->question, "\n");
  if (fact == 0)
    printf("  %8s  %-46s %-5s  %s\n", "at byte", "question", "truth", "answer");
  printf("  %8s  %-46s %-5s  %-5s  %s\n", show_number(f->at), question, f->digits, answer, right ? "right" : "wrong");
  fflush(stdout);
  return right;
}

void show_status(const char *when, const struct coldkv_status *status) {
  printf("%s: %s tokens, %s of them stored, %s durable; reconnects: %s; lookups: %s, unanswered: %s.\n",
         when, show_number(status->tokens), show_number(status->stored), show_number(status->durable),
         show_number(status->reconnects), show_number(status->lookups), show_number(status->lookups_missed));
}

void show_bill(const struct coldkv_status *status, uint64_t fp16_bytes_per_token, uint64_t disk_bytes) {
  uint64_t fp16 = status->stored * fp16_bytes_per_token;
  printf("The bill for %s old tokens, in bytes\n", show_number(status->stored));
  printf("  %-44s %12s\n", "the same as fp16 KV", show_number(fp16));
  printf("  %-44s %12s  (%.1f times less)\n", "records", show_number(status->record_bytes),
         status->record_bytes ? (double)fp16 / (double)status->record_bytes : 0.0);
  printf("  %-44s %12s\n", "of these, signatures, which lookups scan", show_number(status->signature_bytes));
  printf("  %-44s %12s\n", "hot window and sinks, exact, in memory", show_number(status->hot_bytes));
  printf("  %-44s %12s\n", "all files on disk", show_number(disk_bytes));
}
