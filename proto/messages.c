// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "proto/messages.h"

#include <math.h>
#include <string.h>

#include "proto/record.h"

#define ID .min = LIMIT_ID_BYTES, .max = LIMIT_ID_BYTES
#define HASH .min = LIMIT_FINGERPRINT_BYTES, .max = LIMIT_FINGERPRINT_BYTES
#define NAME .min = 1, .max = LIMIT_NAME_BYTES_MAX
#define BULK .max = LIMIT_MESSAGE_BYTES_MAX
#define INDEX .max = LIMIT_TOKEN_INDEX_MAX

#define AT(member) #member, .offset = offsetof(struct TYPE, member)
#define U64(member, ...) {.name = AT(member), .kind = FIELD_U64, __VA_ARGS__}
#define BOOL(member) {.name = AT(member), .kind = FIELD_BOOL, .optional = true}
#define STR(member, ...) {.name = AT(member), .kind = FIELD_STR, __VA_ARGS__}
#define BIN(member, ...) {.name = AT(member), .kind = FIELD_BIN, __VA_ARGS__}
#define LIST(member, type, ...) {.name = AT(member), .kind = FIELD_LIST, .sub = &(type), __VA_ARGS__}
#define MAP(member, type) {.name = AT(member), .kind = FIELD_MAP, .sub = &(type)}
#define OPTIONAL .optional = true
#define ANY .max = UINT64_MAX
#define DEFINE(variable, text)                                                                                         \
  const struct message variable = {text, variable##_fields, sizeof variable##_fields / sizeof variable##_fields[0],    \
                                   sizeof(struct TYPE)}

#define TYPE msg_geometry
static const struct field message_geometry_fields[] = {
    U64(layers, .min = 1, .max = LIMIT_LAYERS_MAX),
    U64(kv_heads, .min = 1, .max = LIMIT_KV_HEADS_MAX),
    U64(group, .min = 1, .max = LIMIT_GROUP_MAX),
    U64(head_dim, .min = LIMIT_HEAD_DIM_MIN, .max = LIMIT_HEAD_DIM_MAX),
    U64(window, .min = 1, .max = LIMIT_WINDOW_MAX),
    U64(rope_layout, .max = ROPE_INTERLEAVED),
    U64(rope_dims, .max = LIMIT_HEAD_DIM_MAX),
    BIN(rope_freqs, .max = 8 * (LIMIT_HEAD_DIM_MAX / 2), .unit = 8),
};
DEFINE(message_geometry, "geometry");
#undef TYPE

#define TYPE msg_model
static const struct field message_model_fields[] = {
    BIN(id, ID, OPTIONAL),
    U64(uid, OPTIONAL, .max = UINT32_MAX),
    STR(name, OPTIONAL, .max = LIMIT_NAME_BYTES_MAX),
    BIN(fingerprint, HASH),
    MAP(geometry, message_geometry),
    STR(basis, NAME),
    U64(codec, .min = 1, .max = 1),
    U64(seed, ANY),
    U64(created_s, OPTIONAL, ANY),
    U64(tokens, OPTIONAL, INDEX),
    BIN(mean_k, OPTIONAL, BULK, .unit = 4),
    BIN(mean_v, OPTIONAL, BULK, .unit = 4),
};
DEFINE(message_model, "model");
#undef TYPE

#define TYPE msg_empty
const struct message message_empty = {"parameters", NULL, 0, sizeof(struct TYPE)};
#undef TYPE

#define TYPE msg_hello
static const struct field message_hello_fields[] = {
    U64(protocol, ANY),
    STR(client, OPTIONAL, .max = LIMIT_NAME_BYTES_MAX),
};
DEFINE(message_hello, "hello");
#undef TYPE

#define TYPE msg_hello_ok
static const struct field message_hello_ok_fields[] = {
    U64(protocol, ANY),
    STR(server, NAME),
    STR(backend, NAME),
    STR(kernel, NAME),
    STR(durability, NAME),
    STR(device, OPTIONAL, .max = LIMIT_NAME_BYTES_MAX),
    STR(cold_pages, OPTIONAL, .max = LIMIT_NAME_BYTES_MAX),
    U64(message_bytes_max, ANY),
    U64(append_tokens_max, ANY),
    U64(ahead_max, ANY),
    U64(rows_max, ANY),
    U64(k_max, ANY),
    U64(candidates_max, ANY),
    U64(segment_tokens, ANY),
};
DEFINE(message_hello_ok, "answer of hello");
#undef TYPE

#define TYPE msg_model_get
static const struct field message_model_get_fields[] = {
    BIN(id, ID, OPTIONAL),
    BIN(fingerprint, HASH, OPTIONAL),
};
DEFINE(message_model_get, "model.get");
#undef TYPE

#define TYPE msg_list
static const struct field message_list_fields[] = {
    STR(after, OPTIONAL, .max = LIMIT_NAME_BYTES_MAX),
    U64(limit, OPTIONAL, .min = 1, .max = LIMIT_LIST_MAX, .initial = LIMIT_LIST_MAX),
};
DEFINE(message_list, "list");
#undef TYPE

#define TYPE msg_model_list_ok
static const struct field message_model_list_ok_fields[] = {
    LIST(models, message_model, .max = LIMIT_LIST_MAX),
    BOOL(more),
};
DEFINE(message_model_list_ok, "answer of model.list");
#undef TYPE

#define TYPE msg_open
static const struct field message_open_fields[] = {
    STR(name, NAME),
    BIN(fingerprint, HASH),
    MAP(geometry, message_geometry),
    BIN(model, ID, OPTIONAL),
    BOOL(create),
    BOOL(write),
};
DEFINE(message_open, "conversation.open");
#undef TYPE

#define TYPE msg_open_ok
static const struct field message_open_ok_fields[] = {
    U64(conversation, ANY),
    BIN(id, ID),
    BIN(model, ID, OPTIONAL),
    U64(count, INDEX),
    U64(durable, INDEX),
    BIN(ahead, .max = 4 * LIMIT_AHEAD_MAX, .unit = 4),
    BOOL(created),
};
DEFINE(message_open_ok, "answer of conversation.open");
#undef TYPE

#define TYPE msg_extent
static const struct field message_extent_fields[] = {
    U64(kind, .max = 1),
    BIN(id, ID),
    U64(origin, INDEX),
    U64(first, INDEX),
    U64(count, .min = 1, .max = LIMIT_SEGMENT_TOKENS),
};
DEFINE(message_extent, "extent");
#undef TYPE

#define TYPE msg_conversation
static const struct field message_conversation_fields[] = {
    STR(name, NAME),
    BIN(id, ID),
    BIN(model, ID, OPTIONAL),
    STR(model_name, OPTIONAL, .max = LIMIT_NAME_BYTES_MAX),
    U64(uid, .max = UINT32_MAX),
    U64(tokens, INDEX),
    U64(durable, INDEX),
    U64(ahead, INDEX),
    U64(bytes, ANY),
    U64(created_s, ANY),
    U64(used_s, ANY),
    BOOL(open),
    LIST(extents, message_extent, OPTIONAL, .max = LIMIT_MESSAGE_ELEMENTS_MAX),
    U64(log_first, OPTIONAL, INDEX),
    U64(log_tokens, OPTIONAL, INDEX),
    U64(log_bytes, OPTIONAL, ANY),
};
DEFINE(message_conversation, "conversation");
#undef TYPE

#define TYPE msg_conversation_list_ok
static const struct field message_conversation_list_ok_fields[] = {
    LIST(conversations, message_conversation, .max = LIMIT_LIST_MAX),
    BOOL(more),
};
DEFINE(message_conversation_list_ok, "answer of conversation.list");
#undef TYPE

#define TYPE msg_name
static const struct field message_name_fields[] = {STR(name, NAME)};
DEFINE(message_name, "conversation.info");
#undef TYPE

#define TYPE msg_handle
static const struct field message_handle_fields[] = {U64(conversation, ANY)};
DEFINE(message_handle, "conversation.close");
#undef TYPE

#define TYPE msg_delete
static const struct field message_delete_fields[] = {STR(name, NAME), STR(confirm, NAME)};
DEFINE(message_delete, "conversation.delete");
#undef TYPE

#define TYPE msg_append
static const struct field message_append_fields[] = {
    U64(conversation, ANY),
    U64(first, INDEX),
    BIN(ids, OPTIONAL, .max = 4 * LIMIT_APPEND_TOKENS_MAX, .unit = 4),
    BIN(ahead, OPTIONAL, .max = 4 * LIMIT_AHEAD_MAX, .unit = 4),
    BIN(records, OPTIONAL, BULK, .unit = RECORD_BYTES),
    BOOL(sync),
};
DEFINE(message_append, "conversation.append");
#undef TYPE

#define TYPE msg_append_ok
static const struct field message_append_ok_fields[] = {U64(stored, INDEX), U64(durable, INDEX)};
DEFINE(message_append_ok, "answer of conversation.append");
#undef TYPE

#define TYPE msg_lookup
static const struct field message_lookup_fields[] = {
    U64(conversation, ANY),
    U64(layer, .max = LIMIT_LAYERS_MAX - 1),
    U64(rows, .min = 1, .max = LIMIT_ROWS_MAX),
    BIN(queries, BULK, .unit = 4 * RECORD_SIGNATURE_BITS),
    U64(k, .min = 1, .max = LIMIT_K_MAX),
    U64(candidates, OPTIONAL, .max = LIMIT_CANDIDATES_MAX),
    U64(mode, OPTIONAL, .max = LOOKUP_HAMMING),
    U64(from, OPTIONAL, INDEX),
    U64(before, OPTIONAL, INDEX, .initial = LIMIT_TOKEN_INDEX_MAX),
};
DEFINE(message_lookup, "conversation.lookup");
#undef TYPE

#define TYPE msg_lookup_head
static const struct field message_lookup_head_fields[] = {
    BIN(tokens, BULK, .unit = 8),
    BIN(records, BULK, .unit = RECORD_BYTES),
    BIN(index, BULK, .unit = 4),
    BIN(scores, BULK, .unit = 4),
};
DEFINE(message_lookup_head, "kv head in the answer of conversation.lookup");
#undef TYPE

#define TYPE msg_lookup_ok
static const struct field message_lookup_ok_fields[] = {
    U64(k, .max = LIMIT_K_MAX),
    U64(candidates, .max = LIMIT_CANDIDATES_MAX),
    U64(scanned, INDEX),
    U64(missed, OPTIONAL, INDEX),
    LIST(heads, message_lookup_head, .max = LIMIT_KV_HEADS_MAX),
};
DEFINE(message_lookup_ok, "answer of conversation.lookup");
#undef TYPE

#define TYPE msg_read
static const struct field message_read_fields[] = {
    U64(conversation, ANY),
    U64(layer, .max = LIMIT_LAYERS_MAX - 1),
    U64(head, .max = LIMIT_KV_HEADS_MAX - 1),
    U64(first, INDEX),
    U64(count, .min = 1, .max = LIMIT_MESSAGE_BYTES_MAX / RECORD_BYTES),
};
DEFINE(message_read, "conversation.read");
#undef TYPE

#define TYPE msg_read_ok
static const struct field message_read_ok_fields[] = {
    U64(first, INDEX),
    U64(count, INDEX),
    BIN(records, BULK, .unit = RECORD_BYTES),
};
DEFINE(message_read_ok, "answer of conversation.read");
#undef TYPE

#define TYPE msg_tokens
static const struct field message_tokens_fields[] = {
    U64(conversation, ANY),
    U64(first, INDEX),
    U64(count, .min = 1, .max = LIMIT_TOKENS_READ_MAX),
};
DEFINE(message_tokens, "conversation.tokens");
#undef TYPE

#define TYPE msg_tokens_ok
static const struct field message_tokens_ok_fields[] = {
    U64(first, INDEX),
    BIN(ids, .max = 4 * LIMIT_TOKENS_READ_MAX, .unit = 4),
};
DEFINE(message_tokens_ok, "answer of conversation.tokens");
#undef TYPE

#define TYPE msg_stats
static const struct field message_stats_fields[] = {
#define STATS_FIELD(member) U64(member, ANY),
    STATS_FIELDS(STATS_FIELD)
#undef STATS_FIELD
    STR(read_only_reason, OPTIONAL, .max = 4096),
};
DEFINE(message_stats, "answer of stats");
#undef TYPE

#define TYPE msg_damage
static const struct field message_damage_fields[] = {
    STR(path, .max = 4096),
    STR(what, .max = 4096),
    STR(conversation, OPTIONAL, .max = LIMIT_NAME_BYTES_MAX),
    U64(page, OPTIONAL, .max = UINT32_MAX),
    U64(first, OPTIONAL, INDEX),
    U64(count, OPTIONAL, INDEX),
    U64(found_s, ANY),
};
DEFINE(message_damage, "damaged piece");
#undef TYPE

#define TYPE msg_status
static const struct field message_status_fields[] = {
    BOOL(read_only),
    U64(scrub_bytes_s, OPTIONAL, ANY),
    BOOL(scrub_running),
    U64(scrub_files_total, OPTIONAL, ANY),
    U64(scrub_files_done, OPTIONAL, ANY),
    U64(scrub_bytes_done, OPTIONAL, ANY),
    U64(scrub_cycles, OPTIONAL, ANY),
    U64(scrub_finished_s, OPTIONAL, ANY),
    LIST(damage, message_damage, .max = LIMIT_LIST_MAX),
};
DEFINE(message_status, "answer of status");
#undef TYPE

#define TYPE msg_problem
static const struct field message_problem_fields[] = {STR(path, .max = 4096), STR(what, .max = 4096)};
DEFINE(message_problem, "problem");
#undef TYPE

#define TYPE msg_verify_ok
static const struct field message_verify_ok_fields[] = {
    BOOL(running),
    U64(finished_s, ANY),
    U64(files_total, ANY),
    U64(files_done, ANY),
    U64(bytes_done, ANY),
    U64(bad, ANY),
    LIST(problems, message_problem, .max = LIMIT_LIST_MAX),
};
DEFINE(message_verify_ok, "answer of verify");
#undef TYPE

#define TYPE msg_meta
static const struct field message_meta_fields[] = {
    BIN(id, ID),
    STR(name, NAME),
    U64(uid, .max = UINT32_MAX),
    BIN(fingerprint, HASH),
    BIN(model, ID, OPTIONAL),
    MAP(geometry, message_geometry),
    U64(created_s, ANY),
    LIST(extents, message_extent, .max = UINT32_MAX),
};
DEFINE(message_meta, "conversation meta");
#undef TYPE

const struct method methods[METHOD_COUNT] = {
    [METHOD_HELLO] = {"hello", &message_hello, &message_hello_ok},
    [METHOD_MODEL_CALIBRATE] = {"model.calibrate", &message_model, &message_model},
    [METHOD_MODEL_LIST] = {"model.list", &message_list, &message_model_list_ok},
    [METHOD_MODEL_GET] = {"model.get", &message_model_get, &message_model},
    [METHOD_OPEN] = {"conversation.open", &message_open, &message_open_ok},
    [METHOD_LIST] = {"conversation.list", &message_list, &message_conversation_list_ok},
    [METHOD_INFO] = {"conversation.info", &message_name, &message_conversation},
    [METHOD_CLOSE] = {"conversation.close", &message_handle, &message_empty},
    [METHOD_DELETE] = {"conversation.delete", &message_delete, &message_empty},
    [METHOD_APPEND] = {"conversation.append", &message_append, &message_append_ok},
    [METHOD_LOOKUP] = {"conversation.lookup", &message_lookup, &message_lookup_ok},
    [METHOD_READ] = {"conversation.read", &message_read, &message_read_ok},
    [METHOD_TOKENS] = {"conversation.tokens", &message_tokens, &message_tokens_ok},
    [METHOD_FORK] = {"conversation.fork", NULL, NULL},
    [METHOD_MATCH_PREFIX] = {"conversation.match_prefix", NULL, NULL},
    [METHOD_FEEDBACK] = {"conversation.feedback", NULL, NULL},
    [METHOD_STATS] = {"stats", &message_empty, &message_stats},
    [METHOD_VERIFY] = {"verify", &message_empty, &message_verify_ok},
    [METHOD_STATUS] = {"status", &message_empty, &message_status},
};

enum method_id method_find(struct span name) {
  for (int i = 0; i < METHOD_COUNT; i++)
    if (strlen(methods[i].name) == name.size && memcmp(methods[i].name, name.data, name.size) == 0)
      return (enum method_id)i;
  return METHOD_COUNT;
}

int geometry_check(const struct msg_geometry *g, struct error *error) {
  if (!record_head_dim_valid(g->head_dim))
    return error_set(error, ERR_BAD_PARAMS, "head_dim %llu: this version takes multiples of %u from %u to %u",
                     (unsigned long long)g->head_dim, LIMIT_HEAD_DIM_STEP, LIMIT_HEAD_DIM_MIN, LIMIT_HEAD_DIM_MAX);
  if (g->layers * g->kv_heads > LIMIT_BLOCKS_MAX)
    return error_set(error, ERR_LIMIT, "%llu layers of %llu kv heads: more than %u blocks",
                     (unsigned long long)g->layers, (unsigned long long)g->kv_heads, LIMIT_BLOCKS_MAX);
  if (g->rope_dims % 2 || g->rope_dims > g->head_dim || (g->rope_layout == ROPE_NONE) != (g->rope_dims == 0))
    return error_set(error, ERR_BAD_PARAMS, "rope_dims %llu with rope_layout %llu and head_dim %llu",
                     (unsigned long long)g->rope_dims, (unsigned long long)g->rope_layout,
                     (unsigned long long)g->head_dim);
  if (g->rope_freqs.size != g->rope_dims / 2 * 8)
    return error_set(error, ERR_BAD_PARAMS, "rope_freqs has %zu bytes, wanted %llu", g->rope_freqs.size,
                     (unsigned long long)(g->rope_dims / 2 * 8));
  for (size_t i = 0; i < g->rope_freqs.size; i += 8) {
    double frequency;
    memcpy(&frequency, g->rope_freqs.data + i, sizeof frequency);
    if (!isfinite(frequency))
      return error_set(error, ERR_BAD_PARAMS, "rope_freqs[%zu] is not finite", i / 8);
  }
  return 0;
}

bool geometry_equal(const struct msg_geometry *a, const struct msg_geometry *b) {
  return a->layers == b->layers && a->kv_heads == b->kv_heads && a->group == b->group &&
         a->head_dim == b->head_dim && a->window == b->window && a->rope_layout == b->rope_layout &&
         a->rope_dims == b->rope_dims && a->rope_freqs.size == b->rope_freqs.size &&
         (a->rope_freqs.size == 0 || memcmp(a->rope_freqs.data, b->rope_freqs.data, a->rope_freqs.size) == 0);
}

uint64_t geometry_mean_bytes(const struct msg_geometry *g) { return g->layers * g->kv_heads * g->head_dim * 4; }
