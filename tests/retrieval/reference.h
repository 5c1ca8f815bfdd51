// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// A lookup by the book (retrieval/README.md), record by record and with full sorts, and made-up archives to look up in.
#ifndef COLDKV_TESTS_RETRIEVAL_REFERENCE_H
#define COLDKV_TESTS_RETRIEVAL_REFERENCE_H

#include "retrieval/lookup.h"
#include "tests/proto/random.h"

/* Records of one (layer, kv head) in several parts. */
struct archive_parts {
  struct record_columns *columns;
  uint8_t **memory;
  uint32_t count;
};

/* Makes parts of `counts` records; tokens of part i begin at firsts[i]. Random bits, scales around 1, all records
 * sealed for (layer, head). */
void parts_make(struct archive_parts *parts, const uint64_t *firsts, const uint32_t *counts, uint32_t count,
                uint32_t layer, uint32_t head, struct random *random);
void parts_free(struct archive_parts *parts);

/* Columns to change by hand; parts_seal puts the right CRC on all records again. */
uint8_t *parts_signature(struct archive_parts *parts, uint32_t part, uint32_t entry);
uint8_t *parts_k_scale(struct archive_parts *parts, uint32_t part, uint32_t entry);
uint8_t *parts_k_mag(struct archive_parts *parts, uint32_t part, uint32_t entry);
uint8_t *parts_crc(struct archive_parts *parts, uint32_t part, uint32_t entry);
void parts_seal(struct archive_parts *parts, uint32_t layer, uint32_t head);

/* Arrays for an answer of rows x k, exactly as long as that. */
void answer_make(struct lookup_answer *answer, uint32_t rows, uint32_t k);
void answer_free(struct lookup_answer *answer);

/* The same as lookup_run. */
void reference_lookup(const struct lookup_request *request, const struct record_columns *parts, uint32_t part_count,
                      struct lookup_answer *answer);

#endif
