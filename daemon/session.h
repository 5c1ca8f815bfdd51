// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A conversation that somebody has open: who writes, who uses it, and whether its tail is in memory. Loop only.
#ifndef COLDKV_DAEMON_SESSION_H
#define COLDKV_DAEMON_SESSION_H

#include "daemon/server.h"

/* A conversation counts as being in memory when each of its kv heads could have been looked up so many times without a
 * read from disk: once shows what it was asked for, once more that others are not asked for anything else. */
#define SESSION_WARM_ROUNDS 2u

struct session {
  struct session *next;
  struct server *server;
  struct conversation *conversation;
  uint32_t store_references; /* taken by conversation_open, given back when the session ends */
  uint32_t users;            /* handles, requests and jobs that point here */
  uint32_t requests;         /* of these, requests under way */
  struct connection *writer; /* holds the lease, or NULL */
  uint64_t used_ns;
  struct job end, unload, seal, sync;
  struct job keep;
  struct view *keep_view;
  bool keeping;      /* `keep` is out */
  atomic_uint warm;  /* kv heads looked up in a row with nothing to read from disk; any thread */
  bool loaded;    /* the tail is in memory and stays there while requests > 0, unless */
  bool unloading; /* `unload` is out */
  bool sealing; /* `seal` is out */
  bool seal_failed;        /* by the thread that sealed, looked at when `seal` is back */
  uint64_t seal_pause_ns;  /* after a failure, twice as long each time; 0 after a success */
  uint64_t seal_not_before_ns;
  bool syncing; /* `sync` is out */
  bool dirty;   /* appended to and not synced (durability interval, none) */
};

/* The session of an opened conversation, made if need be; takes over one store reference and adds a user. NULL when out
 * of memory (the store reference then stays with the caller). */
struct session *session_of(struct server *server, struct conversation *conversation);

/* False: only the committer can tell, and bring its tail back. */
static inline bool session_in_memory(const struct session *session) { return session->loaded && !session->unloading; }

/* Whether lookups should expect that some of what they need is on disk. Any thread. */
bool session_cold(struct session *session);

void session_hold(struct session *session);
/* One user less; the last one ends the session: the tail is synced and the conversation released, by the committer. */
void session_drop(struct session *session);

/* Starts sealing in the background if closed logs wait for it. After a failure a while passes before it is tried again,
 * since a segment that does not fit takes room from the appends meanwhile. */
void session_seal(struct session *session);

/* Brings the scan regions of its segments into memory, in the background, as far as the budget goes. */
void session_keep(struct session *session);

/* Drops tails of sessions without requests, least recently used first, while they take more than the budget. */
void session_shrink(struct server *server);

/* Syncs every dirty session, on the committer. */
void session_sync_all(struct server *server);

#endif
