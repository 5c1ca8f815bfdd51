// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/demo/reader.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/demo/exact.h"
#include "tools/demo/memory.h"
#include "tools/demo/process.h"
#include "tools/demo/question.h"

const char reader_conversation[] = "demo";

_Static_assert(sizeof(struct report) < 4096, "a report has to be written in one piece");

/* Everything in the inference process. */
struct inference {
  const struct reader_plan *plan;
  int fd;
  struct llama *llama;
  float *logits;
  uint32_t slots; /* for questions */
  struct memory memory;
  struct exact *exact;
  struct error error;
};

static void tell(const struct inference *in, enum report_kind kind, uint32_t value, const char *text) {
  struct report report = {.kind = kind, .value = value};
  snprintf(report.text, sizeof report.text, "%s", text);
  if (kind == REPORT_STATUS)
    coldkv_get_status(in->memory.conv, &report.status);
  if (write(in->fd, &report, sizeof report) != (ssize_t)sizeof report)
    _exit(EXIT_FAILURE); /* nobody watches any more */
}

/* Turns a coldkv code into this process's error. */
static int check(struct inference *in, int result) {
  return result ? error_set(&in->error, -result, "%s", coldkv_error()) : 0;
}

static int feed_memory(void *context, const uint32_t *ids, uint32_t n, float *logits) {
  struct inference *in = context;
  return check(in, memory_feed(&in->memory, ids, n, in->slots, logits));
}

static int feed_exact(void *context, const uint32_t *ids, uint32_t n, float *logits) {
  struct inference *in = context;
  return exact_feed(in->exact, in->llama, ids, n, logits, 1, &in->error);
}

/* Asks for every fact, each time from the end of the document. */
static int ask_memory(struct inference *in, uint32_t slots) {
  const struct document *document = in->plan->document;
  int result = 0;
  in->slots = slots;
  for (uint32_t i = 0; i < DOCUMENT_FACTS && !result; i++) {
    char answer[DOCUMENT_DIGITS + 1];
    result = question_ask(&document->facts[i], feed_memory, in, in->logits, llama_config(in->llama)->vocab, answer);
    if (!result)
      result = check(in, coldkv_rewind(in->memory.conv, document->bytes));
    if (!result)
      tell(in, REPORT_ANSWER, i, answer);
  }
  if (!result)
    tell(in, REPORT_ANSWERED, 0, "");
  return result;
}

static int open_memory(struct inference *in) {
  return check(in, memory_open(&in->memory, in->llama, in->plan->socket, reader_conversation,
                               in->plan->device));
}

/* How many tokens the conversation must have: what has been read, and nothing else. */
static int expect_tokens(struct inference *in, uint64_t wanted, const char *hint) {
  struct coldkv_status status;
  int result = check(in, coldkv_get_status(in->memory.conv, &status));
  if (!result && status.tokens != wanted)
    result = error_set(&in->error, ERR_STATE, "conversation %s has %llu tokens, not %llu%s", reader_conversation,
                       (unsigned long long)status.tokens, (unsigned long long)wanted, hint);
  return result;
}

/* Stage A. The text needs no old tokens to be read; they are looked up when there is something to ask. */
static int read_document(struct inference *in) {
  const struct document *document = in->plan->document;
  int result = open_memory(in);
  if (!result)
    result = expect_tokens(in, 0, ": name a data directory that is new");
  for (uint32_t read = 0; read < document->bytes && !result;) {
    uint32_t ids[COLDKV_BLOCK_MAX];
    uint32_t n = document->bytes - read < COLDKV_BLOCK_MAX ? document->bytes - read : COLDKV_BLOCK_MAX;
    question_ids(document->text + read, n, ids);
    result = check(in, memory_feed(&in->memory, ids, n, 0, NULL));
    read += n;
    if (!result)
      tell(in, REPORT_PROGRESS, read, "");
  }
  if (!result)
    result = ask_memory(in, READER_SLOTS);
  if (!result)
    result = check(in, coldkv_sync(in->memory.conv));
  if (result)
    return result;
  tell(in, REPORT_STATUS, 0, "");
  tell(in, REPORT_DONE, 0, "");
  for (;;)
    pause(); /* the end comes by SIGKILL */
}

/* Stages B and C. */
static int resume_document(struct inference *in) {
  int result = open_memory(in);
  if (!result)
    result = expect_tokens(in, in->plan->document->bytes, " as before the crash");
  if (result)
    return result;
  tell(in, REPORT_STATUS, 0, "");
  result = ask_memory(in, READER_SLOTS);
  if (!result)
    result = ask_memory(in, 0);
  return result;
}

/* Stage D: the newest tokens that leave room for a question in the window, each at its true position there. */
static int plain_window(struct inference *in) {
  const struct llama_config *config = llama_config(in->llama);
  const struct document *document = in->plan->document;
  uint32_t size = config->window - QUESTION_TOKENS_MAX;
  if (size > document->bytes)
    size = document->bytes;
  const char *text = document->text + document->bytes - size;
  int result = exact_create(&in->exact, config, config->window, &in->error);
  for (uint32_t read = 0; read < size && !result;) {
    uint32_t ids[LLAMA_BLOCK_MAX], n = size - read < LLAMA_BLOCK_MAX ? size - read : LLAMA_BLOCK_MAX;
    question_ids(text + read, n, ids);
    result = exact_feed(in->exact, in->llama, ids, n, NULL, 0, &in->error);
    read += n;
  }
  for (uint32_t i = 0; i < DOCUMENT_FACTS && !result; i++) {
    char answer[DOCUMENT_DIGITS + 1];
    result = question_ask(&document->facts[i], feed_exact, in, in->logits, config->vocab, answer);
    exact_rewind(in->exact, size);
    if (!result)
      tell(in, REPORT_ANSWER, i, answer);
  }
  if (!result)
    tell(in, REPORT_ANSWERED, 0, "");
  return result;
}

/* The child's whole life. */
static int run(const struct reader_plan *plan, enum reader_task task, int fd) {
  static int (*const tasks[])(struct inference *) = {
      [READER_READ] = read_document, [READER_RESUME] = resume_document, [READER_PLAIN] = plain_window};
  struct inference in = {.plan = plan, .fd = fd};
  llama_set_threads(plan->threads);
  int result = llama_load(&in.llama, plan->model_dir, &in.error);
  if (!result && !(in.logits = malloc(llama_config(in.llama)->vocab * sizeof(float))))
    result = error_set(&in.error, ERR_MEMORY, "no memory for the model's answer");
  if (!result)
    result = tasks[task](&in);
  memory_close(&in.memory);
  exact_destroy(in.exact);
  free(in.logits);
  llama_free(in.llama);
  tell(&in, result ? REPORT_FAILED : REPORT_DONE, 0, in.error.text);
  return result ? EXIT_FAILURE : EXIT_SUCCESS;
}

int reader_start(struct reader *reader, const struct reader_plan *plan, enum reader_task task, struct error *error) {
  int ends[2];
  pid_t parent = getpid();
  if (pipe(ends) != 0)
    return error_set_errno(error, errno, "cannot make a pipe");
  fflush(NULL); /* or the child would print it again */
  reader->pid = fork();
  if (reader->pid < 0) {
    reader->pid = 0;
    close(ends[0]);
    close(ends[1]);
    return error_set_errno(error, errno, "cannot start the inference process");
  }
  if (reader->pid == 0) {
    process_follow(parent);
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    signal(SIGPIPE, SIG_IGN);
    close(ends[0]);
    exit(run(plan, task, ends[1]));
  }
  close(ends[1]);
  reader->fd = ends[0];
  return 0;
}

int reader_next(const struct reader *reader, struct report *report, struct error *error) {
  ssize_t size = read(reader->fd, report, sizeof *report);
  if (size < 0 && errno == EINTR)
    return error_set(error, ERR_SHUTTING_DOWN, "interrupted");
  if (size != (ssize_t)sizeof *report)
    return error_set(error, ERR_INTERNAL, "the inference process ended before its time");
  if (report->kind == REPORT_FAILED)
    return error_set(error, ERR_INTERNAL, "%s", report->text);
  return 0;
}

/* Waits for the end of the process and returns its wait status. */
static int reap(struct reader *reader) {
  int status = 0;
  while (waitpid(reader->pid, &status, 0) < 0 && errno == EINTR)
    continue;
  close(reader->fd);
  reader->pid = 0;
  return status;
}

int reader_finish(struct reader *reader, struct error *error) {
  int status = reap(reader);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    return error_set(error, ERR_INTERNAL, "the inference process failed at its end");
  return 0;
}

void reader_kill(struct reader *reader) {
  if (!reader->pid)
    return;
  kill(reader->pid, SIGKILL);
  reap(reader);
}
