/* SPDX-License-Identifier: Apache-2.0
 * SPDX-FileCopyrightText: The coldkv authors
 *
 * libcoldkv: a cold memory for a language model's KV cache.
 *
 * An inference process keeps the newest 256 to 319 tokens of a conversation exact (the hot window) and the first 4 (the
 * sinks). Everything older is encoded as 104-byte records and handed to the daemon, coldkvd, which keeps it on disk and
 * answers for every layer which old tokens matter to a query.
 *
 *     coldkv_client_create(&client, NULL, NULL);
 *     coldkv_model_create(&model, client, &description);
 *     coldkv_open(&conv, model, "diary", NULL);
 *     while ((n = coldkv_resume(conv, ids)) > 0)          // a conversation that exists: feed what it says, first
 *       my_forward(conv, ids, n);
 *     my_forward(conv, new_ids, n);                       // at most 64 tokens at a time
 *     coldkv_sync(conv);
 *
 *     my_forward: coldkv_begin(conv, ids, n);
 *                 for each layer: compute q, k, v of the n tokens; coldkv_attend(conv, layer, q, k, v, out);
 *                 coldkv_end(conv);
 *
 * Caveats
 * - Retrieved tokens are 64 of all the old ones, at about 3 bits a coordinate: what needs every old token at once
 *   (counting, summing up a whole book) or bit-exact attention is not to be had this way.
 * - One conversation has one writer. A second process that opens it for writing gets COLDKV_EBUSY.
 * - A client, its models and its conversations belong to one thread at a time; a lock of yours may hand them on to
 *   another. Different clients are independent: use them from different threads as you like.
 * - There is no thread inside: between your calls nothing is sent, received or retried. Before a long pause call
 *   coldkv_sync.
 * - After fork() the client stays with the parent. In the child every call that needs the daemon fails with
 *   COLDKV_ESTATE; the child may close and destroy its copies, which the daemon does not see. A child that outlives its
 *   parent without doing so, or an exec, keeps the writer's lease.
 * - No signal is raised (SIGPIPE included), caught or blocked, and a signal of yours cuts no call short. The socket
 *   never takes the place of a closed standard input, output or error.
 * - Without a daemon the conversation goes on with the hot window alone and coldkv_get_status says so; see there.
 *
 * Every function that returns int returns 0 or a negative COLDKV_E code; coldkv_error() then has a sentence about it.
 * Arrays belong to the caller and are only read or written during the call, unless said otherwise. All floats are f32,
 * except in the GPU memory of the calls that end in _device.
 */
#ifndef COLDKV_H
#define COLDKV_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define COLDKV_VERSION "0.1.0"

#if defined(__GNUC__)
#define COLDKV_API __attribute__((visibility("default")))
#else
#define COLDKV_API
#endif

/* Error codes. The daemon's own have the numbers of PROTOCOL.md. */
enum coldkv_error_code {
  COLDKV_OK = 0,
  COLDKV_ENOTSUPPORTED = -4,   /* a GPU that is not there, or not built for; a codec of a later version */
  COLDKV_EVERSION = -5,        /* daemon and library do not understand each other */
  COLDKV_ENOMODEL = -6,
  COLDKV_ENOCONVERSATION = -7, /* opened without create, and there is none of that name */
  COLDKV_EBUSY = -9,           /* another process writes this conversation */
  COLDKV_EMODEL = -10,         /* fingerprint or geometry is not that of the stored conversation */
  COLDKV_ECONFLICT = -12,      /* the daemon holds other bytes for these tokens */
  COLDKV_ERANGE = -14,         /* token, layer or head outside the conversation */
  COLDKV_ELIMIT = -15,
  COLDKV_ECORRUPT = -16,
  COLDKV_ENOSPACE = -17,
  COLDKV_EIO = -18,
  COLDKV_EREADONLY = -19,
  COLDKV_ENOMEM = -20,
  COLDKV_EDENIED = -23,
  COLDKV_EUNREACHABLE = -24,   /* no daemon answers */
  COLDKV_ETIMEOUT = -25,
  COLDKV_EARGUMENT = -26,
  COLDKV_ESTATE = -27,         /* call out of order */
  COLDKV_ENOTFINITE = -28,     /* NaN or infinity in q, k or v, or a length that fp16 cannot hold */
  COLDKV_EBACKLOG = -29,       /* too many unacknowledged tokens are held here; nothing was dropped */
};

/* The sentence of the last failed call on this thread; "" before any. Valid until the next failed call. */
COLDKV_API const char *coldkv_error(void);

/* Version of the library, "0.1.0". */
COLDKV_API const char *coldkv_version(void);

/* --- the connection ----------------------------------------------------------------------------------------------- */

typedef struct coldkv_client coldkv_client;

/* Waiting for the daemon. Generation never waits longer than this, whatever the daemon does (hangs, answers late, sends
 * garbage, restarts); the library's own computing comes on top.
 *   one call of begin, attend, retrieve         timeout_ms
 *   all calls of one block, begin through end   block_timeout_ms, and at most one of them waits in vain
 *   coldkv_sync, coldkv_open                    sync_timeout_ms
 *   every other call                            does not wait
 * After a wait in vain nothing waits again for timeout_ms, then twice that, at most 30 seconds, unless the daemon has
 * caught up: a daemon that hangs costs one timeout_ms, then less and less of the time. */
struct coldkv_client_options {
  uint32_t timeout_ms;       /* 0: 2000 */
  uint32_t sync_timeout_ms;  /* 0: 30000 */
  uint64_t backlog_bytes;    /* per conversation: records held until the daemon has them on disk; 0: 256 MiB */
  uint32_t block_timeout_ms; /* 0: 10000 */
  uint32_t spin_us;          /* looks for answers for so long before it sleeps: quicker, and takes a processor */
};

/* Makes a client and tries to connect to the daemon's socket (NULL: $COLDKV_SOCKET, else $XDG_RUNTIME_DIR/coldkv.sock,
 * else /tmp/coldkv-UID/coldkv.sock). A daemon that is away is no error: the client connects when it is there. */
COLDKV_API int coldkv_client_create(coldkv_client **client, const char *socket_path,
                                    const struct coldkv_client_options *options);

/* Closes the connection; every conversation and model made from it must have been closed. NULL is allowed. */
COLDKV_API void coldkv_client_destroy(coldkv_client *client);

/* --- the model ---------------------------------------------------------------------------------------------------- */

typedef struct coldkv_model coldkv_model;

enum coldkv_rope {
  COLDKV_ROPE_NONE = 0,
  COLDKV_ROPE_HALF = 1,        /* coordinate i is paired with i + dims/2 (Llama in transformers) */
  COLDKV_ROPE_INTERLEAVED = 2, /* coordinate 2i is paired with 2i + 1 */
};

struct coldkv_model_description {
  const char *name;         /* for people; may be NULL */
  uint32_t layers, kv_heads;
  uint32_t group;           /* query heads per kv head */
  uint32_t head_dim;        /* d: a multiple of 8 from 64 to 128 */
  uint32_t window;          /* trained window W, tokens. Packed positions stay inside it while it has room for 4 sinks,
                               k slots and 383 tokens of hot window and block; in a smaller one they pass it */
  uint32_t rope;            /* enum coldkv_rope */
  uint32_t rope_dims;       /* rotated coordinates, the first ones; 0: all d */
  double rope_theta;        /* base: frequencies theta^(-2i/dims); used where rope_freqs is NULL */
  const double *rope_freqs; /* [rope_dims / 2] radians per position, for scaled RoPE; NULL: from rope_theta */
  float softmax_scale;      /* 0: 1/sqrt(d) */
  uint8_t fingerprint[32];  /* hash of the weights and of all that changes keys: adapters, RoPE settings, tokenizer */
};

/* Registers a model with the client. Copies the description. */
COLDKV_API int coldkv_model_create(coldkv_model **model, coldkv_client *client,
                                   const struct coldkv_model_description *description);
COLDKV_API void coldkv_model_destroy(coldkv_model *model);

/* A 32-byte fingerprint of any bytes, for engines that have no hash at hand: feed all weights, then the settings.
 * state must be zero before the first call; it is the fingerprint after the last. How the bytes are cut into calls
 * matters. Not a cryptographic hash. */
COLDKV_API void coldkv_fingerprint(uint8_t state[32], const void *data, size_t size);

/* --- conversations ------------------------------------------------------------------------------------------------ */

typedef struct coldkv_conv coldkv_conv;

/* Types of numbers in GPU memory. */
enum coldkv_type {
  COLDKV_F32 = 0,
  COLDKV_F16 = 1,
  COLDKV_BF16 = 2,
};

struct coldkv_conv_options {
  uint32_t k;          /* slots per (row, layer, kv head); 0: 64. coldkv_set_slots changes it later */
  uint32_t candidates; /* rescored per lookup; 0: the daemon's default */
  int hamming;         /* 1: scan by Hamming distance only (weaker; see README) */
  int must_exist;      /* 1: COLDKV_ENOCONVERSATION rather than a new conversation */
  uint32_t device;     /* 0: hot window, codec and attention on the processor; n: on CUDA device n - 1, see below.
                          COLDKV_ENOTSUPPORTED, and a sentence, where there is no such device or no CUDA */
  uint32_t hot_type;   /* with a device, enum coldkv_type: how the hot window is kept there. Records are those of the
                          keys and values so kept: with the type that the engine computes in, or with COLDKV_F32,
                          nothing is lost. (Keys that come after RoPE are un-rotated in f32, then rounded to it.) */
};

/* Largest block of coldkv_begin, tokens exact before a block, sinks. */
enum { COLDKV_BLOCK_MAX = 64, COLDKV_HOT = 256, COLDKV_SINKS = 4 };

/* Opens the conversation of that name (1 to 255 bytes of UTF-8), making it if need be, and takes its writer's lease.
 * With the daemon away a conversation cannot be opened: COLDKV_EUNREACHABLE. */
COLDKV_API int coldkv_open(coldkv_conv **conv, coldkv_model *model, const char *name,
                           const struct coldkv_conv_options *options);

/* Closes without waiting: what was acknowledged is kept, the hot window is forgotten (coldkv_sync first keeps its ids).
 * NULL is allowed. */
COLDKV_API void coldkv_close(coldkv_conv *conv);

/* After opening a conversation with a past: writes the ids of the next block to feed (sinks, then the last 256 stored
 * tokens, then the ids that were in the hot window at the last sync) and returns how many, 0 when nothing is left, or a
 * negative code. Feed them through begin / attend / end like any block; what is stored already is not stored again. */
COLDKV_API int coldkv_resume(coldkv_conv *conv, uint32_t ids[COLDKV_BLOCK_MAX]);

/* Opens a block of n new tokens, 1 to COLDKV_BLOCK_MAX, at the end of the conversation. Hands over to the daemon what
 * has left the hot window. COLDKV_EBACKLOG when the daemon is away, or slower than the conversation, and backlog_bytes
 * are held: nothing was dropped and nothing has changed; try again when you like, or stop generating. COLDKV_ECONFLICT,
 * COLDKV_EMODEL or COLDKV_ENOCONVERSATION when the daemon came back with another archive, an older one or another
 * writer's tokens, so that going on would leave a gap: close the conversation and open it again. */
COLDKV_API int coldkv_begin(coldkv_conv *conv, const uint32_t *ids, uint32_t n);

/* The same for an engine whose q and k come after RoPE: positions[n] are those they were rotated for. They are
 * un-rotated here, in double angles; rotate again for attention is what coldkv_attend does. */
COLDKV_API int coldkv_begin_rotated(coldkv_conv *conv, const uint32_t *ids, uint32_t n, const int64_t *positions);

/* Attention of the block's n rows in one layer, once per layer.
 *   q   [n][kv_heads * group][d], query head h belongs to kv head h / group
 *   k,v [n][kv_heads][d]
 *   out [n][kv_heads * group][d]
 * Row i attends exactly to the sinks and to the hot window up to itself, and to the k best of the tokens between. */
COLDKV_API int coldkv_attend(coldkv_conv *conv, uint32_t layer, const float *q, const float *k, const float *v,
                             float *out);

/* Closes the block. Every layer must have been attended (or pushed). */
COLDKV_API int coldkv_end(coldkv_conv *conv);

/* Gives up an open block: the conversation is as it was before coldkv_begin. */
COLDKV_API int coldkv_abort(coldkv_conv *conv);

/* Sets the number of slots; 0 switches retrieval off (for filler, or to measure what it brings). */
COLDKV_API int coldkv_set_slots(coldkv_conv *conv, uint32_t k);

/* Waits until everything handed over is durable and the ids of the hot window are stored beside it. With the daemon
 * away it waits for its return, at most sync_timeout_ms: then COLDKV_EUNREACHABLE, or COLDKV_ETIMEOUT when it is there
 * but not done. COLDKV_ENOSPACE, COLDKV_EREADONLY and COLDKV_EIO come at once; nothing is lost, and a later sync may
 * succeed. */
COLDKV_API int coldkv_sync(coldkv_conv *conv);

/* Forgets tokens from index `end` on, to generate an answer again. Possible as far back as nothing was handed over:
 * COLDKV_ERANGE names the first index that is possible. Going back no further than COLDKV_REWIND_EXACT tokens gives the
 * very state that was there. The daemon keeps the ids of a sync before until the next sync or the next tokens. */
enum { COLDKV_REWIND_EXACT = 128 };
COLDKV_API int coldkv_rewind(coldkv_conv *conv, uint64_t end);

/* --- on a GPU ------------------------------------------------------------------------------------------------------
 *
 * A conversation opened with `device` keeps its hot window there, encodes what leaves it, decodes what comes back and
 * attends; exact keys and values never come to the host. All calls above work with it, and all that is said about the
 * daemon holds. Calls that take host arrays copy them there and wait. These take GPU memory of that device:
 *
 * - `type` is that of q, k, v and out alike, enum coldkv_type; shapes are those of the host's calls, densely packed,
 *   16-byte aligned.
 * - `stream` is a cudaStream_t (NULL: the default one). Work is enqueued there, in the order of the calls, and whatever
 *   the engine enqueued before has come past when it starts. The arrays may be used again as the stream allows: out is
 *   written, and q, k and v are read, when it comes past. Different calls may name different streams.
 * - The host waits only where a lookup does: for the tokens that it looks among to be encoded, for its query to be
 *   computed, and for the daemon's answer. Nothing here synchronizes the device or allocates, once the largest block
 *   and number of slots have been seen.
 * - A NaN or infinity is found on the GPU and reported, as COLDKV_ENOTFINITE, by the first call that notices: this one,
 *   or a later attend, push, end or begin. Nothing of it is stored. After it, coldkv_abort the block, and coldkv_rewind
 *   to before the token that the sentence names if that is in an earlier block. */

/* coldkv_attend with GPU memory. Another thread's CUDA calls are not in the way; the calling thread's current device is
 * left as it was. */
COLDKV_API int coldkv_attend_device(coldkv_conv *conv, uint32_t layer, const void *q, const void *k, const void *v,
                                    void *out, int type, void *stream);

/* coldkv_push with GPU memory. */
COLDKV_API int coldkv_push_device(coldkv_conv *conv, uint32_t layer, const void *k, const void *v, int type,
                                  void *stream);

/* --- ahead of time ------------------------------------------------------------------------------------------------ */

/* Inside a block: has the daemon look up one layer now, for a query [kv_heads * group][d] that the engine has already
 * (that of the token before, or an estimate; in a block of coldkv_begin_rotated, rotated for its first position), so
 * that the pages are in memory when the real one comes. The answer is not used, and nothing waits for it: where it
 * cannot be sent at once it is left out. coldkv_get_status counts. */
COLDKV_API int coldkv_prefetch(coldkv_conv *conv, uint32_t layer, const float *q);

/* The same with GPU memory. Waits until the stream has come to the query. */
COLDKV_API int coldkv_prefetch_device(coldkv_conv *conv, uint32_t layer, const void *q, int type, void *stream);

/* --- for engines with an attention of their own ------------------------------------------------------------------- */

/* Gives the block's keys and values of one layer, [n][kv_heads][d], without computing attention. */
COLDKV_API int coldkv_push(coldkv_conv *conv, uint32_t layer, const float *k, const float *v);

/* What coldkv_retrieve found; the arrays belong to the conversation and live until its next call. */
struct coldkv_slots {
  uint32_t rows, kv_heads, k; /* k: columns of index */
  uint64_t hot_first;         /* tokens from here on are in the hot window */
  int packed;                 /* 1: the block lies past the trained window, so rotate for packed positions: sink i
                                 at i, slot number s (in ascending token order, of S) at 4 + s, token t of the hot
                                 window at 4 + S + t - hot_first. 0: every token at its own index. */
  const uint32_t *count;      /* [kv_heads]: size of the union of all rows' slots */
  const uint64_t *const *tokens; /* [kv_heads] -> [count]: token indices, ascending */
  const float *const *keys;   /* [kv_heads] -> [count][d]: before RoPE */
  const float *const *values; /* [kv_heads] -> [count][d] */
  const uint32_t *index;      /* [rows][kv_heads][k]: places in the union, ascending; UINT32_MAX: no more */
};

/* Finds the slots of one layer for the block's queries [n][kv_heads * group][d] (as in coldkv_attend). */
COLDKV_API int coldkv_retrieve(coldkv_conv *conv, uint32_t layer, const float *q, struct coldkv_slots *slots);

/* The same for queries in GPU memory. The slots are host arrays here, too. */
COLDKV_API int coldkv_retrieve_device(coldkv_conv *conv, uint32_t layer, const void *q, int type, void *stream,
                                      struct coldkv_slots *slots);

/* --- what is going on --------------------------------------------------------------------------------------------- */

struct coldkv_status {
  uint64_t tokens;      /* in the conversation, the hot window included */
  uint64_t stored;      /* acknowledged by the daemon */
  uint64_t durable;     /* of these, on disk */
  uint64_t backlog;     /* tokens handed over and not acknowledged */
  uint64_t hot_first;   /* first token of the hot window */
  uint64_t resume_left; /* tokens that coldkv_resume still wants fed */
  int connected;        /* 0: going on with the hot window alone */
  uint64_t lookups, lookups_missed; /* missed: no daemon, or no answer in time, so no slots */
  uint64_t bad_records; /* answers whose record failed its CRC here and was left out */
  uint64_t reconnects;
  uint64_t record_bytes, signature_bytes; /* of `stored` tokens: on disk, and of that scanned */
  uint64_t hot_bytes;   /* held here, or on the device, for the hot window and the sinks */
  uint64_t device_bytes; /* memory of the device, hot_bytes included; 0 without one */
  uint64_t pinned_bytes; /* host memory that the device reads and writes */
  uint64_t prefetches, prefetches_used; /* sent, and of these followed by a lookup of that layer in the same block */
  uint64_t backlog_bytes;     /* held here until the daemon has them on disk */
  uint64_t backlog_bytes_max; /* past this coldkv_begin returns COLDKV_EBACKLOG */
  uint64_t waited_ms_max;     /* longest that one call waited for the daemon while generating */
  int trouble;                /* what is wrong now: 0, or the code why tokens are not stored */
  const char *last_error;     /* what went wrong last, though it may be over, as a sentence; "" before anything did.
                                 Valid until the next call */
};
COLDKV_API int coldkv_get_status(const coldkv_conv *conv, struct coldkv_status *status);

#ifdef __cplusplus
}
#endif
#endif
