// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The file models/<id>: geometry, codec and means of one model, written once.
#ifndef COLDKV_STORE_MODEL_FILE_H
#define COLDKV_STORE_MODEL_FILE_H

#include "proto/messages.h"
#include "store/map_file.h"

#define MODEL_MAGIC "CKV-MODL"
#define MODEL_BYTES_MAX (16u << 20)

struct model_file {
  struct msg_model message; /* spans live until model_file_finish */
  struct map_file file;
};

/* Reads and checks a model file; works on a path alone. ERR_CORRUPT, ERR_VERSION, ERR_IO. */
int model_read(const struct io *io, const char *path, struct model_file *model, struct error *error);
void model_file_finish(struct model_file *model);

/* Checks what the tables cannot: geometry, basis, sizes and finiteness of the means. ERR_BAD_PARAMS, ERR_LIMIT,
 * ERR_NOT_SUPPORTED. */
int model_check(const struct msg_model *model, struct error *error);

#endif
