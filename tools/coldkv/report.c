// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/coldkv/report.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proto/text.h"
#include "tools/coldkv/human.h"

enum { LABEL_WIDTH = 16, CELL_GAP = 2, COLUMNS_MAX = 24, LINE_BYTES = 8192 };

void report_begin(struct report *report, bool as_json) {
  *report = (struct report){.as_json = as_json, .now_s = (uint64_t)time(NULL)};
  json_begin(&report->json, stdout);
  if (as_json)
    json_object(&report->json, NULL);
}

static void print_repaired(FILE *out, const char *before, const char *after) {
  char text[LINE_BYTES];
  int size = snprintf(text, sizeof text, "%s: %s", before, after);
  text_repair(text, size < (int)sizeof text ? (size_t)size : sizeof text - 1);
  fprintf(out, "%s\n", text);
}

void report_problem(const char *path, const char *what) { print_repaired(stdout, path, what); }
void report_complain(const char *sentence) { print_repaired(stderr, "coldkv", sentence); }

/* --- text --------------------------------------------------------------------------------------------------------- */

static void add_cell(struct report *report, char *text, bool right) {
  if (!text)
    report->out_of_memory = true;
  if (text && report->cell_count == report->cell_room) {
    size_t room = report->cell_room ? 2 * report->cell_room : 64;
    struct report_cell *cells = realloc(report->cells, room * sizeof *cells);
    if (!cells) {
      report->out_of_memory = true;
      free(text);
      return;
    }
    report->cells = cells;
    report->cell_room = room;
  }
  if (text)
    report->cells[report->cell_count++] = (struct report_cell){.text = text, .right = right};
}

/* "last_use" as people read it. */
static char *label(const char *key, bool capitals) {
  char *text = strdup(key);
  for (char *c = text; c && *c; c++)
    *c = *c == '_' ? ' ' : capitals && *c >= 'a' && *c <= 'z' ? (char)(*c - 'a' + 'A') : *c;
  return text;
}

/* One value as text: a cell, or a line of its own. */
static void put(struct report *report, const char *key, const char *value, bool right) {
  char *text = strdup(value);
  if (text)
    text_repair(text, strlen(text));
  if (report->in_table) {
    if (report->rows == 1) { /* the first row tells the headings, which stand before it */
      size_t at = report->columns++;
      assert(report->columns <= COLUMNS_MAX);
      add_cell(report, label(key, true), right);
      for (size_t i = report->cell_count; i > at + 1 && !report->out_of_memory; i--) {
        struct report_cell swap = report->cells[i - 1];
        report->cells[i - 1] = report->cells[i - 2];
        report->cells[i - 2] = swap;
      }
    }
    add_cell(report, text, right);
    return;
  }
  char *name = label(key, false);
  if (report->after == AFTER_TABLE)
    putchar('\n');
  report->after = AFTER_LINE;
  printf("%-*s %s\n", LABEL_WIDTH, name ? name : key, text ? text : "");
  free(name);
  free(text);
}

static void print_table(const struct report *report) {
  size_t columns = report->columns, wide[COLUMNS_MAX] = {0};
  for (size_t i = 0; i < report->cell_count; i++) {
    size_t width = human_width(report->cells[i].text);
    if (width > wide[i % columns])
      wide[i % columns] = width;
  }
  for (size_t i = 0; i < report->cell_count; i++) {
    const struct report_cell *cell = &report->cells[i];
    int blanks = (int)(wide[i % columns] - human_width(cell->text));
    if ((i + 1) % columns == 0) /* nothing after the last column */
      printf("%*s%s\n", cell->right ? blanks : 0, "", cell->text);
    else
      printf("%*s%s%*s", cell->right ? blanks : 0, "", cell->text, CELL_GAP + (cell->right ? 0 : blanks), "");
  }
}

static void table_clear(struct report *report) {
  for (size_t i = 0; i < report->cell_count; i++)
    free(report->cells[i].text);
  free(report->cells);
  report->cells = NULL;
  report->cell_count = report->cell_room = report->columns = report->rows = 0;
  report->in_table = false;
}

/* --- values ------------------------------------------------------------------------------------------------------- */

void report_text(struct report *report, const char *key, const char *text) {
  if (report->as_json)
    json_text(&report->json, key, text, strlen(text));
  else
    put(report, key, text, false);
}

void report_span(struct report *report, const char *key, struct span text) {
  if (report->as_json) {
    json_text(&report->json, key, (const char *)text.data, text.size);
    return;
  }
  char *copy = strndup(text.size ? (const char *)text.data : "", text.size);
  put(report, key, copy ? copy : "", false);
  free(copy);
}

void report_u64(struct report *report, const char *key, uint64_t value) {
  if (report->as_json) {
    json_u64(&report->json, key, value);
    return;
  }
  char text[24];
  snprintf(text, sizeof text, "%" PRIu64, value);
  put(report, key, text, true);
}

void report_real(struct report *report, const char *key, double value) {
  if (report->as_json) {
    json_real(&report->json, key, value);
    return;
  }
  char text[32];
  snprintf(text, sizeof text, "%.5g", value);
  put(report, key, text, true);
}

void report_bool(struct report *report, const char *key, bool value) {
  if (report->as_json)
    json_bool(&report->json, key, value);
  else
    put(report, key, value ? "yes" : "no", false);
}

void report_none(struct report *report, const char *key) {
  if (report->as_json)
    json_null(&report->json, key);
  else
    put(report, key, "-", false);
}

void report_hex(struct report *report, const char *key, const uint8_t *data, size_t size) {
  if (report->as_json) {
    json_hex(&report->json, key, data, size);
    return;
  }
  char *text = malloc(2 * size + 1);
  for (size_t i = 0; text && i < size; i++)
    snprintf(text + 2 * i, 3, "%02x", data[i]);
  put(report, key, text && size ? text : "", false);
  free(text);
}

void report_size(struct report *report, const char *key, uint64_t bytes) {
  if (report->as_json) {
    json_u64(&report->json, key, bytes);
    return;
  }
  char text[HUMAN_BYTES];
  human_size(bytes, text);
  put(report, key, text, true);
}

void report_time(struct report *report, const char *key, uint64_t time_s) {
  if (report->as_json) {
    json_u64(&report->json, key, time_s);
    return;
  }
  char text[HUMAN_BYTES];
  human_time(time_s, text);
  put(report, key, text, false);
}

void report_age(struct report *report, const char *key, uint64_t time_s) {
  if (report->as_json) {
    json_u64(&report->json, key, time_s);
    return;
  }
  char text[HUMAN_BYTES];
  human_age(time_s, report->now_s, text);
  put(report, key, text, false);
}

void report_reals(struct report *report, const char *key, const float *values, uint32_t count, uint32_t shown) {
  if (report->as_json) {
    json_flat_array(&report->json, key);
    for (uint32_t i = 0; i < count; i++)
      json_real(&report->json, NULL, (double)values[i]);
    json_close(&report->json);
    return;
  }
  char text[512];
  size_t used = 0;
  text[0] = '\0';
  for (uint32_t i = 0; i < count && i < shown && used + 32 < sizeof text; i++)
    used += (size_t)snprintf(text + used, sizeof text - used, "%s%.4g", i ? " " : "", (double)values[i]);
  snprintf(text + used, sizeof text - used, "%s", shown < count ? " ..." : "");
  put(report, key, text, false);
}

void report_table(struct report *report, const char *key) {
  if (report->as_json)
    json_array(&report->json, key);
  report->in_table = true;
}

void report_row(struct report *report) {
  if (report->as_json) {
    if (report->rows)
      json_close(&report->json);
    json_object(&report->json, NULL);
  }
  report->rows++;
}

void report_table_end(struct report *report) {
  if (report->as_json) {
    if (report->rows)
      json_close(&report->json);
    json_close(&report->json);
  } else if (report->rows && !report->out_of_memory) {
    if (report->after != AFTER_NOTHING)
      putchar('\n');
    report->after = AFTER_TABLE;
    print_table(report);
  }
  table_clear(report);
}

int report_end(struct report *report, const struct error *error) {
  bool failed = error && error->code;
  if (report->in_table && !report->as_json)
    report_table_end(report);
  if (report->as_json) {
    json_close_to(&report->json, 1);
    if (failed) {
      json_object(&report->json, "error");
      json_text(&report->json, "code", error_name(error->code), strlen(error_name(error->code)));
      json_text(&report->json, "message", error->text, strlen(error->text));
    }
    json_end(&report->json);
  }
  table_clear(report);
  int written = fflush(stdout);
  if (written || ferror(stdout)) {
    report_complain("cannot write the output");
    return 1;
  }
  if (report->out_of_memory) {
    report_complain("out of memory for the table");
    return 1;
  }
  if (failed)
    report_complain(error->text);
  return failed;
}
