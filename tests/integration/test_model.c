// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The whole of coldkv on a real model: the demo's 12 facts with its kills and restarts, and the quality of attention,
// both with a real daemon. Arguments: coldkv-demo, coldkv-bench, folder of the model.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/demo/exact.h"
#include "tools/demo/json.h"
#include "tools/demo/question.h"

enum { OUTPUT_BYTES_MAX = 1 << 16, DEMO_BYTES = 6144, WINDOW_BYTES = 1900 };

static const char *demo_path, *bench_path, *model_path;

/* Runs a program of this build, returns its exit status and fills in what it prints. */
static int run(const char *program, const char *arguments, char *output) {
  char command[8192];
  assert_true(snprintf(command, sizeof command, "'%s' %s", program, arguments) < (int)sizeof command);
  FILE *stream = popen(command, "r");
  assert_non_null(stream);
  size_t size = fread(output, 1, OUTPUT_BYTES_MAX - 1, stream);
  output[size] = 0;
  return pclose(stream);
}

/* The number of right answers that stands behind `words`, as in "with coldkv 12/12"; a huge one when there is none. */
static unsigned long count_after(const char *line, const char *words) {
  char *rest = strstr(line, words);
  if (!rest)
    return ULONG_MAX;
  unsigned long count = strtoul(rest + strlen(words), &rest, 10);
  assert_int_equal(strncmp(rest, "/12", 3), 0);
  return count;
}

static void test_facts(void **state) {
  (void)state;
  static char output[OUTPUT_BYTES_MAX];
  char arguments[64];
  snprintf(arguments, sizeof arguments, "--bytes %d --threads 1", DEMO_BYTES);
  int status = run(demo_path, arguments, output);
  const char *last = strstr(output, "\ndemo: ");
  if (!last) {
    fail_msg("no last line in:\n%s", output);
    return;
  }
  print_message("%s", last + 1);
  assert_in_range(count_after(last, "with coldkv "), 11, DOCUMENT_FACTS);
  assert_in_range(count_after(last, "after restart "), 11, DOCUMENT_FACTS);
  assert_int_equal(count_after(last, "retrieval cut "), 0);
  assert_int_equal(count_after(last, "plain window "), 0); /* all facts lie before what the window holds */
  assert_int_equal(status, 0);
}

static void test_quality(void **state) {
  (void)state;
  static char output[OUTPUT_BYTES_MAX];
  struct {
    const char *name;
    double value;
    bool found;
  } figures[] = {{"kl_median", 0, false}, {"kl_mean", 0, false}, {"top1", 0, false},
                 {"recall_mass", 0, false}, {"cos_k", 0, false}, {"cos_v", 0, false}};
  enum { FIGURES = sizeof figures / sizeof *figures };
  char key[64];
  assert_int_equal(run(bench_path, "quality --quick --json --threads 1", output), 0);
  print_message("%s", output);
  struct json json = {.at = output, .end = output + strlen(output)};
  json_open(&json, '{');
  while (json_key(&json, key, sizeof key)) {
    int i = 0;
    while (i < FIGURES && strcmp(key, figures[i].name) != 0)
      i++;
    if (i == FIGURES) {
      json_skip(&json);
    } else {
      figures[i].value = json_number(&json);
      figures[i].found = true;
    }
  }
  assert_true(json_finished(&json)); /* one object and nothing else */
  for (int i = 0; i < FIGURES; i++)
    assert_true(figures[i].found);
  assert_true(figures[0].value > 0 && figures[0].value <= 0.0005);
  assert_true(figures[1].value > 0 && figures[1].value <= 0.02);
  assert_true(figures[2].value >= 0.975 && figures[2].value <= 1);
  assert_true(figures[3].value >= 0.9 && figures[3].value <= 1 + 1e-9);
  assert_true(figures[4].value >= 0.99 && figures[4].value < 1);
  assert_true(figures[5].value >= 0.98 && figures[5].value < 1);
}

struct reading {
  struct llama *llama;
  struct exact *exact;
  struct error error;
};

static int feed(void *context, const uint32_t *ids, uint32_t n, float *logits) {
  struct reading *reading = context;
  return exact_feed(reading->exact, reading->llama, ids, n, logits, 1, &reading->error);
}

/* The model itself, inside its window and without coldkv: a mistake in it must not be taken for one of coldkv's. */
static void test_full_attention(void **state) {
  (void)state;
  struct reading reading = {0};
  struct document document;
  uint32_t ids[LLAMA_BLOCK_MAX];
  assert_int_equal(llama_load(&reading.llama, model_path, &reading.error), 0);
  uint32_t vocab = llama_config(reading.llama)->vocab, window = llama_config(reading.llama)->window;
  float *logits = malloc(vocab * sizeof *logits);
  assert_non_null(logits);
  assert_int_equal(exact_create(&reading.exact, llama_config(reading.llama), window, &reading.error), 0);
  assert_int_equal(document_write(&document, 99, DOCUMENT_BYTES_MIN, &reading.error), 0);
  for (uint32_t read = 0; read < WINDOW_BYTES;) {
    uint32_t n = WINDOW_BYTES - read < LLAMA_BLOCK_MAX ? WINDOW_BYTES - read : LLAMA_BLOCK_MAX;
    question_ids(document.text + read, n, ids);
    assert_int_equal(feed(&reading, ids, n, logits), 0);
    read += n;
  }
  uint32_t asked = 0, right = 0;
  for (uint32_t i = 0; i < DOCUMENT_FACTS; i++) {
    char answer[DOCUMENT_DIGITS + 1];
    if (document.facts[i].at + sizeof document.facts[i].sentence > WINDOW_BYTES)
      continue;
    assert_int_equal(question_ask(&document.facts[i], feed, &reading, logits, vocab, answer), 0);
    exact_rewind(reading.exact, WINDOW_BYTES);
    asked++;
    right += strcmp(answer, document.facts[i].digits) == 0;
  }
  assert_true(asked >= 8);
  assert_int_equal(right, asked);
  question_ids("x", 1, ids);
  for (uint32_t i = WINDOW_BYTES; i < window; i++)
    assert_int_equal(feed(&reading, ids, 1, logits), 0);
  assert_int_equal(feed(&reading, ids, 1, logits), -ERR_LIMIT); /* full */
  document_finish(&document);
  exact_destroy(reading.exact);
  llama_free(reading.llama);
  free(logits);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_full_attention),
      cmocka_unit_test(test_facts),
      cmocka_unit_test(test_quality),
  };
  if (argc != 4) {
    fprintf(stderr, "usage: test_model COLDKV-DEMO COLDKV-BENCH MODEL\n");
    return 2;
  }
  demo_path = argv[1];
  bench_path = argv[2];
  model_path = argv[3];
  return cmocka_run_group_tests(tests, NULL, NULL);
}
