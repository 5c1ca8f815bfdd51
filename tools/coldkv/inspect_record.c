// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// One record: where it lies, its fields, and what they decode to.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "client/codec.h"
#include "store/log.h"
#include "store/meta.h"
#include "store/model_file.h"
#include "store/segment.h"
#include "tools/coldkv/inspect.h"

enum { SHOWN_COORDINATES = 8 };

static int out_of_range(const char *path, const char *what, uint64_t value, uint64_t least, uint64_t most,
                        struct error *error) {
  return error_set(error, ERR_RANGE, "%s has no %s %llu: it has %llu to %llu", path, what, (unsigned long long)value,
                   (unsigned long long)least, (unsigned long long)most);
}

static int check_block(const char *path, const struct options *o, uint32_t layers, uint32_t kv_heads,
                       struct error *error) {
  if (o->layer >= layers)
    return out_of_range(path, "layer", o->layer, 0, layers - 1, error);
  return o->head >= kv_heads ? out_of_range(path, "kv head", o->head, 0, kv_heads - 1, error) : 0;
}

static void found_begin(const struct options *o, const char *path, struct found_record *found) {
  memset(found, 0, sizeof *found);
  found->layer = o->layer;
  found->head = o->head;
  found->token = o->token;
  snprintf(found->path, sizeof found->path, "%s", path);
  if (o->data_given && strlen(o->data) <= PATH_ARCHIVE_BYTES_MAX)
    strcpy(found->archive, o->data);
  else
    archive_of(path, 3, found->archive);
}

int record_in_segment(const struct options *o, const char *path, struct found_record *found, struct error *error) {
  struct segment *segment;
  int result = segment_open(&io_system, path, &segment, error);
  if (result)
    return result;
  const struct segment_header *header = segment_header(segment);
  result = check_block(path, o, header->layers, header->kv_heads, error);
  if (!result && (o->token < header->first || o->token - header->first >= header->count))
    result = out_of_range(path, "token", o->token, header->first, header->first + header->count - 1, error);
  if (!result) {
    uint32_t at = (uint32_t)(o->token - header->first);
    struct record_columns columns;
    found_begin(o, path, found);
    segment_columns(segment, o->layer, o->head, &columns);
    record_gather(&columns, at, found->record);
    found->id = load_u32(segment_ids(segment) + 4 * (size_t)at);
    result = segment_check_readable(segment, NULL, error);
    found->head_dim = header->head_dim;
    memcpy(found->model, header->model, sizeof found->model);
    found->model_known = true;
  }
  segment_unref(segment);
  return result;
}

/* A log does not tell model and head_dim; the meta file beside it does. */
static void read_meta_beside(const char *path, struct found_record *found) {
  char beside[PATH_BYTES];
  const char *slash = strrchr(path, '/');
  int size = snprintf(beside, sizeof beside, "%.*smeta", slash ? (int)(slash + 1 - path) : 0, path);
  struct meta meta;
  if (size < 0 || (size_t)size >= sizeof beside || meta_read(&io_system, beside, &meta, NULL))
    return;
  found->head_dim = (uint32_t)meta.message.geometry.head_dim;
  found->model_known = meta.message.model.size == sizeof found->model;
  if (found->model_known)
    memcpy(found->model, meta.message.model.data, sizeof found->model);
  meta_finish(&meta);
}

int record_in_log(const struct options *o, const char *path, struct found_record *found, struct error *error) {
  struct log_reader *reader;
  struct log_frame frame;
  int result = log_reader_open(&io_system, path, &reader, NULL, error);
  if (result)
    return result;
  uint64_t first = log_reader_header(reader)->first, end = first;
  while ((result = log_reader_next(reader, &frame, error)) == LOG_FRAME) {
    end = frame.first + frame.count;
    if (o->token >= frame.first && o->token < end)
      break;
  }
  if (result == LOG_FRAME)
    result = check_block(path, o, frame.layers, frame.kv_heads, error);
  else if (result > 0 && end == first)
    result = error_set(error, ERR_RANGE, "%s holds no tokens", path);
  else if (result > 0)
    result = out_of_range(path, "token", o->token, first, end - 1, error);
  if (!result) {
    size_t at = (size_t)(o->token - frame.first);
    size_t block = (at * frame.layers + o->layer) * frame.kv_heads + o->head;
    found_begin(o, path, found);
    memcpy(found->record, frame.records + block * RECORD_BYTES, RECORD_BYTES);
    found->id = load_u32(frame.ids + 4 * at);
    read_meta_beside(path, found);
  }
  log_reader_close(reader);
  return result;
}

static void report_signature(struct report *report, const uint8_t *signature) {
  char signs[RECORD_SIGNATURE_BITS + 1];
  for (int i = 0; i < RECORD_SIGNATURE_BITS; i++)
    signs[i] = signature[i / 8] >> i % 8 & 1 ? '-' : '+';
  signs[RECORD_SIGNATURE_BITS] = '\0';
  report_hex(report, "signature", signature, RECORD_SIGNATURE_BYTES);
  report_text(report, "signs", signs);
}

static void report_scale(struct report *report, const char *key, const char *bits_key, const uint8_t *bytes) {
  char bits[8];
  snprintf(bits, sizeof bits, "0x%04x", load_u16(bytes));
  report_text(report, bits_key, bits);
  report_real(report, key, (double)f32_from_f16(load_u16(bytes)));
}

/* Means and seed come from the model's file, which is read only for this. */
static int decode(const struct found_record *found, float *key, float *value, uint32_t *head_dim,
                  struct error *error) {
  char path[PATH_BYTES];
  struct model_file model;
  if (!found->model_known || !found->archive[0])
    return error_set(error, ERR_NO_MODEL, "it is not known which model this record belongs to");
  path_model(path, found->archive, found->model);
  int result = model_read(&io_system, path, &model, error);
  if (result)
    return result;
  const struct msg_geometry *g = &model.message.geometry;
  struct codec codec;
  if (g->head_dim != found->head_dim || found->layer >= g->layers || found->head >= g->kv_heads)
    result = error_set(error, ERR_MODEL_MISMATCH, "%s has another geometry than the record", path);
  else
    result = codec_init(&codec, (uint32_t)g->head_dim, model.message.seed, error);
  if (!result) {
    float mean_k[LIMIT_HEAD_DIM_MAX], mean_v[LIMIT_HEAD_DIM_MAX];
    size_t bytes = (size_t)g->head_dim * sizeof(float);
    size_t block = (size_t)(found->layer * g->kv_heads + found->head) * bytes;
    memcpy(mean_k, model.message.mean_k.data + block, bytes);
    memcpy(mean_v, model.message.mean_v.data + block, bytes);
    codec_decode(&codec, found->record, mean_k, mean_v, key, value);
    *head_dim = (uint32_t)g->head_dim;
  }
  model_file_finish(&model);
  return result;
}

static double norm(const float *x, uint32_t count) {
  double sum = 0;
  for (uint32_t i = 0; i < count; i++)
    sum += (double)x[i] * (double)x[i];
  return sqrt(sum);
}

int report_record(struct report *report, const struct found_record *found, struct error *error) {
  const uint8_t *record = found->record;
  uint32_t wanted = record_crc(record, found->layer, found->head, found->token);
  bool good = record_check(record, found->layer, found->head, found->token);
  report_text(report, "path", found->path);
  report_u64(report, "layer", found->layer);
  report_u64(report, "head", found->head);
  report_u64(report, "token", found->token);
  report_u64(report, "token_id", found->id);
  report_signature(report, record + RECORD_SIGNATURE);
  report_scale(report, "k_scale", "k_scale_bits", record + RECORD_K_SCALE);
  report_hex(report, "k_mag", record + RECORD_K_MAG, RECORD_K_MAG_BYTES);
  report_hex(report, "v_code", record + RECORD_V_CODE, RECORD_V_CODE_BYTES);
  report_scale(report, "v_scale", "v_scale_bits", record + RECORD_V_SCALE);
  char crc[12];
  snprintf(crc, sizeof crc, "%08x", load_u32(record + RECORD_CRC));
  report_text(report, "crc", crc);
  report_bool(report, "crc_good", load_u32(record + RECORD_CRC) == wanted);
  float key[LIMIT_HEAD_DIM_MAX], value[LIMIT_HEAD_DIM_MAX];
  uint32_t d = 0;
  struct error reason = {0};
  if (!good) {
    report_text(report, "decoded", "not decoded: the record is damaged");
  } else if (decode(found, key, value, &d, &reason)) {
    report_text(report, "decoded", reason.text);
  } else {
    report_real(report, "key_norm", norm(key, d));
    report_reals(report, "key", key, d, SHOWN_COORDINATES);
    report_real(report, "value_norm", norm(value, d));
    report_reals(report, "value", value, d, SHOWN_COORDINATES);
  }
  if (!good)
    return error_set(error, ERR_CORRUPT, "%s: the record of layer %u, head %u, token %llu fails its CRC", found->path,
                     found->layer, found->head, (unsigned long long)found->token);
  return 0;
}
