// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A tiny archive for the targets that need one: 2 layers of 1 kv head of 64, one model, records that follow from their
// place.
#ifndef COLDKV_TESTS_FUZZ_FUZZ_STORE_H
#define COLDKV_TESTS_FUZZ_FUZZ_STORE_H

#include "store/archive.h"

enum { FUZZ_LAYERS = 2, FUZZ_HEADS = 1, FUZZ_BLOCKS = FUZZ_LAYERS * FUZZ_HEADS, FUZZ_HEAD_DIM = 64, FUZZ_UID = 7 };

void fuzz_geometry(struct msg_geometry *geometry);
void fuzz_model_message(struct msg_model *model, uint8_t mark);
void fuzz_record(uint8_t *record, uint32_t layer, uint32_t head, uint64_t token);
uint32_t fuzz_token_id(uint64_t token);

/* Opens an archive in a directory of fuzz_directory, and its one model. */
struct archive *fuzz_archive(const char *name, struct model **model);

/* Opens the conversation, made if it is not there; returns what conversation_open does. */
int fuzz_open(struct archive *archive, struct model *model, const char *name, struct conversation **conversation,
              struct error *error);

/* Appends tokens up to `end`, `step` at a time, the last frame with `ahead` ids ahead. */
void fuzz_fill(struct conversation *conversation, uint64_t end, uint32_t step, uint32_t ahead);

/* Reads everything a conversation holds, as lookups, reads and tokens would; what is not refused must hold its CRC.
 * Returns the number of records read. */
uint64_t fuzz_read_all(struct conversation *conversation);

#endif
