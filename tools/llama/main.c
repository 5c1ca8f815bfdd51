// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// coldkv-llama: chats with a model under llama.cpp, in a conversation that outlives the program and the model's window.
#include <errno.h>
#include <getopt.h>
#include <llama.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/coldkv.h"
#include "client/llama/coldkv_llama.h"
#include "tools/llama/chat.h"

struct options {
  const char *model, *conversation, *socket, *read;
  unsigned long predict, slots, rows, threads, layers, seed;
  double temperature;
  bool raw, any_version, verbose;
};

/* All that is open. */
struct talk {
  const struct options *options;
  struct llama_model *model;
  struct llama_sampler *sampler;
  coldkv_client *client;
  coldkv_llama *memory;
  struct chat chat;
  struct error error;
};

static const char usage[] =
    "usage: coldkv-llama --model FILE.gguf --conversation NAME [options]\n"
    "Chats with a model under llama.cpp: a line from standard input, an answer to standard output.\n"
    "  -m, --model FILE         the model, GGUF\n"
    "  -c, --conversation NAME  goes on where it was, or begins\n"
    "      --read FILE          reads a text into the conversation first\n"
    "      --socket PATH        the daemon's socket\n"
    "      --raw                no chat template: lines go to the model as they are\n"
    "      --predict N          tokens of an answer at most (512)\n"
    "      --temperature T      0 for the likeliest token (0.7)\n"
    "      --seed N             of the sampler\n"
    "      --slots N            retrieved tokens in an attention (64)\n"
    "      --rows N             tokens of a question looked up at a time (8)\n"
    "      --threads N          for llama.cpp\n"
    "      --gpu-layers N       layers on a GPU\n"
    "      --any-version        also with a llama.cpp that was not tested\n"
    "      --verbose            what llama.cpp says\n"
    "      --help, --version\n";

static int coldkv_failed(struct talk *talk, int result) {
  return result ? error_set(&talk->error, -result, "%s", coldkv_error()) : 0;
}

static int feed(struct talk *talk, const int32_t *ids, uint32_t n, int flags) {
  int result = n ? coldkv_llama_feed(talk->memory, ids, n, flags) : 0;
  return result ? error_set(&talk->error, -result, "%s", coldkv_llama_error()) : 0;
}

static int count_tokens(struct talk *talk, uint64_t *tokens) {
  struct coldkv_status status;
  int result = coldkv_failed(talk, coldkv_get_status(coldkv_llama_conversation(talk->memory), &status));
  *tokens = result ? 0 : status.tokens;
  return result;
}

/* Makes all that was said durable; a daemon that is away is told of and does not end the talk. */
static void keep(struct talk *talk) {
  if (coldkv_sync(coldkv_llama_conversation(talk->memory)))
    fprintf(stderr, "coldkv-llama: not kept yet: %s\n", coldkv_error());
}

static void print_piece(const struct llama_vocab *vocab, llama_token id, char *newline) {
  char piece[256];
  int32_t size = llama_token_to_piece(vocab, id, piece, sizeof piece, 0, false);
  if (size <= 0)
    return;
  fwrite(piece, 1, (size_t)size, stdout);
  fflush(stdout);
  *newline = piece[size - 1];
}

/* Generates until the model has ended its answer, or without a template the line. */
static int answer(struct talk *talk) {
  const struct llama_vocab *vocab = llama_model_get_vocab(talk->model);
  char last = 0;
  int result = 0;
  for (unsigned long i = 0; i < talk->options->predict && !result; i++) {
    llama_token id = llama_sampler_sample(talk->sampler, coldkv_llama_context(talk->memory), -1);
    if (llama_vocab_is_eog(vocab, id))
      break;
    print_piece(vocab, id, &last);
    result = feed(talk, &id, 1, COLDKV_LLAMA_RETRIEVE);
    if (!talk->chat.template && last == '\n')
      break;
  }
  if (last != '\n')
    puts("");
  return result;
}

static int say(struct talk *talk, const char *line) {
  uint64_t before;
  struct tokens tokens = {0};
  int result = count_tokens(talk, &before);
  if (!result)
    result = chat_turn(&talk->chat, line, before == 0, &tokens, &talk->error);
  if (!result)
    result = feed(talk, tokens.ids, tokens.count, COLDKV_LLAMA_RETRIEVE);
  if (!result && tokens.count)
    result = answer(talk);
  free(tokens.ids);
  if (!result)
    keep(talk);
  return result;
}

/* All bytes of a file; free(*text). */
static int load(struct talk *talk, const char *path, char **text, size_t *size) {
  FILE *file = fopen(path, "rb");
  long end = -1;
  *text = NULL;
  if (file && fseek(file, 0, SEEK_END) == 0 && (end = ftell(file)) >= 0 && fseek(file, 0, SEEK_SET) == 0)
    *text = malloc((size_t)end + 1);
  *size = *text ? fread(*text, 1, (size_t)end, file) : 0;
  int result = *text && *size == (size_t)end ? 0 : error_set_errno(&talk->error, errno, "cannot read %s", path);
  if (file)
    fclose(file);
  return result;
}

static int read_text(struct talk *talk, const char *path) {
  char *text;
  size_t size;
  uint64_t before;
  struct tokens tokens = {0};
  int result = load(talk, path, &text, &size);
  if (!result)
    result = count_tokens(talk, &before);
  if (!result)
    result = chat_text(&talk->chat, text, size, before == 0, &tokens, &talk->error);
  if (!result)
    result = feed(talk, tokens.ids, tokens.count, 0);
  if (!result) {
    fprintf(stderr, "coldkv-llama: read %u tokens of %s\n", tokens.count, path);
    keep(talk);
  }
  free(tokens.ids);
  free(text);
  return result;
}

static int open_memory(struct talk *talk) {
  const struct options *options = talk->options;
  struct coldkv_llama_options wanted = {
      .k = (uint32_t)options->slots, .rows = (uint32_t)options->rows, .any_version = options->any_version};
  struct llama_context_params params = llama_context_default_params();
  long processors = sysconf(_SC_NPROCESSORS_ONLN);
  if (options->threads)
    params.n_threads = params.n_threads_batch = (int32_t)options->threads;
  else if (processors > 0 && params.n_threads > processors)
    params.n_threads = params.n_threads_batch = (int32_t)processors;
  int result = coldkv_failed(talk, coldkv_client_create(&talk->client, options->socket, NULL));
  if (result)
    return result;
  result = coldkv_llama_fingerprint(wanted.fingerprint, options->model);
  if (!result)
    result = coldkv_llama_open(&talk->memory, talk->model, &params, talk->client, options->conversation, &wanted);
  return result ? error_set(&talk->error, -result, "%s", coldkv_llama_error()) : 0;
}

static int start(struct talk *talk) {
  const struct options *options = talk->options;
  struct llama_model_params params = llama_model_default_params();
  params.n_gpu_layers = (int32_t)options->layers;
  talk->model = llama_model_load_from_file(options->model, params);
  if (!talk->model)
    return error_set(&talk->error, ERR_IO, "llama.cpp cannot load %s", options->model);
  talk->sampler = llama_sampler_chain_init(llama_sampler_chain_default_params());
  if (options->temperature > 0) {
    llama_sampler_chain_add(talk->sampler, llama_sampler_init_min_p(0.05f, 1));
    llama_sampler_chain_add(talk->sampler, llama_sampler_init_temp((float)options->temperature));
    llama_sampler_chain_add(talk->sampler, llama_sampler_init_dist((uint32_t)options->seed));
  } else {
    llama_sampler_chain_add(talk->sampler, llama_sampler_init_greedy());
  }
  int result = chat_init(&talk->chat, talk->model, options->raw, &talk->error);
  return result ? result : open_memory(talk);
}

static int run(struct talk *talk) {
  int result = start(talk);
  if (!result && talk->options->read)
    result = read_text(talk, talk->options->read);
  char *line = NULL;
  size_t capacity = 0;
  bool prompt = isatty(STDIN_FILENO);
  while (!result) {
    if (prompt)
      fputs("> ", stdout);
    fflush(stdout);
    ssize_t size = getline(&line, &capacity, stdin);
    if (size < 0)
      break;
    if (size > 0 && line[size - 1] == '\n')
      line[size - 1] = 0;
    if (*line)
      result = say(talk, line);
  }
  free(line);
  return result;
}

static void stop(struct talk *talk) {
  coldkv_llama_close(talk->memory);
  coldkv_client_destroy(talk->client);
  if (talk->sampler)
    llama_sampler_free(talk->sampler);
  if (talk->model)
    llama_model_free(talk->model);
  llama_backend_free();
}

static void quiet(enum ggml_log_level level, const char *text, void *context) {
  (void)context;
  if (level == GGML_LOG_LEVEL_ERROR)
    fputs(text, stderr);
}

/* The number of an option; false for what is none or beyond `most`. */
static bool number(const char *text, unsigned long most, unsigned long *out) {
  char *end;
  *out = strtoul(text, &end, 10);
  return *text >= '0' && *text <= '9' && !*end && *out <= most;
}

static bool fraction(const char *text, double *out) {
  char *end;
  *out = strtod(text, &end);
  return end != text && !*end && *out >= 0 && *out <= 100;
}

/* Returns 0 to go on, 1 when the question was answered, -1 for a mistake. */
static int parse(struct options *options, int argc, char **argv) {
  static const struct option known[] = {
      {"model", required_argument, NULL, 'm'},       {"conversation", required_argument, NULL, 'c'},
      {"read", required_argument, NULL, 'r'},        {"socket", required_argument, NULL, 's'},
      {"raw", no_argument, NULL, 'R'},               {"predict", required_argument, NULL, 'p'},
      {"temperature", required_argument, NULL, 'T'}, {"seed", required_argument, NULL, 'S'},
      {"slots", required_argument, NULL, 'k'},       {"rows", required_argument, NULL, 'n'},
      {"threads", required_argument, NULL, 't'},     {"gpu-layers", required_argument, NULL, 'g'},
      {"any-version", no_argument, NULL, 'a'},       {"verbose", no_argument, NULL, 'v'},
      {"help", no_argument, NULL, 'h'},              {"version", no_argument, NULL, 'V'},
      {0}};
  *options = (struct options){.predict = 512, .temperature = 0.7, .seed = LLAMA_DEFAULT_SEED};
  bool good = true;
  for (int c; good && (c = getopt_long(argc, argv, "m:c:", known, NULL)) != -1;)
    switch (c) {
    case 'm': options->model = optarg; break;
    case 'c': options->conversation = optarg; break;
    case 'r': options->read = optarg; break;
    case 's': options->socket = optarg; break;
    case 'R': options->raw = true; break;
    case 'a': options->any_version = true; break;
    case 'v': options->verbose = true; break;
    case 'p': good = number(optarg, 1 << 20, &options->predict); break;
    case 'S': good = number(optarg, UINT32_MAX, &options->seed); break;
    case 'k': good = number(optarg, 1024, &options->slots); break;
    case 'n': good = number(optarg, COLDKV_BLOCK_MAX, &options->rows); break;
    case 't': good = number(optarg, 4096, &options->threads); break;
    case 'g': good = number(optarg, 1 << 20, &options->layers); break;
    case 'T': good = fraction(optarg, &options->temperature); break;
    case 'h': fputs(usage, stdout); return 1;
    case 'V': printf("coldkv-llama %s, llama.cpp %s\n", COLDKV_VERSION, llama_version()); return 1;
    default: return -1;
    }
  if (!good)
    fprintf(stderr, "coldkv-llama: %s is not a number that makes sense here\n", optarg);
  else if (optind < argc || !options->model || !options->conversation)
    fputs(usage, stderr);
  else
    return 0;
  return -1;
}

int main(int argc, char **argv) {
  struct options options;
  int result = parse(&options, argc, argv);
  if (result)
    return result > 0 ? EXIT_SUCCESS : 2;
  struct talk talk = {.options = &options};
  if (!options.verbose)
    llama_log_set(quiet, NULL);
  llama_backend_init();
  result = run(&talk);
  stop(&talk);
  if (result) {
    fflush(stdout);
    fprintf(stderr, "coldkv-llama: %s\n", talk.error.text);
    return EXIT_FAILURE;
  }
  return EXIT_SUCCESS;
}
