// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// coldkv-demo: a small real model reads a text eight times as long as its window, on a machine where things go wrong,
// and is asked for what it read long ago. This file is the watcher: it starts, kills and restarts the daemon and the
// inference process (reader.c), which talks to coldkv (memory.c).
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tools/demo/llama.h"
#include "tools/demo/process.h"
#include "tools/demo/reader.h"
#include "tools/demo/show.h"

enum {
  DOCUMENT_BYTES = 16384,
  DOCUMENT_SEED = 1,
  AWAY_BYTES = 1024, /* read while there is no daemon */
  RIGHT_MIN = 11,    /* answers, of DOCUMENT_FACTS */
  THREADS = 1,
};

enum stage { STAGE_READ, STAGE_RESTARTED, STAGE_CUT, STAGE_PLAIN, STAGES };

static const char *const titles[STAGES] = {
    [STAGE_READ] = "A. With coldkv",
    [STAGE_RESTARTED] = "B. Daemon and inference process killed with SIGKILL, started again, conversation resumed",
    [STAGE_CUT] = "C. The same with retrieval cut: sinks and hot window alone",
    [STAGE_PLAIN] = "D. A plain window of the newest tokens, exact, without coldkv",
};

struct demo {
  struct document document;
  struct service service;
  struct reader reader;
  struct reader_plan plan;
  struct llama_config model;
  struct coldkv_status stored; /* after the first reading */
  struct coldkv_status now;
  char scratch[PATH_MAX], model_dir[PATH_MAX], coldkv[PATH_MAX];
  uint32_t right[STAGES]; /* answers */
  struct error error;
};

struct options {
  const char *data, *model, *coldkvd, *coldkv;
  uint32_t bytes;
  int threads;
  uint32_t device; /* 0: the processor; n: CUDA device n - 1 */
};

static const char usage[] =
    "usage: coldkv-demo [option]...\n"
    "\n"
    "A small Llama reads a text of 16,384 bytes that states 12 facts, through a trained window of 2,048, and is\n"
    "asked for them: with coldkv (A), after daemon and inference process were killed and restarted (B), with\n"
    "retrieval cut (C), and by a plain window without coldkv (D). In the middle of the text the daemon is killed,\n"
    "too. Exit status 0 means that A and B got 11 right at least, and C none.\n"
    "\n"
    "  --data DIR      keep the archive in DIR, a new directory (default: a temporary one)\n"
    "  --bytes N       length of the text, 4096 to 1048576 (default 16384)\n"
    "  --threads N     for the model's matrix products (default 1)\n"
    "  --device D      cpu (default), or cuda: coldkv keeps the hot window, encodes and attends on the GPU; the model\n"
    "                  itself computes on the processor all the same\n"
    "  --model DIR     folder with config.json and model.safetensors\n"
    "  --coldkvd PATH  the daemon (default: the one built with this program)\n"
    "  --coldkv PATH   the command (default: likewise)\n"
    "  --help          this text\n";

static void on_signal(int signal) { (void)signal; } /* wakes reader_next */

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Kills the daemon in the middle of the text, and starts it again a while later. */
static int disturb(struct demo *demo, uint32_t read, uint32_t *killed_at, uint32_t *back_at) {
  if (!*killed_at && read >= demo->document.bytes / 2) {
    service_kill(&demo->service);
    *killed_at = read;
  }
  if (*killed_at && !*back_at && read >= *killed_at + AWAY_BYTES) {
    int result = service_start(&demo->service, &demo->error);
    *back_at = read;
    return result;
  }
  return 0;
}

/* Stage A: reads the text and answers; then both processes are killed. */
static int stage_read(struct demo *demo) {
  struct report report = {0};
  uint32_t killed_at = 0, back_at = 0;
  double start = seconds();
  int result = reader_start(&demo->reader, &demo->plan, READER_READ, &demo->error);
  while (!result && report.kind != REPORT_DONE) {
    result = reader_next(&demo->reader, &report, &demo->error);
    if (!result && report.kind == REPORT_PROGRESS) {
      result = disturb(demo, report.value, &killed_at, &back_at);
      show_progress(report.value, demo->document.bytes, killed_at && !back_at ? "(no daemon)" : "");
      if (report.value == demo->document.bytes) {
        show_progress_end();
        printf("Read in %.1f s. coldkvd was killed at byte %s and started again at byte %s; reading went on.\n\n",
               seconds() - start, show_number(killed_at), show_number(back_at));
        puts(titles[STAGE_READ]);
      }
    } else if (!result && report.kind == REPORT_ANSWER) {
      demo->right[STAGE_READ] += (uint32_t)show_answer(&demo->document, report.value, report.text);
    } else if (!result && report.kind == REPORT_STATUS) {
      demo->stored = report.status;
      show_status("Afterwards", &report.status);
    }
  }
  show_progress_end();
  service_kill(&demo->service);
  reader_kill(&demo->reader);
  return result;
}

/* Runs a task that answers every question in each of the stages `stage` to `last`. */
static int stage_answer(struct demo *demo, enum reader_task task, enum stage stage, enum stage last) {
  struct report report = {0};
  int result = reader_start(&demo->reader, &demo->plan, task, &demo->error);
  while (!result && report.kind != REPORT_DONE) {
    result = reader_next(&demo->reader, &report, &demo->error);
    if (!result && report.kind == REPORT_ANSWER && stage <= last) {
      if (report.value == 0)
        printf("\n%s\n", titles[stage]);
      demo->right[stage] += (uint32_t)show_answer(&demo->document, report.value, report.text);
    } else if (!result && report.kind == REPORT_ANSWERED) {
      stage++;
    } else if (!result && report.kind == REPORT_STATUS) {
      demo->now = report.status;
      printf("\n");
      show_status("After the restart", &report.status);
    }
  }
  return result ? result : reader_finish(&demo->reader, &demo->error);
}

/* Stages B and C: both processes are started again. */
static int stage_restart(struct demo *demo) {
  int result = service_start(&demo->service, &demo->error);
  if (!result)
    result = stage_answer(demo, READER_RESUME, STAGE_RESTARTED, STAGE_CUT);
  if (!result && demo->now.stored < demo->stored.durable)
    result = error_set(&demo->error, ERR_CORRUPT, "%llu tokens were durable, %llu are left after the restart",
                       (unsigned long long)demo->stored.durable, (unsigned long long)demo->now.stored);
  return result;
}

/* `coldkv ls` on what lies on disk. */
static int list(struct demo *demo) {
  printf("\n$ coldkv ls\n");
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    execl(demo->coldkv, "coldkv", "ls", "--socket", demo->service.socket, (char *)NULL);
    fprintf(stderr, "%s: cannot be run: %s\n", demo->coldkv, strerror(errno));
    _exit(127);
  }
  int status = 0;
  if (child < 0)
    return error_set_errno(&demo->error, errno, "cannot run %s", demo->coldkv);
  while (waitpid(child, &status, 0) < 0 && errno == EINTR)
    continue;
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    return error_set(&demo->error, ERR_INTERNAL, "coldkv ls failed");
  return 0;
}

static int run(struct demo *demo) {
  const struct llama_config *m = &demo->model;
  printf("A Llama of %u layers with %u kv heads of %u, over bytes, with a trained window of %s tokens, reads %s bytes\n"
         "that state %d facts, and is asked for them. Exact in memory: %d sinks and a hot window of %d.\n\n",
         m->layers, m->kv_heads, m->head_dim, show_number(m->window), show_number(demo->document.bytes), DOCUMENT_FACTS,
         COLDKV_SINKS, COLDKV_HOT);
  int result = service_start(&demo->service, &demo->error);
  if (!result)
    result = stage_read(demo);
  if (!result)
    result = stage_restart(demo);
  if (!result)
    result = stage_answer(demo, READER_PLAIN, STAGE_PLAIN, STAGE_PLAIN);
  if (result)
    return result;
  printf("\n");
  show_bill(&demo->now, 2ull * 2 * m->layers * m->kv_heads * m->head_dim, directory_bytes(demo->service.data));
  result = list(demo);
  if (!result)
    result = service_stop(&demo->service, &demo->error);
  return result;
}

/* Everything that can be wrong before the daemon runs. */
static int prepare(struct demo *demo, const struct options *options) {
  struct llama *llama = NULL;
  struct error *error = &demo->error;
  int result = document_write(&demo->document, DOCUMENT_SEED, options->bytes, error);
  if (!result && !options->model)
    result = process_beside(demo->model_dir, "model", error);
  if (!result && !options->coldkv)
    result = process_beside(demo->coldkv, "../coldkv/coldkv", error);
  if (options->model)
    snprintf(demo->model_dir, sizeof demo->model_dir, "%s", options->model);
  if (options->coldkv)
    snprintf(demo->coldkv, sizeof demo->coldkv, "%s", options->coldkv);
  if (!result)
    result = llama_load(&llama, demo->model_dir, error);
  if (!result)
    demo->model = *llama_config(llama);
  llama_free(llama);
  if (!result && demo->model.vocab < 256)
    result = error_set(error, ERR_NOT_SUPPORTED, "%s: not a model over bytes", demo->model_dir);
  if (!result)
    result = scratch_create(demo->scratch, error);
  if (!result)
    result = service_init(&demo->service, options->coldkvd, demo->scratch, options->data, error);
  demo->plan = (struct reader_plan){.model_dir = demo->model_dir,
                                    .socket = demo->service.socket,
                                    .document = &demo->document,
                                    .threads = options->threads,
                                    .device = options->device};
  return result;
}

/* Returns 0 to go on, 1 when --help was answered, -1 for a mistake. */
static int parse(struct options *options, int argc, char **argv) {
  static const struct option known[] = {
      {"data", required_argument, NULL, 'd'},    {"bytes", required_argument, NULL, 'b'},
      {"threads", required_argument, NULL, 't'}, {"device", required_argument, NULL, 'g'},
      {"model", required_argument, NULL, 'm'},   {"coldkvd", required_argument, NULL, 'D'},
      {"coldkv", required_argument, NULL, 'c'},  {"help", no_argument, NULL, 'h'},
      {0}};
  *options = (struct options){.bytes = DOCUMENT_BYTES, .threads = THREADS};
  for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
    char *end = NULL;
    unsigned long number = c == 'b' || c == 't' ? strtoul(optarg, &end, 10) : 0;
    if (end && (*end || !*optarg || number == 0 || number > DOCUMENT_BYTES_MAX)) {
      fprintf(stderr, "coldkv-demo: %s is not a number that makes sense here\n", optarg);
      return -1;
    }
    if (c == 'g' && strcmp(optarg, "cpu") != 0 && strcmp(optarg, "cuda") != 0) {
      fprintf(stderr, "coldkv-demo: --device %s: wanted cpu or cuda\n", optarg);
      return -1;
    }
    switch (c) {
    case 'g': options->device = strcmp(optarg, "cuda") == 0; break;
    case 'd': options->data = optarg; break;
    case 'b': options->bytes = (uint32_t)number; break;
    case 't': options->threads = (int)number; break;
    case 'm': options->model = optarg; break;
    case 'D': options->coldkvd = optarg; break;
    case 'c': options->coldkv = optarg; break;
    case 'h': fputs(usage, stdout); return 1;
    default: return -1;
    }
  }
  if (optind < argc) {
    fprintf(stderr, "coldkv-demo: %s: no such argument; see --help\n", argv[optind]);
    return -1;
  }
  return 0;
}

int main(int argc, char **argv) {
  static struct demo demo;
  struct options options;
  int result = parse(&options, argc, argv);
  if (result)
    return result > 0 ? EXIT_SUCCESS : 2;
  struct sigaction action = {.sa_handler = on_signal};
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGTERM, &action, NULL);
  result = prepare(&demo, &options);
  if (!result)
    result = run(&demo);
  service_kill(&demo.service);
  reader_kill(&demo.reader);
  scratch_remove(demo.scratch);
  document_finish(&demo.document);
  if (result) {
    fflush(stdout);
    fprintf(stderr, "coldkv-demo: %s\n", demo.error.text);
    return EXIT_FAILURE;
  }
  const uint32_t *right = demo.right;
  printf("\ndemo: with coldkv %u/%d, after restart %u/%d, retrieval cut %u/%d, plain window %u/%d\n",
         right[STAGE_READ], DOCUMENT_FACTS, right[STAGE_RESTARTED], DOCUMENT_FACTS, right[STAGE_CUT], DOCUMENT_FACTS,
         right[STAGE_PLAIN], DOCUMENT_FACTS);
  bool good = right[STAGE_READ] >= RIGHT_MIN && right[STAGE_RESTARTED] >= RIGHT_MIN && right[STAGE_CUT] == 0;
  return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
