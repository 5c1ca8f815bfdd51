// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/demo/safetensors.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "proto/bytes.h"
#include "tools/demo/json.h"

enum {
  NAME_BYTES_MAX = 128,
  RANK_MAX = 4,
  TENSORS_MAX = 4096,
  HEADER_BYTES_MAX = 16 << 20,
};
#define FILE_BYTES_MAX (UINT64_C(4) << 30) /* this loader is for small models */

enum type { TYPE_OTHER, TYPE_F16, TYPE_F32 };

struct tensor {
  char name[NAME_BYTES_MAX];
  enum type type;
  uint32_t rank;
  uint64_t shape[RANK_MAX];
  uint64_t begin, end; /* bytes, from the start of the data */
};

struct safetensors {
  char *path;
  uint8_t *bytes; /* the file */
  const uint8_t *data;
  uint64_t data_bytes;
  struct tensor *tensors;
  uint32_t count;
};

/* Reads the file into file->bytes. */
static int read_file(struct safetensors *file, uint64_t *size, struct error *error) {
  FILE *stream = fopen(file->path, "rb");
  if (!stream)
    return error_set_errno(error, errno, "%s: cannot be opened", file->path);
  struct stat status = {0};
  int result = 0;
  if (fstat(fileno(stream), &status) != 0)
    result = error_set_errno(error, errno, "%s: cannot be read", file->path);
  else if (!S_ISREG(status.st_mode))
    result = error_set(error, ERR_IO, "%s: not a regular file", file->path);
  else if ((uint64_t)status.st_size > FILE_BYTES_MAX)
    result = error_set(error, ERR_LIMIT, "%s: larger than this loader takes (4 GiB)", file->path);
  else if (status.st_size < 8)
    result = error_set(error, ERR_CORRUPT, "%s: too short for a safetensors file", file->path);
  else if (!(file->bytes = malloc((size_t)status.st_size)))
    result = error_set(error, ERR_MEMORY, "%s: no memory for its %lld bytes", file->path, (long long)status.st_size);
  else if (fread(file->bytes, 1, (size_t)status.st_size, stream) != (size_t)status.st_size)
    result = error_set(error, ERR_IO, "%s: could not be read to its end", file->path);
  *size = (uint64_t)status.st_size;
  fclose(stream);
  return result;
}

/* One tensor's description; what it says is checked against the file here. */
static int parse_tensor(const struct safetensors *file, struct json *json, struct tensor *tensor,
                        struct error *error) {
  char key[32], type[16] = "";
  bool shaped = false, placed = false;
  json_open(json, '{');
  while (json_key(json, key, sizeof key)) {
    if (strcmp(key, "dtype") == 0) {
      json_string(json, type, sizeof type);
    } else if (strcmp(key, "shape") == 0) {
      shaped = true;
      tensor->rank = 0;
      for (json_open(json, '['); json_element(json);) {
        uint64_t size = json_integer(json);
        if (tensor->rank < RANK_MAX)
          tensor->shape[tensor->rank] = size;
        if (++tensor->rank > RANK_MAX)
          return error_set(error, ERR_CORRUPT, "%s: tensor %s has too many dimensions", file->path, tensor->name);
      }
    } else if (strcmp(key, "data_offsets") == 0) {
      uint64_t places[2] = {0, 0};
      uint32_t count = 0;
      for (json_open(json, '['); json_element(json); count++) {
        uint64_t place = json_integer(json);
        if (count < 2)
          places[count] = place;
      }
      placed = count == 2;
      tensor->begin = places[0];
      tensor->end = places[1];
    } else {
      json_skip(json);
    }
  }
  if (json->bad || !shaped || !placed || !type[0])
    return error_set(error, ERR_CORRUPT, "%s: the header's entry for %s makes no sense", file->path, tensor->name);
  tensor->type = strcmp(type, "F16") == 0 ? TYPE_F16 : strcmp(type, "F32") == 0 ? TYPE_F32 : TYPE_OTHER;
  if (tensor->begin > tensor->end || tensor->end > file->data_bytes)
    return error_set(error, ERR_CORRUPT, "%s: tensor %s lies outside the file: it was cut short or is damaged",
                     file->path, tensor->name);
  if (tensor->type == TYPE_OTHER) /* only an error when somebody asks for it */
    return 0;
  uint64_t bytes = tensor->type == TYPE_F16 ? 2 : 4;
  for (uint32_t i = 0; i < tensor->rank; i++)
    if (__builtin_mul_overflow(bytes, tensor->shape[i], &bytes))
      bytes = UINT64_MAX;
  if (bytes != tensor->end - tensor->begin)
    return error_set(error, ERR_CORRUPT, "%s: tensor %s does not have the bytes its shape needs", file->path,
                     tensor->name);
  return 0;
}

static int parse_header(struct safetensors *file, uint64_t size, struct error *error) {
  struct json json = {.at = (const char *)file->bytes + 8, .end = (const char *)file->bytes + 8 + size};
  char name[NAME_BYTES_MAX];
  json_open(&json, '{');
  while (json_key(&json, name, sizeof name)) {
    if (strcmp(name, "__metadata__") == 0) {
      json_skip(&json);
      continue;
    }
    if (file->count == TENSORS_MAX)
      return error_set(error, ERR_LIMIT, "%s: more than %d tensors", file->path, TENSORS_MAX);
    struct tensor *grown = realloc(file->tensors, (file->count + 1) * sizeof *grown);
    if (!grown)
      return error_set(error, ERR_MEMORY, "%s: no memory for the header", file->path);
    file->tensors = grown;
    struct tensor *tensor = &grown[file->count];
    memset(tensor, 0, sizeof *tensor);
    memcpy(tensor->name, name, sizeof name);
    int result = parse_tensor(file, &json, tensor, error);
    if (result)
      return result;
    file->count++;
  }
  if (!json_finished(&json))
    return error_set(error, ERR_CORRUPT, "%s: its header is not the JSON of a safetensors file", file->path);
  return 0;
}

int safetensors_open(struct safetensors **file, const char *path, struct error *error) {
  struct safetensors *f = calloc(1, sizeof *f);
  uint64_t size = 0;
  *file = NULL;
  if (!f || !(f->path = strdup(path))) {
    free(f);
    return error_set(error, ERR_MEMORY, "%s: no memory to open it", path);
  }
  int result = read_file(f, &size, error);
  if (!result) {
    assert(f->bytes && size >= 8);
    uint64_t header_bytes = load_u64(f->bytes);
    if (header_bytes > size - 8 || header_bytes > HEADER_BYTES_MAX) {
      result = error_set(error, ERR_CORRUPT, "%s: not a safetensors file, or cut short", path);
    } else {
      f->data = f->bytes + 8 + header_bytes;
      f->data_bytes = size - 8 - header_bytes;
      result = parse_header(f, header_bytes, error);
    }
  }
  if (result) {
    safetensors_close(f);
    return result;
  }
  *file = f;
  return 0;
}

void safetensors_close(struct safetensors *file) {
  if (!file)
    return;
  free(file->tensors);
  free(file->bytes);
  free(file->path);
  free(file);
}

int safetensors_read(const struct safetensors *file, const char *name, uint32_t rows, uint32_t columns, float **data,
                     struct error *error) {
  const struct tensor *tensor = NULL;
  for (uint32_t i = 0; i < file->count && !tensor; i++)
    if (strcmp(file->tensors[i].name, name) == 0)
      tensor = &file->tensors[i];
  *data = NULL;
  if (!tensor)
    return error_set(error, ERR_CORRUPT, "%s: has no tensor %s", file->path, name);
  if (tensor->type == TYPE_OTHER)
    return error_set(error, ERR_CORRUPT, "%s: tensor %s is neither F16 nor F32", file->path, name);
  if (tensor->rank != (columns ? 2 : 1) || tensor->shape[0] != rows || (columns && tensor->shape[1] != columns))
    return error_set(error, ERR_CORRUPT, "%s: tensor %s does not have the shape that config.json says", file->path,
                     name);
  size_t count = (size_t)rows * (columns ? columns : 1);
  float *out = malloc(count * sizeof *out);
  if (!out)
    return error_set(error, ERR_MEMORY, "%s: no memory for tensor %s", file->path, name);
  const uint8_t *bytes = file->data + tensor->begin;
  for (size_t i = 0; i < count; i++) {
    out[i] = tensor->type == TYPE_F16 ? f32_from_f16(load_u16(bytes + 2 * i)) : load_f32(bytes + 4 * i);
    if (!isfinite(out[i])) {
      free(out);
      return error_set(error, ERR_CORRUPT, "%s: tensor %s holds a value that is not finite", file->path, name);
    }
  }
  *data = out;
  return 0;
}

const uint8_t *safetensors_bytes(const struct safetensors *file, uint64_t *size) {
  *size = file->data_bytes;
  return file->data;
}
