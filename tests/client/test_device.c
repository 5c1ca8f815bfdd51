// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// usage: test_device [SEED [ROUNDS]]
//
// What a device computes against the processor: records, queries and means to the bit, attention against sums in
// double; random shapes, types and blocks, other ones at every run unless a seed above 0 is given. Exits with 77 where
// there is no GPU.
#include "client/cuda/device.h"

#include <stdio.h>
#ifndef COLDKV_CUDA
int main(void) {
  puts("skipped: built without CUDA");
  return 77;
}
#else
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdlib.h>
#include <time.h>

#include "client/hot.h"
#include "tests/client/gpu_arrays.h"
#include "tests/proto/random.h"

enum { ROUNDS = 40, LAYERS_MAX = 3, SLOTS_MAX = 90, KEYS_MAX = 1024, SKIPPED = 77 };

/* One conversation's worth: the device, and the same on the processor, with numbers as the device keeps them. */
struct pair {
  struct device_shape shape;
  int type;   /* of the calls */
  bool wild;  /* lengths for records, too different for an attention that can be compared */
  bool tiny;  /* all numbers next to 0 */
  struct rope rope;
  struct codec codec;
  struct device *device;
  struct hot hot;
  float *mean_k, *mean_v;
  struct device_block block;
  cudaStream_t streams[2];
};

static struct random randomness;
static struct error error;

static uint32_t below(uint32_t n) { return (uint32_t)random_below(&randomness, n); }
static float noise(void) { return (float)((int)below(65536) - 32768) / 16384.0f; }

/* -0, 0, or hardly more, where the type has that. */
static float next_to_zero(void) { return below(3) ? (float)((int)below(9) - 4) * 0x1p-149f : -0.0f; }

static void give_up(const char *what) {
  fprintf(stderr, "test_device: %s: %s\n", what, error.text);
  exit(1);
}

static void cuda(cudaError_t status, const char *what) {
  if (status == cudaSuccess)
    return;
  error_set(&error, ERR_IO, "%s", cudaGetErrorString(status));
  give_up(what);
}

static void need(int result, const char *what) {
  if (result)
    give_up(what);
}

/* Random vectors as the caller's type keeps them; now and then one that is zero, tiny or long. */
static float *vectors(const struct pair *p, size_t count) {
  uint32_t d = p->shape.head_dim;
  float *x = allocate(count * d * sizeof *x);
  for (size_t i = 0; i < count; i++) {
    uint32_t kind = below(24);
    float scale = kind == 0 ? 0 : kind == 1 ? 0x1p-120f : kind == 2 ? 0x1p-20f : kind == 3 && p->wild ? 300 : 1;
    for (uint32_t c = 0; c < d; c++)
      x[i * d + c] = rounded(p->type, p->tiny && kind < 4 ? -0.0f
                                      : p->tiny           ? next_to_zero()
                                                          : noise() * scale + (kind < 3 || kind == 4 ? 0 : 0.3f));
  }
  return x;
}

/* --- making a pair ------------------------------------------------------------------------------------------------ */

static void *stream(const struct pair *p) {
  uint32_t pick = below(3); /* NULL: the default stream */
  return pick == 2 ? NULL : p->streams[pick];
}

static void make_pair(struct pair *p) {
  double freqs[ROPE_PAIRS_MAX];
  uint32_t d = 64 + 8 * below(9), layout = below(3);
  d = below(2) ? d : below(2) ? 128 : 64;
  uint32_t dims = layout == ROPE_NONE ? 0 : below(3) ? d : 2 * (1 + below(d / 2));
  for (uint32_t i = 0; i < dims / 2; i++)
    freqs[i] = pow(10000, -2.0 * i / dims);
  need(rope_init(&p->rope, (enum rope_layout)layout, d, dims, freqs, 5000, &error), "rope");
  p->shape = (struct device_shape){.layers = 1 + below(LAYERS_MAX), .heads = 1 + below(5), .group = 1 + below(8),
                                   .head_dim = d, .hot_type = below(3), .rope = &p->rope,
                                   .softmax_scale = (float)(1 / sqrt(d))};
  p->wild = below(3) == 0;
  p->tiny = below(5) == 0;
  p->type = below(2) ? (int)p->shape.hot_type : (int)below(3);
  need(codec_init(&p->codec, d, random_u64(&randomness), &error), "codec");
  need(hot_init(&p->hot, p->shape.layers, p->shape.heads, d, &error), "hot");
  size_t means = (size_t)p->shape.layers * p->shape.heads * d;
  p->mean_k = allocate(means * sizeof(float));
  p->mean_v = allocate(means * sizeof(float));
  for (size_t i = 0; i < means; i++) {
    p->mean_k[i] = p->tiny ? next_to_zero() : below(8) ? noise() : 0;
    p->mean_v[i] = p->tiny ? next_to_zero() : below(8) ? noise() : 0;
  }
  cuda(cudaStreamCreateWithFlags(&p->streams[0], cudaStreamNonBlocking), "stream");
  cuda(cudaStreamCreate(&p->streams[1]), "stream");
  need(device_create(&p->device, 0, &p->shape, &error), "device_create");
  need(device_freeze(p->device, &p->codec, p->mean_k, p->mean_v, &error), "device_freeze");
}

static void finish_pair(struct pair *p) {
  device_destroy(p->device);
  hot_finish(&p->hot);
  rope_finish(&p->rope);
  cudaStreamDestroy(p->streams[0]);
  cudaStreamDestroy(p->streams[1]);
  free(p->mean_k);
  free(p->mean_v);
}

/* --- the hot window ----------------------------------------------------------------------------------------------- */

/* x before RoPE, as the kernels make it of what the engine gives. */
static void plain(const struct pair *p, uint32_t row, const float *x, float *y) {
  float angles[ROPE_ROW_MAX];
  memcpy(y, x, p->shape.head_dim * sizeof *y);
  if (!p->block.rotated)
    return;
  rope_angles(&p->rope, p->block.positions[row], angles);
  rope_apply(&p->rope, angles, -1, 1, x, y);
}

/* Puts a block of random keys and values on both sides. */
static void put_block(struct pair *p, uint64_t first, uint32_t n, bool rotated, bool packed) {
  const struct device_shape *s = &p->shape;
  uint32_t d = s->head_dim;
  p->block = (struct device_block){.first = first, .count = n, .packed = packed, .rotated = rotated};
  p->block.hot_start = first < COLDKV_HOT ? 0 : (first - COLDKV_HOT) / HOT_TILE * HOT_TILE;
  for (uint32_t i = 0; i < n; i++)
    p->block.positions[i] = (int64_t)below(3000);
  need(device_begin(p->device, &p->block, below(SLOTS_MAX), &error), "device_begin");
  for (uint32_t layer = 0; layer < s->layers; layer++) {
    float *k = vectors(p, (size_t)n * s->heads), *v = vectors(p, (size_t)n * s->heads), own[ROPE_ROW_MAX];
    void *there_k = upload(p->type, k, (size_t)n * s->heads * d);
    void *there_v = upload(p->type, v, (size_t)n * s->heads * d);
    struct device_place place = {.type = p->type, .stream = stream(p)};
    need(device_put(p->device, layer, there_k, there_v, &place, &error), "device_put");
    for (uint32_t i = 0; i < n * s->heads; i++) {
      float key[LIMIT_HEAD_DIM_MAX], turned[LIMIT_HEAD_DIM_MAX], value[LIMIT_HEAD_DIM_MAX];
      plain(p, i / s->heads, k + (size_t)i * d, key);
      rope_angles(&p->rope, (int64_t)(first + i / s->heads), own);
      rope_apply(&p->rope, own, 1, 1, key, turned);
      for (uint32_t c = 0; c < d; c++) {
        key[c] = rounded((int)s->hot_type, key[c]);
        turned[c] = rounded((int)s->hot_type, turned[c]);
        value[c] = rounded((int)s->hot_type, v[(size_t)i * d + c]);
      }
      hot_put(&p->hot, layer, i % s->heads, first + i / s->heads, key, turned, value);
    }
    cuda(cudaDeviceSynchronize(), "device_put");
    cudaFree(there_k);
    cudaFree(there_v);
    free(k);
    free(v);
  }
}

/* --- records, means, queries -------------------------------------------------------------------------------------- */

static void check_records(struct pair *p, uint64_t first, uint32_t count) {
  const struct device_shape *s = &p->shape;
  size_t places = (size_t)s->layers * s->heads;
  uint8_t *records = allocate(count * places * RECORD_BYTES), wanted[RECORD_BYTES];
  memset(records, 0xee, count * places * RECORD_BYTES);
  need(device_encode_start(p->device, first, count, &error), "device_encode_start");
  need(device_encode_wait(p->device, records, &error), "device_encode_wait");
  for (uint32_t i = 0; i < count; i++)
    for (uint32_t at = 0; at < places; at++) {
      uint32_t layer = at / s->heads, head = at % s->heads;
      const uint8_t *record = records + (i * places + at) * RECORD_BYTES;
      need(codec_encode(&p->codec, hot_key(&p->hot, layer, head, first + i), hot_value(&p->hot, layer, head, first + i),
                        p->mean_k + (size_t)at * s->head_dim, p->mean_v + (size_t)at * s->head_dim, layer, head,
                        first + i, wanted), "codec_encode");
      for (int b = 0; b < RECORD_BYTES; b++)
        if (record[b] != wanted[b]) {
          error_set(&error, ERR_INTERNAL, "d %u, type %u, token %llu, layer %u, head %u: byte %d is %02x, not %02x",
                    s->head_dim, s->hot_type, (unsigned long long)(first + i), layer, head, b, record[b], wanted[b]);
          give_up("records differ");
        }
    }
  free(records);
}

static void check_means(struct pair *p, uint64_t first, uint64_t end) {
  const struct device_shape *s = &p->shape;
  size_t count = (size_t)s->layers * s->heads * s->head_dim;
  float *means = allocate(2 * count * sizeof *means);
  need(device_means(p->device, first, end, means, &error), "device_means");
  for (size_t i = 0; i < 2 * count; i++) {
    uint32_t at = (uint32_t)(i % count / s->head_dim), c = (uint32_t)(i % s->head_dim);
    double sum = 0;
    for (uint64_t t = first; t < end; t++)
      sum += (double)(i < count ? hot_key : hot_value)(&p->hot, at / s->heads, at % s->heads, t)[c];
    if (means[i] != (float)(sum / (double)(end - first)))
      give_up("means differ");
  }
  need(device_freeze(p->device, &p->codec, p->mean_k, p->mean_v, &error), "device_freeze"); /* as they were */
  free(means);
}

static void check_queries(struct pair *p, const float *q, void *there) {
  const struct device_shape *s = &p->shape;
  uint32_t d = s->head_dim, rows = p->block.count;
  float expected[ROPE_ROW_MAX] = {0};
  const float *queries;
  struct device_place place = {.type = p->type, .stream = stream(p)};
  rope_mean(&p->rope, COLDKV_HOT, 2000, expected);
  need(device_query_start(p->device, there, rows, expected, &place, &error), "device_query_start");
  need(device_query_wait(p->device, &queries, &error), "device_query_wait");
  for (uint32_t i = 0; i < rows * s->heads; i++) {
    float sum[LIMIT_HEAD_DIM_MAX] = {0}, x[LIMIT_HEAD_DIM_MAX], wanted[RECORD_SIGNATURE_BITS];
    for (uint32_t j = 0; j < s->group; j++) {
      plain(p, i / s->heads, q + ((size_t)i * s->group + j) * d, x);
      for (uint32_t c = 0; c < d; c++)
        sum[c] += x[c];
    }
    rope_apply(&p->rope, expected, 1, 1, sum, x);
    codec_query(&p->codec, x, wanted);
    for (uint32_t c = 0; c < RECORD_SIGNATURE_BITS; c++) {
      float got = queries[(size_t)i * RECORD_SIGNATURE_BITS + c];
      /* angles in double come from two libraries: only without them is it the same to the bit */
      if (p->block.rotated ? !(fabsf(got - wanted[c]) < (p->wild ? 0.03f : 1e-3f)) : got != wanted[c]) {
        error_set(&error, ERR_INTERNAL, "row %u, coordinate %u: %a, not %a", i, c, (double)got, (double)wanted[c]);
        give_up("queries differ");
      }
    }
  }
}

/* --- attention ---------------------------------------------------------------------------------------------------- */

/* Random slots: every row's a part of a union, sometimes none. */
static void make_slots(struct pair *p, uint32_t layer, struct retrieved *r) {
  const struct device_shape *s = &p->shape;
  uint32_t d = s->head_dim, k = below(4) ? 1 + below(SLOTS_MAX) : 0;
  need(retrieved_init(r, s->heads, &error), "retrieved");
  r->rows = p->block.count;
  r->k = k;
  r->index = allocate((size_t)r->rows * s->heads * k * sizeof *r->index);
  memset(r->index, 0xff, (size_t)r->rows * s->heads * k * sizeof *r->index);
  if (p->block.hot_start <= COLDKV_SINKS || !below(8))
    return;
  for (uint32_t head = 0; head < s->heads && k; head++) {
    struct slot_union *u = &r->unions[head];
    uint32_t room = (uint32_t)p->block.hot_start - COLDKV_SINKS, size = below(r->rows == 1 ? k + 1 : 2 * k + 1);
    u->count = u->capacity = size < room ? size : room;
    u->tokens = allocate(u->count * sizeof *u->tokens);
    u->chosen = allocate((size_t)u->count * RECORD_BYTES);
    u->keys = allocate((size_t)u->count * d * sizeof(float));
    u->values = allocate((size_t)u->count * d * sizeof(float));
    size_t mean = ((size_t)layer * s->heads + head) * d;
    for (uint32_t i = 0; i < u->count; i++) {
      float *x = vectors(p, 2);
      u->tokens[i] = COLDKV_SINKS + (uint64_t)i * room / u->count;
      need(codec_encode(&p->codec, x, x + d, p->mean_k + mean, p->mean_v + mean, layer, head, u->tokens[i],
                        u->chosen + (size_t)i * RECORD_BYTES), "encode a slot");
      codec_decode(&p->codec, u->chosen + (size_t)i * RECORD_BYTES, p->mean_k + mean, p->mean_v + mean,
                   u->keys + (size_t)i * d, u->values + (size_t)i * d);
      free(x);
    }
    for (uint32_t row = 0; row < r->rows; row++) {
      uint32_t *index = r->index + ((size_t)row * s->heads + head) * k, kept = 0, part = 1 + below(3);
      for (uint32_t i = 0; i < u->count && kept < k; i++)
        if (r->rows == 1 ? below(50) || part == 1 : below(part) == 0)
          index[kept++] = i;
    }
  }
}

struct key {
  float key[LIMIT_HEAD_DIM_MAX];
  const float *value;
};

static void turn(const struct pair *p, const float *x, uint64_t position, float *y) {
  float angles[ROPE_ROW_MAX];
  rope_angles(&p->rope, (int64_t)position, angles);
  rope_apply(&p->rope, angles, 1, 1, x, y);
}

/* Keys of a row and head, rotated; *far of them are sinks and slots. */
static uint32_t list_keys(const struct pair *p, const struct retrieved *r, uint32_t layer, uint32_t head, uint32_t row,
                          struct key *keys, uint32_t *far) {
  uint32_t count = 0, d = p->shape.head_dim;
  uint64_t t = p->block.first + row;
  for (uint32_t i = 0; i < COLDKV_SINKS && p->block.hot_start; i++) {
    memcpy(keys[count].key, hot_sink_keys(&p->hot, layer, head) + (size_t)i * d, d * sizeof(float));
    keys[count++].value = hot_sink_values(&p->hot, layer, head) + (size_t)i * d;
  }
  const uint32_t *places;
  uint32_t slots = retrieved_row(r, row, head, &places);
  for (uint32_t i = 0; i < slots; i++) {
    const struct slot_union *u = &r->unions[head];
    turn(p, u->keys + (size_t)places[i] * d, p->block.packed ? COLDKV_SINKS + i : u->tokens[places[i]],
         keys[count].key);
    keys[count++].value = u->values + (size_t)places[i] * d;
  }
  *far = count;
  for (uint64_t h = p->block.hot_start; h <= t; h++) {
    const float *tile = hot_tile_keys(&p->hot, layer, head, h);
    for (uint32_t c = 0; c < d; c++)
      keys[count].key[c] = tile[(size_t)c * HOT_TILE + h % HOT_TILE];
    keys[count++].value = hot_value(&p->hot, layer, head, h);
  }
  return count;
}

/* Attention of one query in double; top: of the values' sizes. */
static void attend(const struct pair *p, const float *near, const float *distant, const struct key *keys,
                   uint32_t count, uint32_t far, double *out, double *top) {
  static double weights[KEYS_MAX];
  uint32_t d = p->shape.head_dim;
  double most = -INFINITY, sum = 0;
  for (uint32_t i = 0; i < count; i++) {
    weights[i] = 0;
    for (uint32_t c = 0; c < d; c++)
      weights[i] += (double)(i < far ? distant : near)[c] * (double)keys[i].key[c] * (double)p->shape.softmax_scale;
    most = fmax(most, weights[i]);
  }
  memset(out, 0, d * sizeof *out);
  *top = 1;
  for (uint32_t i = 0; i < count; i++) {
    weights[i] = exp(weights[i] - most);
    sum += weights[i];
    for (uint32_t c = 0; c < d; c++) {
      out[c] += weights[i] * (double)keys[i].value[c];
      *top = fmax(*top, weights[i] * fabs((double)keys[i].value[c]));
    }
  }
  for (uint32_t c = 0; c < d; c++)
    out[c] /= sum;
}

static void check_attention(struct pair *p, uint32_t layer, const float *q, void *there) {
  static struct key keys[KEYS_MAX];
  const struct device_shape *s = &p->shape;
  uint32_t d = s->head_dim, query_heads = s->heads * s->group;
  size_t size = (size_t)p->block.count * query_heads * d;
  struct retrieved r;
  struct device_place place = {.type = p->type, .stream = stream(p)};
  make_slots(p, layer, &r);
  void *there_out = upload(p->type, NULL, size);
  need(device_take(p->device, layer, &r, &place, &error), "device_take");
  place.stream = stream(p);
  need(device_attend(p->device, layer, there, there_out, &place, &error), "device_attend");
  float *out = download(p->type, there_out, size);
  int coarse = p->type > (int)s->hot_type ? p->type : (int)s->hot_type; /* of the two types, by chance in this order */
  double allowed = coarse == COLDKV_F32 ? 5e-5 : coarse == COLDKV_F16 ? 8e-3 : 6e-2;
  for (uint32_t i = 0; i < p->block.count * query_heads; i++) {
    uint32_t row = i / query_heads, head = i % query_heads / s->group, far;
    uint32_t count = list_keys(p, &r, layer, head, row, keys, &far);
    uint64_t t = p->block.first + row;
    float before[LIMIT_HEAD_DIM_MAX], near[LIMIT_HEAD_DIM_MAX], distant[LIMIT_HEAD_DIM_MAX];
    double right[LIMIT_HEAD_DIM_MAX], top;
    plain(p, row, q + (size_t)i * d, before);
    turn(p, before, t, near);
    turn(p, before, p->block.packed ? far + t - p->block.hot_start : t, distant);
    attend(p, near, distant, keys, count, far, right, &top);
    for (uint32_t c = 0; c < d; c++) {
      double got = (double)out[(size_t)i * d + c];
      if (!(fabs(got - right[c]) <= allowed * top)) {
        error_set(&error, ERR_INTERNAL, "d %u, heads %u, group %u, rows %u, row %u, query head %u, coordinate %u: %g, "
                  "not %g, of %u keys, %u far, packed %d, rotated %d, types %u %d", d, s->heads, s->group,
                  p->block.count, row, i % query_heads, c, got, right[c], count, far, p->block.packed,
                  p->block.rotated, s->hot_type, p->type);
        give_up("attention differs");
      }
    }
  }
  free(out);
  retrieved_finish(&r);
}

/* A NaN in a key is noticed, and forgotten when told. */
static void check_not_finite(struct pair *p) {
  uint64_t token;
  size_t size = (size_t)p->block.count * p->shape.heads * p->shape.head_dim;
  float *k = vectors(p, (size_t)p->block.count * p->shape.heads);
  struct device_place place = {.type = p->type, .stream = p->streams[0]};
  void *good = upload(p->type, k, size);
  k[below((uint32_t)size)] = below(2) ? NAN : INFINITY;
  void *bad = upload(p->type, k, size);
  if (device_check(p->device, &token))
    give_up("found what is not there");
  need(device_put(p->device, 0, below(2) ? good : bad, bad, &place, &error), "device_put");
  cuda(cudaDeviceSynchronize(), "device_put");
  if (device_check(p->device, &token) != -ERR_NOT_FINITE || token != p->block.first)
    give_up("a NaN was not found");
  device_forget(p->device);
  if (device_check(p->device, &token))
    give_up("not forgotten");
  cudaFree(good);
  cudaFree(bad);
  free(k);
}

static void run_round(void) {
  struct pair p = {0};
  make_pair(&p);
  const struct device_shape *s = &p.shape;
  bool rotated = below(4) == 0;
  put_block(&p, 0, COLDKV_SINKS, rotated, false);
  uint64_t end = COLDKV_SINKS;
  if (below(4)) /* as after a resume: straight to a later place, far enough before for the hot window */
    end = 64 * (uint64_t)(1 + below(40));
  uint64_t first = end, until = end + (end > COLDKV_SINKS ? 320 : 1 + below(400));
  while (end < until) {
    uint32_t n = 1 + below(64);
    put_block(&p, end, n, rotated, false);
    end += n;
  }
  uint64_t oldest = end > HOT_RING && end - HOT_RING > first ? end - HOT_RING : first;
  uint32_t count = 1 + below(64);
  check_records(&p, oldest, count < end - oldest ? count : (uint32_t)(end - oldest));
  check_means(&p, oldest, end);
  uint32_t n = below(3) ? 1 + below(64) : 1;
  put_block(&p, end, n, rotated, below(2));
  for (uint32_t layer = 0; layer < s->layers; layer++) {
    float *q = vectors(&p, (size_t)n * s->heads * s->group);
    void *there = upload(p.type, q, (size_t)n * s->heads * s->group * s->head_dim);
    check_queries(&p, q, there);
    if (!p.wild)
      check_attention(&p, layer, q, there);
    cudaFree(there);
    free(q);
  }
  check_not_finite(&p);
  finish_pair(&p);
}

int main(int argc, char **argv) {
  struct device *device = NULL;
  struct rope rope = {.layout = ROPE_NONE};
  struct device_shape shape = {.layers = 1, .heads = 1, .group = 1, .head_dim = 64, .rope = &rope, .softmax_scale = 1};
  if (device_create(&device, 0, &shape, &error) == -ERR_NOT_SUPPORTED) {
    printf("skipped: %s\n", error.text);
    return SKIPPED;
  }
  if (!device)
    give_up("device_create");
  device_destroy(device);
  uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 0;
  seed = seed ? seed : (uint64_t)time(NULL);
  int rounds = argc > 2 ? atoi(argv[2]) : ROUNDS;
  printf("seed %llu, %d rounds\n", (unsigned long long)seed, rounds);
  fflush(stdout);
  for (int i = 0; i < rounds; i++) {
    randomness = (struct random){.state = seed + (uint64_t)i * 1000003};
    run_round();
  }
  puts("ok");
  return 0;
}
#endif
