// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "daemon/budget.h"
#include "daemon/server.h"
#include "daemon/session.h"

static int count_damage(void *context, const struct damage *damage) {
  (void)damage;
  ++*(uint64_t *)context;
  return 0;
}

/* What the daemon does for everybody. */
static void add_totals(struct server *server, struct msg_stats *stats) {
  const struct archive_counters *archive = archive_counters(server->archive);
  struct counters *own = &server->counters;
  stats->connections = server->connection_count;
  stats->connections_total = atomic_load(&own->connections_total);
  stats->requests = atomic_load(&own->requests);
  stats->errors = atomic_load(&own->errors);
  stats->bad_messages = atomic_load(&own->bad_messages);
  stats->refused = atomic_load(&own->refused);
  stats->timed_out = atomic_load(&own->timed_out);
  stats->conversations_open = 0;
  for (const struct session *session = server->sessions; session; session = session->next)
    stats->conversations_open++;
  stats->segments_mapped = atomic_load(&archive->segments_mapped);
  stats->tail_bytes = atomic_load(&archive->tail_bytes);
  stats->scan_kept_bytes = atomic_load(&archive->scan_kept_bytes);
  stats->appended_tokens = atomic_load(&archive->appended_tokens);
  stats->appended_bytes = atomic_load(&archive->appended_bytes);
  stats->log_syncs = atomic_load(&archive->log_syncs);
  stats->segments_sealed = atomic_load(&archive->segments_sealed);
  stats->lookups = atomic_load(&own->lookups);
  stats->lookup_rows = atomic_load(&own->lookup_rows);
  stats->scanned_bytes = atomic_load(&own->scanned_bytes);
  stats->fetched_bytes = atomic_load(&own->fetched_bytes);
  stats->fetched_candidates = atomic_load(&own->fetched_candidates);
  stats->cold_pages = atomic_load(&own->cold_pages);
  stats->winners = atomic_load(&own->winners);
  stats->bad_records = atomic_load(&own->bad_records);
  backend_stats(&server->backend, stats);
  stats->bad_pages = atomic_load(&archive->bad_pages);
  stats->torn_frames = atomic_load(&archive->torn_frames);
  stats->quarantined = atomic_load(&archive->quarantined);
  stats->read_only_reason = span_str(archive_read_only_reason(server->archive));
  stats->damaged = 0;
  damage_list_each(archive_damage(server->archive), count_damage, &stats->damaged);
  scrubber_stats(&server->scrubber, stats);
}

void server_stats(struct server *server, const struct user *user, struct msg_stats *stats) {
  *stats = (struct msg_stats){
      .uptime_s = (uv_hrtime() - server->started_ns) / 1000000000u,
      .connections = user->connections,
      .connections_total = user->connections_total,
      .requests = user->requests_total,
      .errors = user->errors,
      .conversations_open = user->conversations,
      .gpu = backend_gpu(&server->backend),
      .io_uring = server->fetch_method == FETCH_IO_URING,
      .read_only = archive_read_only(server->archive),
  };
  if (access_operator(user->uid))
    add_totals(server, stats);
}
