// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What a command prints: named values, lists of them, tables. One description serves both forms: JSON with exact
// numbers, and aligned text with human ones.
//
// A report is an object. Values go into it until report_table opens a table; from then on they are cells of the row
// that report_row began, until report_table_end. A key names a value: "last_use" is shown as "last use".
#ifndef COLDKV_TOOLS_COLDKV_REPORT_H
#define COLDKV_TOOLS_COLDKV_REPORT_H

#include "proto/bytes.h"
#include "proto/error.h"
#include "tools/coldkv/json.h"

struct report_cell {
  char *text;
  bool right; /* numbers are aligned on the right */
};

/* What stands above, in text: a table stands apart from what is around it. */
enum report_after { AFTER_NOTHING, AFTER_LINE, AFTER_TABLE };

struct report {
  bool as_json;
  struct json json;
  enum report_after after;
  bool in_table;
  uint64_t now_s;
  /* a table of text under construction: rows of `columns` cells, the headings first */
  struct report_cell *cells;
  size_t cell_count, cell_room, columns, rows;
  bool out_of_memory;
};

void report_begin(struct report *report, bool as_json);

void report_text(struct report *report, const char *key, const char *text);
void report_span(struct report *report, const char *key, struct span text);
void report_u64(struct report *report, const char *key, uint64_t value);
void report_real(struct report *report, const char *key, double value);
void report_bool(struct report *report, const char *key, bool value);
void report_none(struct report *report, const char *key); /* null, "-" */
void report_hex(struct report *report, const char *key, const uint8_t *data, size_t size);
void report_size(struct report *report, const char *key, uint64_t bytes);
void report_time(struct report *report, const char *key, uint64_t time_s);
void report_age(struct report *report, const char *key, uint64_t time_s);

/* An array of numbers; text shows the first `shown`. */
void report_reals(struct report *report, const char *key, const float *values, uint32_t count, uint32_t shown);

/* Rows must have the same cells in the same order. */
void report_table(struct report *report, const char *key);
void report_row(struct report *report);
void report_table_end(struct report *report);

/* Ends the report. With an error: JSON gets a last member "error" {code, message}; standard error gets its sentence in
 * both forms. Returns the exit status: 1 with an error or when the output could not be written. */
int report_end(struct report *report, const struct error *error);

/* Prints "<path>: <what>" to standard output, unprintable bytes replaced. */
void report_problem(const char *path, const char *what);

/* Prints "coldkv: <sentence>" to standard error, unprintable bytes replaced. */
void report_complain(const char *sentence);

#endif
