// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Where everything lies in an archive, and ids as text.
#ifndef COLDKV_STORE_PATH_H
#define COLDKV_STORE_PATH_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/limits.h"

#define PATH_BYTES 4096u        /* room for any path here */
#define PATH_ARCHIVE_BYTES_MAX 3800u /* of the archive directory's own path, so that the rest fits */

enum {
  PATH_ID_TEXT_BYTES = 2 * LIMIT_ID_BYTES + 1,
  PATH_LOG_NAME_BYTES = 4 + 20 + 1, /* log-<first, 20 digits> */
};

void path_id_text(const uint8_t id[LIMIT_ID_BYTES], char text[PATH_ID_TEXT_BYTES]);

/* Reads exactly 32 lower-case hex digits that end the string; false for anything else. */
bool path_id_parse(const char *text, uint8_t id[LIMIT_ID_BYTES]);

/* Each fills `path` with DIR/... */
void path_join(char path[PATH_BYTES], const char *dir, const char *name);
void path_model(char path[PATH_BYTES], const char *dir, const uint8_t *id);
void path_conversation(char path[PATH_BYTES], const char *dir, const uint8_t *id);
void path_deleted(char path[PATH_BYTES], const char *dir, const uint8_t *id);
void path_meta(char path[PATH_BYTES], const char *dir, const uint8_t *conversation);
void path_log(char path[PATH_BYTES], const char *dir, const uint8_t *conversation, uint64_t first);
void path_segment(char path[PATH_BYTES], const char *dir, const uint8_t *id);
void path_segment_directory(char path[PATH_BYTES], const char *dir, const uint8_t *id); /* DIR/segments/ab */

/* Reads "log-" and 20 digits that end the string. */
bool path_log_parse(const char *name, uint64_t *first);

/* Reads "<32 hex digits>.seg". */
bool path_segment_parse(const char *name, uint8_t id[LIMIT_ID_BYTES]);

/* True for names that a crash leaves while a file is being replaced. */
bool path_is_temporary(const char *name);

/* Where a repair keeps what it took away. */
#define PATH_QUARANTINE "quarantine"
#define PATH_TEMPORARY_SUFFIX ".tmp"
#define PATH_DELETED_PREFIX "deleted-"
#define PATH_SEGMENT_SUFFIX ".seg"

#endif
