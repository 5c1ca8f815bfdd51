// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The commands of coldkv, and what the command line says.
#ifndef COLDKV_TOOLS_COLDKV_COMMAND_H
#define COLDKV_TOOLS_COLDKV_COMMAND_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/error.h"

/* Exit statuses. */
enum { STATUS_GOOD = 0, STATUS_FAILED = 1, STATUS_USAGE = 2 };

struct options {
  char data[PATH_MAX], socket[PATH_MAX]; /* "" when there is no default */
  bool data_given, socket_given;         /* on the command line */
  bool json;
  /* inspect */
  bool layer_given, head_given, token_given, ids_given, text;
  uint32_t layer, head;
  uint64_t token;
  uint64_t ids_first, ids_count; /* count UINT64_MAX: to the end */
  bool dry_run, purge; /* repair */
  const char *arguments[2];      /* NAME, PATH and the like */
  int argument_count;
};

/* Each runs one command and returns an exit status. */
int command_ls(const struct options *options);
int command_info(const struct options *options);
int command_inspect(const struct options *options);
int command_verify(const struct options *options);
int command_delete(const struct options *options);
int command_repair(const struct options *options);
int command_stats(const struct options *options);
int command_status(const struct options *options);

#endif
