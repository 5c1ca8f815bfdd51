// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// coldkv inspect of what MessagePack maps describe: a conversation's meta file and a model file.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "store/meta.h"
#include "store/model_file.h"
#include "tools/coldkv/inspect.h"

static void report_rope_freqs(struct report *report, const struct msg_geometry *g) {
  size_t count = g->rope_freqs.size / sizeof(double);
  for (size_t i = 0; i < count; i += count > 1 ? count - 1 : 1) {
    double frequency;
    memcpy(&frequency, g->rope_freqs.data + i * sizeof frequency, sizeof frequency);
    report_real(report, i ? "rope_freq_last" : "rope_freq_first", frequency);
  }
}

int inspect_meta(const char *path, struct report *report, struct error *error) {
  struct meta meta;
  int result = meta_read(&io_system, path, &meta, error);
  if (result)
    return result;
  const struct msg_meta *m = &meta.message;
  report_text(report, "kind", "meta");
  report_text(report, "path", path);
  report_span(report, "name", m->name);
  report_hex(report, "id", m->id.data, m->id.size);
  report_u64(report, "uid", m->uid);
  report_hex(report, "fingerprint", m->fingerprint.data, m->fingerprint.size);
  if (m->model.size)
    report_hex(report, "model", m->model.data, m->model.size);
  else
    report_none(report, "model");
  report_geometry(report, &m->geometry);
  report_rope_freqs(report, &m->geometry);
  report_time(report, "created", m->created_s);
  report_table(report, "extents");
  for (uint32_t i = 0; i < meta.extent_count; i++) {
    const struct msg_extent *extent = &meta.extents[i];
    report_row(report);
    report_u64(report, "first", extent->first);
    report_u64(report, "count", extent->count);
    report_u64(report, "origin", extent->origin);
    report_hex(report, "segment", extent->id.data, extent->id.size);
  }
  report_table_end(report);
  meta_finish(&meta);
  return 0;
}

static double mean_norm(const uint8_t *mean, uint64_t head_dim) {
  double sum = 0;
  for (uint64_t i = 0; i < head_dim; i++) {
    double x = (double)load_f32(mean + 4 * i);
    sum += x * x;
  }
  return sqrt(sum);
}

static void report_means(struct report *report, const struct msg_model *m) {
  const struct msg_geometry *g = &m->geometry;
  report_table(report, "means");
  for (uint64_t layer = 0; layer < g->layers; layer++)
    for (uint64_t head = 0; head < g->kv_heads; head++) {
      size_t at = (size_t)((layer * g->kv_heads + head) * g->head_dim * 4);
      report_row(report);
      report_u64(report, "layer", layer);
      report_u64(report, "head", head);
      report_real(report, "mean_k_norm", mean_norm(m->mean_k.data + at, g->head_dim));
      report_real(report, "mean_v_norm", mean_norm(m->mean_v.data + at, g->head_dim));
    }
  report_table_end(report);
}

int inspect_model(const char *path, struct report *report, struct error *error) {
  struct model_file model;
  int result = model_read(&io_system, path, &model, error);
  if (result)
    return result;
  const struct msg_model *m = &model.message;
  char seed[20];
  snprintf(seed, sizeof seed, "%016llx", (unsigned long long)m->seed);
  report_text(report, "kind", "model");
  report_text(report, "path", path);
  report_hex(report, "id", m->id.data, m->id.size);
  report_u64(report, "uid", m->uid);
  report_span(report, "name", m->name);
  report_hex(report, "fingerprint", m->fingerprint.data, m->fingerprint.size);
  report_geometry(report, &m->geometry);
  report_rope_freqs(report, &m->geometry);
  report_span(report, "basis", m->basis);
  report_u64(report, "codec", m->codec);
  report_text(report, "seed", seed);
  report_time(report, "created", m->created_s);
  report_u64(report, "tokens", m->tokens);
  report_means(report, m);
  model_file_finish(&model);
  return 0;
}
