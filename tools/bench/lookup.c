// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// coldkv-bench lookup: what an engine waits for one lookup of one layer, through the socket, while a conversation
// grows; and what of that is not the lookup itself. For the latter the same lookups run in this process on the same
// files.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "retrieval/lookup.h"
#include "tools/bench/columns.h"
#include "tools/bench/measure.h"
#include "tools/bench/peer.h"
#include "tools/bench/read.h"
#include "tools/bench/segments.h"
#include "tools/bench/team.h"

enum {
  KV_HEADS = 8,
  HEAD_DIM = 128,
  K = 64,
  FRAME = LIMIT_APPEND_TOKENS_MAX,
  REQUESTS_MAX = 600,
  WARM_UP = 600, /* more than the daemon takes to believe that a conversation is in memory */
  SHARE_TOKENS = 16384,
};

static const struct {
  uint32_t tokens, requests;
} sizes[] = {{4096, 600}, {SHARE_TOKENS, 600}, {65536, 400}, {131072, 600}, {262144, 200}, {1048576, 200}};
enum { SIZES = sizeof sizes / sizeof *sizes, SIZES_QUICK = 3, QUICK_PART = 4 };

struct query_row {
  float values[KV_HEADS][RECORD_SIGNATURE_BITS];
};

/* One kv head of a lookup in this process. */
struct local_head {
  struct lookup_scratch *scratch;
  struct record_columns *parts;
  uint64_t tokens[K];
  uint8_t records[K * RECORD_BYTES];
  uint32_t index[K];
  float scores[K];
  int failed;
};

struct local {
  struct local_head heads[KV_HEADS];
  struct segments segments;
  struct team *team;
  uint32_t threads;
  double read_rate; /* bytes per second of one core */
  const struct query_row *query;
};

struct times {
  double socket[REQUESTS_MAX], local[REQUESTS_MAX];
  double steady[REQUESTS_MAX]; /* through the socket, one after another */
  uint32_t count, tokens;
};

/* --- in this process ---------------------------------------------------------------------------------------------- */

static void look_up_head(void *context, uint32_t number) {
  struct local *local = context;
  struct local_head *head = &local->heads[number];
  struct error error;
  struct lookup_answer answer = {.tokens = head->tokens, .records = head->records, .index = head->index,
                                 .scores = head->scores};
  const struct lookup_request request = {.mode = LOOKUP_WEIGHTED, .head_dim = HEAD_DIM, .head = number, .rows = 1,
                                         .k = K, .before = UINT64_MAX, .row_stride = RECORD_SIGNATURE_BITS * 4,
                                         .queries = (const uint8_t *)local->query->values[number]};
  head->failed |= lookup_run(head->scratch, &request, head->parts, local->segments.count, &answer, &error);
}

/* The kv heads are shared out to two threads where the daemon has two. */
static double look_up_here(struct local *local, const struct query_row *query) {
  double start = now_s();
  local->query = query;
  if (local->threads > 1)
    team_of(local->team)->run(team_of(local->team), KV_HEADS, look_up_head, local);
  else
    for (uint32_t head = 0; head < KV_HEADS; head++)
      look_up_head(local, head);
  return now_s() - start;
}

static int local_open(struct local *local, const char *data, struct error *error) {
  int result = segments_open(&local->segments, data, error);
  for (uint32_t h = 0; h < KV_HEADS && !result; h++) {
    struct local_head *head = &local->heads[h];
    head->parts = calloc(local->segments.count, sizeof *head->parts);
    if (!head->parts)
      return error_set(error, ERR_MEMORY, "no memory for lookups");
    for (uint32_t i = 0; i < local->segments.count; i++)
      segment_columns(local->segments.items[i], 0, h, &head->parts[i]);
    result = lookup_scratch_create(&head->scratch, error);
  }
  return result;
}

static void local_close(struct local *local) {
  for (uint32_t h = 0; h < KV_HEADS; h++) {
    lookup_scratch_destroy(local->heads[h].scratch);
    free(local->heads[h].parts);
    local->heads[h] = (struct local_head){0};
  }
  segments_close(&local->segments);
}

/* --- through the socket ------------------------------------------------------------------------------------------- */

static int look_up_there(struct peer *peer, uint64_t before, const struct query_row *query, double *seconds,
                         struct msg_lookup_ok *answer, struct error *error) {
  struct msg_lookup lookup;
  message_init(&message_lookup, &lookup);
  lookup.conversation = peer->handle;
  lookup.rows = 1;
  lookup.queries = span_of(query, sizeof *query);
  lookup.k = K;
  lookup.mode = LOOKUP_WEIGHTED;
  lookup.before = before;
  double start = now_s();
  int result = rpc_call(peer->rpc, METHOD_LOOKUP, &lookup, answer, error);
  *seconds = now_s() - start;
  return result;
}

/* Both sides must have found the same, or one of them was measured doing something else. */
static int compare(const struct local *local, const struct msg_lookup_ok *answer, struct error *error) {
  bool same = answer->heads.count == KV_HEADS;
  for (uint32_t h = 0; h < KV_HEADS && same; h++) {
    struct msg_lookup_head head;
    message_init(&message_lookup_head, &head);
    if (message_unpack(&message_lookup_head, &answer->heads.objects[h], &head, error))
      return -error->code;
    same = !local->heads[h].failed && head.scores.size == sizeof local->heads[h].scores &&
           memcmp(head.scores.data, local->heads[h].scores, head.scores.size) == 0;
  }
  return same ? 0 : error_set(error, ERR_INTERNAL, "the daemon's answer differs from that of a lookup in this process");
}

/* --- sizes -------------------------------------------------------------------------------------------------------- */

/* Both in turns, as many times as wanted. */
static int run(struct peer *peer, struct local *local, struct times *times, struct error *error) {
  struct query_row query;
  struct msg_lookup_ok answer;
  double seconds;
  int result = 0;
  for (uint32_t i = 0; i < WARM_UP && !result; i++) {
    for (uint32_t h = 0; h < KV_HEADS; h++)
      random_query(&peer->state, query.values[h]);
    result = look_up_there(peer, times->tokens, &query, &seconds, &answer, error);
    if (peer->count > SHARE_TOKENS && i >= WARM_UP / 8 && seconds > 1e-2)
      break; /* long ones need no warming of caches */
  }
  for (uint32_t i = 0; i < times->count && !result; i++) {
    for (uint32_t h = 0; h < KV_HEADS; h++)
      random_query(&peer->state, query.values[h]);
    times->local[i] = look_up_here(local, &query);
    result = look_up_there(peer, times->tokens, &query, &times->socket[i], &answer, error);
    if (!result)
      result = compare(local, &answer, error);
  }
  return result;
}

/* With nothing between them, as an engine that waits for each sends them. */
static int run_steadily(struct peer *peer, struct times *times, struct error *error) {
  struct query_row queries[16];
  struct msg_lookup_ok answer;
  int result = 0;
  for (uint32_t i = 0; i < 16 * KV_HEADS; i++)
    random_query(&peer->state, queries[i / KV_HEADS].values[i % KV_HEADS]);
  for (uint32_t i = 0; i < times->count && !result; i++)
    result = look_up_there(peer, times->tokens, &queries[i % 16], &times->steady[i], &answer, error);
  return result;
}

static void print(struct times *times, double read_rate, struct bench_output *output) {
  uint32_t tokens = times->tokens;
  char name[64], what[96];
  double ratio = ratio_median(times->local, times->socket, times->count);
  double bytes = (double)tokens * KV_HEADS * (RECORD_SIGNATURE_BYTES + RECORD_K_SCALE_BYTES);
  double here = median(times->local, times->count);
  snprintf(name, sizeof name, "lookup_%u_p50_us", tokens);
  snprintf(what, sizeof what, "us, median at %u tokens (%.1f MB scanned)", tokens, bytes / 1e6);
  bench_figure(output, name, 1e6 * median(times->socket, times->count), what);
  snprintf(name, sizeof name, "lookup_%u_p99_us", tokens);
  bench_figure(output, name, 1e6 * quantile(times->socket, times->count, 0.99), "us, 99 of 100 take at most that");
  snprintf(name, sizeof name, "lookup_%u_steady_p50_us", tokens);
  bench_figure(output, name, 1e6 * median(times->steady, times->count), "us, median of one after another");
  snprintf(name, sizeof name, "lookup_%u_steady_p99_us", tokens);
  bench_figure(output, name, 1e6 * quantile(times->steady, times->count, 0.99), "us, 99 of 100 of these");
  snprintf(name, sizeof name, "lookup_%u_here_us", tokens);
  bench_figure(output, name, 1e6 * here, "us, the same lookups in one process, median");
  snprintf(name, sizeof name, "lookup_%u_gb_s", tokens);
  bench_figure(output, name, bytes / here / 1e9, "GB/s of signatures and scales in one process");
  snprintf(name, sizeof name, "lookup_%u_over_read", tokens);
  bench_figure(output, name, bytes / here / read_rate, "of the bandwidth of one core, on as many as the daemon uses");
  if (tokens == SHARE_TOKENS)
    bench_figure(output, "protocol_share", 1 - ratio, "of the time is protocol and copying; wanted: under 0.25");
}

static int measure(struct peer *peer, struct local *local, struct times *times, struct bench_output *output,
                   struct error *error) {
  int result = 0;
  uint32_t tokens = times->tokens;
  while (peer->count <= tokens && !result) /* one more than are measured, so that the last log is closed and sealed */
    result = peer_append(peer, FRAME, NULL, error);
  if (!result)
    result = peer_wait_sealed(peer, tokens / LIMIT_SEGMENT_TOKENS, error);
  if (!result)
    result = local_open(local, peer->service.data, error);
  if (!result)
    result = run(peer, local, times, error);
  if (!result)
    result = run_steadily(peer, times, error);
  local_close(local);
  if (!result)
    print(times, local->read_rate, output);
  return result;
}

int bench_lookup(const struct bench_options *options, struct bench_output *output, struct error *error) {
  static struct times times;
  static struct local local;
  struct peer peer;
  bench_machine(output, "lookup", "lookups through the socket while a conversation grows");
  bench_text(output, "kernel", lookup_kernel_name(), "kernels in use");
  bench_integer(output, "kv_heads", KV_HEADS, "of head_dim 128; one row each, k = 64, weighted, default C");
  int result = peer_start(&peer, options, 1, KV_HEADS, HEAD_DIM, error);
  if (!result)
    bench_text(output, "backend", peer.backend, "of the daemon");
  if (!result)
    result = read_measure(output, &local.read_rate, error);
  if (!result)
    result = team_create(&local.team, -1, error);
  local.threads = sysconf(_SC_NPROCESSORS_ONLN) > 1 ? 2 : 1;
  for (int i = 0; i < (options->quick ? SIZES_QUICK : SIZES) && !result; i++) {
    times.count = sizes[i].requests / (options->quick ? QUICK_PART : 1);
    times.tokens = sizes[i].tokens;
    result = measure(&peer, &local, &times, output, error);
  }
  team_destroy(local.team);
  peer_stop(&peer);
  return result;
}
