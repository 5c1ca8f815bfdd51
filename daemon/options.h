// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What the command line and the config file say.
#ifndef COLDKV_DAEMON_OPTIONS_H
#define COLDKV_DAEMON_OPTIONS_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/access.h"
#include "proto/error.h"

enum durability {
  DURABILITY_ALWAYS,   /* an append is acknowledged when it is on disk */
  DURABILITY_INTERVAL, /* acknowledged at once, synced every interval_ms */
  DURABILITY_NONE,     /* acknowledged at once, synced when a conversation closes or a segment is sealed */
};

enum backend_choice {
  BACKEND_AUTO, /* a GPU where there is one that works */
  BACKEND_CPU,
  BACKEND_CUDA, /* a GPU, or the daemon does not start */
};

#define VRAM_CODES_DEFAULT UINT64_MAX /* a quarter of the GPU's memory */

struct options {
  char data[PATH_MAX], socket[PATH_MAX];
  enum durability durability;
  unsigned threads;        /* for lookups */
  uint64_t spin_us;        /* idle threads look for work for so long before they sleep */
  enum backend_choice backend;
  uint64_t vram_limit;     /* MiB of the GPU's memory for signatures; 0: half of it */
  uint64_t vram_codes_limit; /* MiB of it for key codes, with which it rescores; 0: it does not, or the default */
  uint64_t gpu_tokens_min; /* lookups over fewer are the processor's */
  unsigned interval_ms;    /* durability "interval" */
  uint64_t tail_memory_mb; /* tails of idle conversations leave memory past this */
  uint64_t scan_memory_mb; /* scan regions of open conversations are brought into memory up to this */
  uint64_t scrub_mb_s;     /* rate at which the whole archive is read again and again; 0: it is not */
  uint64_t scrub_pause_s;  /* between two times */
  bool io_uring;           /* use it for cold pages where it is allowed */
  struct access access;    /* who may connect */

  /* What clients may make the daemon hold. */
  uint64_t connections, user_connections;
  uint64_t user_conversations; /* open */
  uint64_t user_requests;      /* under way */
  uint64_t user_queue_mb;      /* messages and answers */
  uint64_t quota_mb;           /* a user's bytes in the archive; 0: no bound */
  uint64_t client_timeout_s;   /* for a message to be complete, for an answer to be taken; 0: for ever */
};

/* Names of enum durability, in its order. */
extern const char *const durability_names[3];

/* Fills in the defaults, then the config file (named by --config, else coldkvd.conf in $XDG_CONFIG_HOME/coldkv or
 * ~/.config/coldkv if there is one), then the command line. Returns 0 to go on, 1 when --help or --version was
 * answered, or
 * -ERR_ARGUMENT / -ERR_IO with a sentence. */
int options_read(struct options *options, int argc, char **argv, struct error *error);

/* Reads one config file of at most 64 KiB: lines "key = value", '#' begins a comment. */
int options_read_file(struct options *options, const char *path, struct error *error);

/* Bytes that each connection may hold at any time: what user_queue_mb leaves beside LIMIT_LARGE_PER_USER_MAX
 * connections that hold more, for each of user_connections. 0 when it is too little to work with. */
uint64_t options_connection_bytes(const struct options *options);

#endif
