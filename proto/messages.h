// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Every message of the protocol and every map kept in files, as PROTOCOL.md and FORMAT.md define them. Both sides of
// the socket, and the store, pack and unpack through these tables only.
//
// Members are uint64_t, struct span, struct list or a nested message (message.h). Bulk spans hold little-endian arrays;
// their element and shape stand beside them.
#ifndef COLDKV_PROTO_MESSAGES_H
#define COLDKV_PROTO_MESSAGES_H

#include "proto/limits.h"
#include "proto/message.h"

#define PROTOCOL_VERSION 1u

enum rope_layout {
  ROPE_NONE = 0,
  ROPE_HALF = 1,        /* pairs (i, i + dims/2): Llama in transformers */
  ROPE_INTERLEAVED = 2, /* pairs (2i, 2i + 1) */
};

enum lookup_mode {
  LOOKUP_WEIGHTED = 0, /* 4-bit query by signature bits, times k_scale */
  LOOKUP_HAMMING = 1,  /* sign bits of the query only */
};

/* Geometry of a model and how it encodes positions. */
struct msg_geometry {
  uint64_t layers, kv_heads;
  uint64_t group;    /* query heads that share one kv head */
  uint64_t head_dim; /* d */
  uint64_t window;   /* trained window W, tokens */
  uint64_t rope_layout;
  uint64_t rope_dims;      /* rotated coordinates, the first ones; even, at most head_dim */
  struct span rope_freqs;  /* f64 [rope_dims / 2], radians per position */
};

/* Description of a model: parameter of model.calibrate, answer of model.*, and the file models/<id>. */
struct msg_model {
  struct span id;  /* 16 bytes; absent in a request */
  uint64_t uid;    /* owner; set by the daemon */
  struct span name;
  struct span fingerprint; /* 32 bytes */
  struct msg_geometry geometry;
  struct span basis; /* "hadamard" */
  uint64_t codec;    /* version of RECORD.md: 1 */
  uint64_t seed;     /* of the rotation R */
  uint64_t created_s; /* Unix time, set by the daemon */
  uint64_t tokens;   /* that the means were computed from */
  struct span mean_k, mean_v; /* f32 [layers][kv_heads][head_dim]; absent in model.list */
};

struct msg_empty {
  char unused;
};

struct msg_hello {
  uint64_t protocol;
  struct span client; /* name and version, for the log */
};

struct msg_hello_ok {
  uint64_t protocol;
  struct span server, backend, kernel, durability;
  struct span device; /* name of the GPU, absent where there is none */
  struct span cold_pages; /* how they are read: "io_uring" or "madvise" */
  uint64_t message_bytes_max, append_tokens_max, ahead_max, rows_max, k_max, candidates_max, segment_tokens;
};

struct msg_model_get {
  struct span id;          /* either this */
  struct span fingerprint; /* or this, among the user's own models; the newest if there are several */
};

struct msg_list {
  struct span after; /* names (for models: ids in hex) greater than this, in byte order */
  uint64_t limit;
};

struct msg_model_list_ok {
  struct list models; /* of msg_model, without means */
  uint64_t more;
};

struct msg_open {
  struct span name;
  struct span fingerprint;
  struct msg_geometry geometry;
  struct span model; /* 16 bytes or absent: binds a conversation that has no model yet */
  uint64_t create;   /* make it if there is none */
  uint64_t write;    /* take the writer's lease */
};

struct msg_open_ok {
  uint64_t conversation; /* handle, valid on this connection */
  struct span id;        /* 16 bytes */
  struct span model;     /* 16 bytes, or absent while it has none */
  uint64_t count;        /* tokens stored */
  uint64_t durable;      /* of these, synced */
  struct span ahead;     /* u32 [n]: ids of tokens count .. count + n - 1, not stored yet */
  uint64_t created;
};

struct msg_extent {
  uint64_t kind;  /* 0 segment, 1 closed log */
  struct span id; /* 16 bytes: the segment's; for a log, the conversation's it was written in */
  uint64_t origin; /* first token of that file */
  uint64_t first; /* of this conversation's tokens in it */
  uint64_t count;
};

struct msg_conversation {
  struct span name, id, model; /* ids 16 bytes; model absent while it has none */
  struct span model_name;
  uint64_t uid;
  uint64_t tokens, durable, ahead; /* ahead: number of ids */
  uint64_t bytes;                  /* on disk */
  uint64_t created_s, used_s;      /* Unix time */
  uint64_t open;                   /* a writer holds the lease */
  struct list extents;             /* of msg_extent; only in conversation.info */
  uint64_t log_first, log_tokens;  /* the open log; only in conversation.info */
  uint64_t log_bytes;              /* of it, synced; only in the catalog */
};

struct msg_conversation_list_ok {
  struct list conversations; /* of msg_conversation */
  uint64_t more;
};

struct msg_name {
  struct span name;
};

struct msg_handle {
  uint64_t conversation;
};

struct msg_delete {
  struct span name, confirm; /* the same name twice */
};

struct msg_append {
  uint64_t conversation;
  uint64_t first;      /* token index of ids[0] */
  struct span ids;     /* u32 [n] */
  struct span ahead;   /* u32 [m]: ids of tokens first + n .. first + n + m - 1 */
  struct span records; /* [n][layers][kv_heads] records */
  uint64_t sync;       /* answer only when durable, whatever the daemon's durability */
};

struct msg_append_ok {
  uint64_t stored, durable; /* counts of tokens from the beginning */
};

struct msg_lookup {
  uint64_t conversation;
  uint64_t layer;
  uint64_t rows;
  struct span queries; /* f32 [rows][kv_heads][128]: rotated query, then its extra projections */
  uint64_t k, candidates; /* candidates 0: the default for the range */
  uint64_t mode;          /* enum lookup_mode */
  uint64_t from, before;  /* tokens from <= t < before; before absent: all stored */
};

/* One kv head of an answer. */
struct msg_lookup_head {
  struct span tokens;  /* u64 [union]: token indices, ascending */
  struct span records; /* [union] records */
  struct span index;   /* u32 [rows][k]: place in the union, best first; 0xffffffff where there is none */
  struct span scores;  /* f32 [rows][k] */
};

struct msg_lookup_ok {
  uint64_t k;          /* columns of index and scores: at most the k asked for */
  uint64_t candidates; /* C that was used */
  uint64_t scanned;    /* tokens in range */
  uint64_t missed;     /* of these, in segments that are damaged or lost and were left out */
  struct list heads;   /* of msg_lookup_head, one per kv head */
};

struct msg_read {
  uint64_t conversation;
  uint64_t layer, head;
  uint64_t first, count; /* at most as many as fit in one message */
};

struct msg_read_ok {
  uint64_t first, count;
  struct span records; /* [count] records */
};

struct msg_tokens {
  uint64_t conversation;
  uint64_t first, count; /* may reach into `ahead` */
};

struct msg_tokens_ok {
  uint64_t first;
  struct span ids; /* u32 [count], fewer than asked for at the end */
};

/* Figures since the daemon started, unless "now" is said. */
#define STATS_FIELDS(X)                                                                                                \
  X(uptime_s)                                                                                                          \
  X(connections)            /* now */                                                                                  \
  X(connections_total)                                                                                                 \
  X(requests)                                                                                                          \
  X(errors)                 /* requests answered with an error */                                                      \
  X(bad_messages)           /* connections closed for bytes that are no message */                                     \
  X(refused)                /* connections: not allowed, or past a limit */                                            \
  X(timed_out)              /* connections closed for what did not come, or was not taken, in time */                  \
  X(conversations_open)     /* now */                                                                                  \
  X(segments_mapped)        /* now */                                                                                  \
  X(tail_bytes)             /* now: tails in memory */                                                                 \
  X(scan_kept_bytes)        /* now: scan regions brought into memory and kept */                                       \
  X(appended_tokens)                                                                                                   \
  X(appended_bytes)         /* written to logs */                                                                      \
  X(log_syncs)                                                                                                         \
  X(segments_sealed)                                                                                                   \
  X(lookups)                                                                                                           \
  X(lookup_rows)                                                                                                       \
  X(scanned_bytes)          /* signatures and scales read by scans */                                                  \
  X(fetched_bytes)          /* key codes of candidates and records of winners read by lookups */                       \
  X(fetched_candidates)                                                                                                \
  X(gpu)                    /* now: 1 when lookups use one */                                                          \
  X(gpu_bytes)              /* now: of its memory, taken by signatures */                                              \
  X(gpu_bytes_max)          /* now: that these may take */                                                             \
  X(gpu_code_bytes)         /* now: of its memory, taken by key codes */                                               \
  X(gpu_code_bytes_max)     /* now: that these may take */                                                             \
  X(gpu_conversations)      /* now: that have signatures there */                                                      \
  X(gpu_lookups)            /* that got candidates from it */                                                          \
  X(gpu_rescored)           /* of these, whose candidates it rescored, too */                                          \
  X(gpu_dropped)            /* conversations that went from its memory */                                              \
  X(gpu_errors)             /* lookups that it failed; the processor did them */                                       \
  X(io_uring)               /* now: 1 when cold pages are read through it */                                           \
  X(cold_pages)             /* that lookups had read from disk together */                                             \
  X(winners)                                                                                                           \
  X(bad_records)            /* winners that failed their CRC and were replaced */                                      \
  X(bad_pages)              /* scan pages that failed their CRC */                                                     \
  X(torn_frames)            /* dropped at recovery */                                                                  \
  X(quarantined)            /* damaged pieces found */                                                                 \
  X(damaged)                /* now: of these, not seen to be whole again */                                            \
  X(scrub_cycles)           /* times that the scrub has read everything */                                             \
  X(scrub_bytes)            /* that it has read */                                                                     \
  X(read_only)              /* now: 1 after a failed sync */

struct msg_stats {
#define STATS_MEMBER(name) uint64_t name;
  STATS_FIELDS(STATS_MEMBER)
#undef STATS_MEMBER
  struct span read_only_reason; /* what failed; absent while read_only is 0 */
};

/* A piece that was found damaged. */
struct msg_damage {
  struct span path; /* relative to the archive */
  struct span what;
  struct span conversation; /* its name, "" when it is not known */
  uint64_t page;            /* of a segment, or 0 */
  uint64_t first, count;    /* tokens; count 0: not known */
  uint64_t found_s;
};

struct msg_status {
  uint64_t read_only; /* no writes since a failed sync */
  uint64_t scrub_bytes_s; /* 0: there is no scrub */
  uint64_t scrub_running; /* a cycle is under way; the next three tell how far */
  uint64_t scrub_files_total, scrub_files_done, scrub_bytes_done;
  uint64_t scrub_cycles, scrub_finished_s; /* complete ones; Unix time of the last */
  struct list damage;
};

struct msg_problem {
  struct span path; /* relative to the archive */
  struct span what;
};

struct msg_verify_ok {
  uint64_t running; /* a check is under way; ask again for its progress */
  uint64_t finished_s; /* Unix time the last check ended, 0 if none did */
  uint64_t files_total, files_done, bytes_done, bad;
  struct list problems; /* of msg_problem; the first ones */
};

/* What conversations/<id>/meta holds. */
struct msg_meta {
  struct span id, name;
  uint64_t uid;
  struct span fingerprint;
  struct span model; /* absent while it has none */
  struct msg_geometry geometry;
  uint64_t created_s;
  struct list extents; /* of msg_extent: the sealed part */
};

extern const struct message message_geometry, message_model, message_empty, message_hello, message_hello_ok,
    message_model_get, message_list, message_model_list_ok, message_open, message_open_ok, message_extent,
    message_conversation, message_conversation_list_ok, message_name, message_handle, message_delete, message_append,
    message_append_ok, message_lookup, message_lookup_head, message_lookup_ok, message_read, message_read_ok,
    message_tokens, message_tokens_ok, message_stats, message_damage, message_status, message_problem,
    message_verify_ok, message_meta;

enum method_id {
  METHOD_HELLO,
  METHOD_MODEL_CALIBRATE,
  METHOD_MODEL_LIST,
  METHOD_MODEL_GET,
  METHOD_OPEN,
  METHOD_LIST,
  METHOD_INFO,
  METHOD_CLOSE,
  METHOD_DELETE,
  METHOD_APPEND,
  METHOD_LOOKUP,
  METHOD_READ,
  METHOD_TOKENS,
  METHOD_FORK,         /* answers "not supported" */
  METHOD_MATCH_PREFIX, /* answers "not supported" */
  METHOD_FEEDBACK,     /* answers "not supported" */
  METHOD_STATS,
  METHOD_VERIFY,
  METHOD_STATUS,
  METHOD_COUNT,
};

struct method {
  const char *name;
  const struct message *params, *result;
};

extern const struct method methods[METHOD_COUNT];

/* The method of that name, METHOD_COUNT if there is none. */
enum method_id method_find(struct span name);

/* Checks what the field tables cannot: products, RoPE, head_dim. -ERR_BAD_PARAMS or -ERR_LIMIT. */
int geometry_check(const struct msg_geometry *geometry, struct error *error);

/* True when both describe the same model shape and the same RoPE. */
bool geometry_equal(const struct msg_geometry *a, const struct msg_geometry *b);

/* Bytes of mean_k (or mean_v): layers x kv_heads x head_dim x 4. */
uint64_t geometry_mean_bytes(const struct msg_geometry *geometry);

#endif
