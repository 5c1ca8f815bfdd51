// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The inference process of the demo: a process of its own, so that killing it is real. It reads the document, answers
// questions, and reports through a pipe to the process that watches over it.
#ifndef COLDKV_TOOLS_DEMO_READER_H
#define COLDKV_TOOLS_DEMO_READER_H

#include <sys/types.h>

#include "client/coldkv.h"
#include "tools/demo/document.h"

enum { READER_SLOTS = 64 };

/* Name of the demo's conversation. */
extern const char reader_conversation[];

enum reader_task {
  READER_READ,   /* read the document into a new conversation, answer, then wait to be killed */
  READER_RESUME, /* go on with the stored conversation, answer, answer again without slots */
  READER_PLAIN,  /* answer by full attention over what fits into the trained window, without coldkv */
};

/* What all tasks need; lives as long as the reader. */
struct reader_plan {
  const char *model_dir, *socket;
  const struct document *document;
  int threads;
  uint32_t device; /* as in coldkv_conv_options */
};

enum report_kind {
  REPORT_PROGRESS, /* value: bytes read */
  REPORT_ANSWER,   /* value: number of the fact; text: the answer */
  REPORT_ANSWERED, /* all facts have been asked once */
  REPORT_STATUS,   /* status: that of the conversation after reading or resuming */
  REPORT_DONE,
  REPORT_FAILED, /* text: why */
};

struct report {
  enum report_kind kind;
  uint32_t value;
  char text[ERROR_TEXT_BYTES];
  struct coldkv_status status;
};

struct reader {
  pid_t pid; /* 0 while it does not run */
  int fd;    /* reports come from here */
};

/* Forks the inference process. */
int reader_start(struct reader *reader, const struct reader_plan *plan, enum reader_task task, struct error *error);

/* Waits for the next report. A REPORT_FAILED, and a process that ended without REPORT_DONE, come back as errors; so
 * does a signal with a handler (ERR_SHUTTING_DOWN). */
int reader_next(const struct reader *reader, struct report *report, struct error *error);

/* After REPORT_DONE of a task that ends by itself: waits for the process. An error when its exit status is not 0. */
int reader_finish(struct reader *reader, struct error *error);

/* SIGKILL, as a crash would be. Nothing to do when it does not run. */
void reader_kill(struct reader *reader);

#endif
