// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// coldkv: lists, shows, checks and deletes what coldkvd keeps.
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/defaults.h"
#include "proto/limits.h"
#include "store/mapped_fault.h"
#include "tools/coldkv/command.h"
#include "tools/coldkv/report.h"

static const char help[] =
    "usage: coldkv COMMAND [options]\n"
    "Lists, shows, checks and deletes the conversations that coldkvd keeps.\n"
    "\n"
    "  ls                     all conversations: name, model, tokens, size, last use\n"
    "  info NAME              one conversation and the files it consists of\n"
    "  inspect NAME|PATH      a conversation or any one file of an archive, read without a daemon\n"
    "  verify [DIR|FILE]      checks every CRC; exit status 1 when something is wrong\n"
    "  repair [DIR]           makes a damaged archive whole while no daemon runs: gives up what is proven bad, says\n"
    "                         what that was, and keeps its bytes in DIR/quarantine\n"
    "  delete NAME NAME       deletes a conversation for good; the name twice\n"
    "  status                 what the running daemon found damaged, and how far its scrub is; exit status 1 when\n"
    "                         something is\n"
    "  stats                  figures of the running daemon\n"
    "\n"
    "  --data DIR             the archive (default: $COLDKV_DATA, else $XDG_DATA_HOME/coldkv, else\n"
    "                         ~/.local/share/coldkv); ls and info then read its files and ask no daemon\n"
    "  --socket PATH          the daemon's socket (default: $COLDKV_SOCKET, else $XDG_RUNTIME_DIR/coldkv.sock, else\n"
    "                         /tmp/coldkv-UID/coldkv.sock)\n"
    "  --json                 print JSON, with exact numbers\n"
    "  --help, --version\n"
    "\n"
    "repair:\n"
    "  --dry-run              say what would be done, and do nothing\n"
    "  --purge                then remove for good what repairs have put in quarantine\n"
    "\n"
    "inspect:\n"
    "  --layer L              show the blocks of that layer of a segment\n"
    "  --layer L --head H --token T\n"
    "                         show one record, its fields and what they decode to; T counts from the beginning of\n"
    "                         the conversation\n"
    "  --ids FIRST[:COUNT]    print token ids\n"
    "  --text                 print token ids as bytes (of a byte-level model); alone: all of them\n";

static const struct {
  const char *name;
  int (*run)(const struct options *options);
  int least, most; /* arguments */
  const char *arguments;
} commands[] = {
    {"ls", command_ls, 0, 0, ""},
    {"info", command_info, 1, 1, " NAME"},
    {"inspect", command_inspect, 1, 1, " NAME|PATH"},
    {"verify", command_verify, 0, 1, " [DIR|FILE]"},
    {"repair", command_repair, 0, 1, " [DIR]"},
    {"delete", command_delete, 2, 2, " NAME NAME"},
    {"stats", command_stats, 0, 0, ""},
    {"status", command_status, 0, 0, ""},
};

static int usage(const char *format, ...) __attribute__((format(printf, 1, 2)));

static int usage(const char *format, ...) {
  char sentence[ERROR_TEXT_BYTES], text[ERROR_TEXT_BYTES + 32];
  va_list args;
  va_start(args, format);
  vsnprintf(sentence, sizeof sentence, format, args);
  va_end(args);
  snprintf(text, sizeof text, "%s; see coldkv --help", sentence);
  report_complain(text);
  return STATUS_USAGE;
}

/* Reads a decimal number of at most `max` that ends at `ends` or with the string, and returns its end; NULL if there is
 * none. */
static const char *read_number(const char *text, uint64_t max, char ends, uint64_t *value) {
  char *end;
  errno = 0;
  if (!isdigit((unsigned char)*text))
    return NULL;
  *value = strtoull(text, &end, 10);
  if (errno || *value > max || (*end && *end != ends))
    return NULL;
  return end;
}

static bool read_ids(const char *text, struct options *options) {
  options->ids_count = UINT64_MAX;
  const char *end = read_number(text, LIMIT_TOKEN_INDEX_MAX, ':', &options->ids_first);
  if (end && *end)
    end = read_number(end + 1, LIMIT_TOKEN_INDEX_MAX, '\0', &options->ids_count);
  return options->ids_given = end != NULL;
}

static bool read_path(const char *text, char path[PATH_MAX], bool *given) {
  size_t size = strlen(text);
  if (!size || size >= PATH_MAX)
    return false;
  memcpy(path, text, size + 1);
  return *given = true;
}

static bool read_place(const char *text, uint64_t max, uint64_t *value, bool *given) {
  return *given = read_number(text, max, '\0', value) != NULL;
}

enum { OPTION_DATA = 256, OPTION_SOCKET, OPTION_JSON, OPTION_LAYER, OPTION_HEAD, OPTION_TOKEN, OPTION_IDS, OPTION_TEXT,
       OPTION_DRY_RUN, OPTION_PURGE, OPTION_HELP, OPTION_VERSION };

static const struct option names[] = {
    {"data", required_argument, NULL, OPTION_DATA},   {"socket", required_argument, NULL, OPTION_SOCKET},
    {"json", no_argument, NULL, OPTION_JSON},         {"layer", required_argument, NULL, OPTION_LAYER},
    {"head", required_argument, NULL, OPTION_HEAD},   {"token", required_argument, NULL, OPTION_TOKEN},
    {"ids", required_argument, NULL, OPTION_IDS},     {"text", no_argument, NULL, OPTION_TEXT},
    {"dry-run", no_argument, NULL, OPTION_DRY_RUN},   {"purge", no_argument, NULL, OPTION_PURGE},
    {"help", no_argument, NULL, OPTION_HELP},         {"version", no_argument, NULL, OPTION_VERSION},
    {NULL, 0, NULL, 0}};

static bool read_option(struct options *options, int letter, const char *value) {
  uint64_t number = 0;
  bool good = true;
  switch (letter) {
  case OPTION_DATA:
    return read_path(value, options->data, &options->data_given);
  case OPTION_SOCKET:
    return read_path(value, options->socket, &options->socket_given);
  case OPTION_LAYER:
    good = read_place(value, LIMIT_LAYERS_MAX - 1, &number, &options->layer_given);
    options->layer = (uint32_t)number;
    return good;
  case OPTION_HEAD:
    good = read_place(value, LIMIT_KV_HEADS_MAX - 1, &number, &options->head_given);
    options->head = (uint32_t)number;
    return good;
  case OPTION_TOKEN:
    return read_place(value, LIMIT_TOKEN_INDEX_MAX, &options->token, &options->token_given);
  case OPTION_IDS:
    return read_ids(value, options);
  case OPTION_JSON:
    return options->json = true;
  case OPTION_DRY_RUN:
    return options->dry_run = true;
  case OPTION_PURGE:
    return options->purge = true;
  default: /* OPTION_TEXT */
    return options->text = true;
  }
}

/* The options of inspect that make no sense together or with another command. */
static int check_options(const struct options *options, bool inspect, bool repair) {
  bool record = options->head_given || options->token_given;
  bool ids = options->ids_given || options->text;
  if (!repair && (options->dry_run || options->purge))
    return usage("--dry-run and --purge belong to repair");
  if (options->dry_run && options->purge)
    return usage("--dry-run and --purge do not go together");
  if (!inspect && (record || ids || options->layer_given))
    return usage("--layer, --head, --token, --ids and --text belong to inspect");
  if (record && !(options->layer_given && options->head_given && options->token_given))
    return usage("one record needs --layer, --head and --token");
  if (ids && options->layer_given)
    return usage("--ids and --text do not go together with --layer");
  return STATUS_GOOD;
}

int main(int argc, char **argv) {
  /* Widths of characters need a UTF-8 locale; everything else stays as in "C". */
  setlocale(LC_CTYPE, "C.UTF-8");
  mapped_fault_install();
  mapped_guard_begin(); /* for good: whatever reads a segment here asks whether it could be read */
  struct options options = {.ids_count = UINT64_MAX};
  if (default_data_dir(options.data, sizeof options.data))
    options.data[0] = '\0';
  if (default_socket_path(options.socket, sizeof options.socket))
    options.socket[0] = '\0';
  int letter, index = 0;
  while ((letter = getopt_long(argc, argv, "", names, &index)) != -1) {
    if (letter == OPTION_HELP || letter == OPTION_VERSION) {
      fputs(letter == OPTION_HELP ? help : "coldkv " COLDKV_VERSION_STRING "\n", stdout);
      return fflush(stdout) ? STATUS_FAILED : STATUS_GOOD;
    }
    if (letter == '?')
      return STATUS_USAGE;
    if (!read_option(&options, letter, optarg))
      return usage("--%s: '%.100s' makes no sense there", names[index].name, optarg);
  }
  if (optind == argc)
    return usage("no command");
  const char *command = argv[optind++];
  for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
    if (strcmp(commands[i].name, command) != 0)
      continue;
    options.argument_count = argc - optind;
    if (options.argument_count < commands[i].least || options.argument_count > commands[i].most)
      return usage("usage: coldkv %s%s", command, commands[i].arguments);
    for (int a = 0; a < options.argument_count; a++)
      options.arguments[a] = argv[optind + a];
    int status = check_options(&options, commands[i].run == command_inspect, commands[i].run == command_repair);
    return status ? status : commands[i].run(&options);
  }
  return usage("'%.100s' is no command", command);
}
