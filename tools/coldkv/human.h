// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Figures for people: sizes, times, and how wide a text stands on a terminal.
#ifndef COLDKV_TOOLS_COLDKV_HUMAN_H
#define COLDKV_TOOLS_COLDKV_HUMAN_H

#include <stddef.h>
#include <stdint.h>

enum { HUMAN_BYTES = 32 };

/* "512 B", "1.5 KiB", "109 MiB". */
void human_size(uint64_t bytes, char text[HUMAN_BYTES]);

/* Local time to the second, "2026-11-22 00:24:07"; "-" for 0. */
void human_time(uint64_t time_s, char text[HUMAN_BYTES]);

/* How long before `now_s` that was: "just now", "5 min ago", "3 h ago", "2 days ago"; the date past 30 days. */
void human_age(uint64_t time_s, uint64_t now_s, char text[HUMAN_BYTES]);

/* Columns that UTF-8 text takes on a terminal. */
size_t human_width(const char *text);

#endif
