// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What a user takes up in the archive, from the catalog and what is open: nothing that could drift is kept.
#include "store/internal.h"

/* Directory, meta and index of a conversation or a model, about; so that many empty ones count, too. */
#define ENTRY_BYTES 4096u

static int add_conversation(void *context, const struct msg_conversation *conversation) {
  *(uint64_t *)context += conversation->bytes + ENTRY_BYTES;
  return 0;
}

static int add_model(void *context, const struct msg_model *model) {
  *(uint64_t *)context += usage_of_model(&model->geometry);
  return 0;
}

uint64_t usage_of_conversation(void) { return ENTRY_BYTES; }

uint64_t usage_of_model(const struct msg_geometry *geometry) { return 2 * geometry_mean_bytes(geometry) + ENTRY_BYTES; }

uint64_t usage_of_append(const struct conversation *conversation, const struct msg_append *append) {
  const struct msg_geometry *geometry = &conversation->geometry;
  uint64_t stored = conversation_count(conversation), count = append->ids.size / 4;
  uint64_t end = append->first <= LIMIT_TOKEN_INDEX_MAX ? append->first + count : 0;
  return end > stored ? (end - stored) * (4 + geometry->layers * geometry->kv_heads * RECORD_BYTES) : 0;
}

int archive_usage(struct archive *archive, uint32_t uid, uint64_t *bytes, struct error *error) {
  *bytes = 0;
  int result = conversation_each(archive, uid, "", add_conversation, bytes, error);
  return result ? result : model_each(archive, uid, "", add_model, bytes, error);
}
