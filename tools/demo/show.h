// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What the demo prints.
#ifndef COLDKV_TOOLS_DEMO_SHOW_H
#define COLDKV_TOOLS_DEMO_SHOW_H

#include <stdint.h>

#include "client/coldkv.h"
#include "tools/demo/document.h"

/* A number with commas between thousands. The text lives until eight more calls. */
const char *show_number(uint64_t number);

/* A bar on the terminal, nothing where stderr is none. `note` stands behind it. */
void show_progress(uint32_t done, uint32_t all, const char *note);
void show_progress_end(void);

/* One line of a stage's table; fact 0 prints its head first. Returns 1 when the answer is right, else 0. */
int show_answer(const struct document *document, uint32_t fact, const char *answer);

/* What a conversation has stored and what became of its connection, in one line that begins with `when`. */
void show_status(const char *when, const struct coldkv_status *status);

/* What memory costs, from the conversation's status, the model's size and the bytes on disk. */
void show_bill(const struct coldkv_status *status, uint64_t fp16_bytes_per_token, uint64_t disk_bytes);

#endif
