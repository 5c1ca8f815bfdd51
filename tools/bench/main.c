// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench/bench.h"

enum { THREADS = 1, THREADS_MAX = 1024 };

static const struct {
  const char *name, *what;
  bench_command_fn *run;
} commands[] = {
    {"scan", "the scan of signatures against reading memory, whole lookups, two threads", bench_scan},
    {"lookup", "lookups through the socket, from 4096 tokens to a million", bench_lookup},
    {"codec", "records encoded and decoded per second, best kernels over plain C", bench_codec},
    {"append", "durable appends through the socket", bench_append},
    {"fetch", "cold pages from disk: batched reads, page faults, the disk itself", bench_fetch},
    {"cuda", "scans on a GPU against reading its memory", bench_cuda},
    {"recall", "attention mass that lookups find, far past the window of the tiny model", bench_recall},
    {"quality", "coldkv against full attention on the tiny model: KL, top-1, recall, codec", bench_quality},
};
enum { COMMANDS = sizeof commands / sizeof *commands };

struct bench_output {
  bool json;
  uint32_t count;
};

bool bench_is_json(const struct bench_output *output) { return output->json; }

/* Begins the line or member of one figure. */
static void begin(struct bench_output *output, const char *name) {
  if (output->json)
    printf("%s\"%s\": ", output->count ? ", " : "{", name);
  else
    printf("%-26s ", name);
  output->count++;
}

static void end(const struct bench_output *output, const char *what) {
  if (!output->json)
    printf("  %s\n", what);
}

void bench_integer(struct bench_output *output, const char *name, uint64_t value, const char *what) {
  begin(output, name);
  printf(output->json ? "%llu" : "%12llu", (unsigned long long)value);
  end(output, what);
}

void bench_figure(struct bench_output *output, const char *name, double value, const char *what) {
  begin(output, name);
  if (output->json && !isfinite(value))
    printf("null");
  else
    printf(output->json ? "%.6g" : "%12.6g", value);
  end(output, what);
}

void bench_text(struct bench_output *output, const char *name, const char *value, const char *what) {
  begin(output, name);
  if (!output->json) {
    printf("%12s", value);
  } else {
    putchar('"');
    for (const unsigned char *c = (const unsigned char *)value; *c; c++)
      printf(*c == '"' || *c == '\\' ? "\\%c" : *c < ' ' ? "\\u%04x" : "%c", *c);
    putchar('"');
  }
  end(output, what);
}

static void usage(FILE *stream) {
  fputs("usage: coldkv-bench COMMAND [option]...\n\ncommands\n", stream);
  for (int i = 0; i < COMMANDS; i++)
    fprintf(stream, "  %-14s %s\n", commands[i].name, commands[i].what);
  fputs("\noptions\n"
        "  --json         print one JSON object\n"
        "  --quick        a short run with less steady figures\n"
        "  --against faiss  scan: compare with FAISS too (installs it if need be)\n"
        "  --threads N    for matrix products (default 1)\n"
        "  --model DIR    folder of the tiny model\n"
        "  --coldkvd PATH the daemon (default: the one built with this program)\n"
        "  --backend WHICH, --spin-us N, --vram-codes-limit N  its options of these names\n"
        "  --help         this text\n",
        stream);
}

/* Returns 0 to go on, 1 when --help was answered, -1 for a mistake. */
static int parse(struct bench_options *options, struct bench_output *output, int argc, char **argv) {
  static const struct option known[] = {
      {"json", no_argument, NULL, 'j'},        {"quick", no_argument, NULL, 'q'},
      {"threads", required_argument, NULL, 't'}, {"model", required_argument, NULL, 'm'},
      {"coldkvd", required_argument, NULL, 'D'}, {"help", no_argument, NULL, 'h'},
      {"against", required_argument, NULL, 'a'}, {"backend", required_argument, NULL, 'b'},
      {"spin-us", required_argument, NULL, 's'}, {"vram-codes-limit", required_argument, NULL, 'v'}, {0}};
  *options = (struct bench_options){.threads = THREADS};
  for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
    switch (c) {
    case 'j': output->json = true; break;
    case 'q': options->quick = true; break;
    case 'm': options->model = optarg; break;
    case 'b': options->backend = optarg; break;
    case 's': options->spin_us = optarg; break;
    case 'v': options->vram_codes_limit = optarg; break;
    case 'D': options->coldkvd = optarg; break;
    case 'a':
      if (strcmp(optarg, "faiss") != 0) {
        fprintf(stderr, "coldkv-bench: --against: '%s' is not faiss\n", optarg);
        return -1;
      }
      options->faiss = true;
      break;
    case 'h': usage(stdout); return 1;
    case 't': {
      char *rest;
      long threads = strtol(optarg, &rest, 10);
      if (*rest || threads < 1 || threads > THREADS_MAX) {
        fprintf(stderr, "coldkv-bench: --threads: '%s' is not 1 to %d\n", optarg, THREADS_MAX);
        return -1;
      }
      options->threads = (int)threads;
      break;
    }
    default: return -1;
    }
  }
  if (argc - optind == 1)
    return 0;
  usage(stderr);
  return -1;
}

int main(int argc, char **argv) {
  struct bench_options options;
  struct bench_output output = {0};
  struct error error = {0};
  int result = parse(&options, &output, argc, argv);
  if (result)
    return result > 0 ? EXIT_SUCCESS : 2;
  for (int i = 0; i < COMMANDS; i++) {
    if (strcmp(argv[optind], commands[i].name) != 0)
      continue;
    result = commands[i].run(&options, &output, &error);
    if (output.json && output.count)
      puts("}");
    if (!result)
      return EXIT_SUCCESS;
    fflush(stdout);
    fprintf(stderr, "coldkv-bench: %s\n", error.text);
    return EXIT_FAILURE;
  }
  fprintf(stderr, "coldkv-bench: %s: no such command; see --help\n", argv[optind]);
  return 2;
}
