// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "tools/bench/read.h"

#include "proto/bytes.h"
#include "proto/cpu.h"
#include "tools/bench/measure.h"

enum { MEASURE_BYTES = 256 << 20, MEASURE_ROUNDS = 3 };

/* Reads blocks of BLOCK bytes (0: all as one), each as STREAMS equal parts side by side so that several pages are under
 * way. STEP bytes are taken of each in turn, after asking for what comes AHEAD bytes later (0: the hardware prefetcher
 * is left alone). HINT is that of __builtin_prefetch. */
#define DEFINE_READ(NAME, TARGET, VECTOR, ZERO, LOAD, BLOCK, STREAMS, STEP, AHEAD, HINT)                               \
  TARGET static uint64_t NAME(const uint8_t *data, size_t size) {                                                      \
    VECTOR sum[4] = {ZERO, ZERO, ZERO, ZERO};                                                                          \
    size_t block = (BLOCK) ? (BLOCK) : size, part = block / (STREAMS);                                                 \
    for (const uint8_t *end = data + size; data < end; data += block)                                                  \
      for (size_t at = 0; at < part; at += (STEP))                                                                     \
        for (size_t s = 0; s < (STREAMS); s++) {                                                                       \
          const uint8_t *p = data + s * part + at;                                                                     \
          for (size_t i = 0; (AHEAD) && i < (STEP); i += 64)                                                           \
            __builtin_prefetch((const void *)((uintptr_t)p + (AHEAD) + i), 0, HINT);                                   \
          _Pragma("GCC unroll 16") for (size_t i = 0; i < (STEP) / sizeof(VECTOR); i++) sum[i % 4] ^=                  \
              LOAD(p + i * sizeof(VECTOR));                                                                            \
        }                                                                                                              \
    sum[0] ^= sum[1] ^ sum[2] ^ sum[3];                                                                                \
    uint64_t word;                                                                                                     \
    memcpy(&word, &sum[0], sizeof word);                                                                               \
    return word;                                                                                                       \
  }

#define LOAD_WORD(p) (*(const uint64_t *)(const void *)(p))
DEFINE_READ(read_words, , uint64_t, 0, LOAD_WORD, 0, 1, 512, 0, 3)
DEFINE_READ(read_words_ahead, , uint64_t, 0, LOAD_WORD, 0, 1, 512, 4096, 3)
DEFINE_READ(read_words_blocks, , uint64_t, 0, LOAD_WORD, 32768, 8, 64, 32768, 2)

#if defined(__x86_64__)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f")))
#define LOAD_AVX2(p) _mm256_load_si256((const __m256i *)(const void *)(p))
#define LOAD_AVX512(p) _mm512_load_si512(p)
#define ZERO_AVX2 _mm256_setzero_si256()
#define ZERO_AVX512 _mm512_setzero_si512()
DEFINE_READ(read_avx2, AVX2, __m256i, ZERO_AVX2, LOAD_AVX2, 0, 1, 512, 0, 3)
DEFINE_READ(read_avx2_eight, AVX2, __m256i, ZERO_AVX2, LOAD_AVX2, 0, 8, 512, 1024, 3)
DEFINE_READ(read_avx2_blocks, AVX2, __m256i, ZERO_AVX2, LOAD_AVX2, 32768, 8, 128, 32768, 2)
DEFINE_READ(read_avx512, AVX512, __m512i, ZERO_AVX512, LOAD_AVX512, 0, 1, 512, 0, 3)
DEFINE_READ(read_avx512_ahead, AVX512, __m512i, ZERO_AVX512, LOAD_AVX512, 0, 1, 512, 4096, 3)
DEFINE_READ(read_avx512_eight, AVX512, __m512i, ZERO_AVX512, LOAD_AVX512, 0, 8, 512, 1024, 3)
DEFINE_READ(read_avx512_eight_near, AVX512, __m512i, ZERO_AVX512, LOAD_AVX512, 0, 8, 512, 512, 3)
DEFINE_READ(read_avx512_blocks, AVX512, __m512i, ZERO_AVX512, LOAD_AVX512, 32768, 8, 128, 32768, 2)
DEFINE_READ(read_avx512_blocks_near, AVX512, __m512i, ZERO_AVX512, LOAD_AVX512, 32768, 8, 128, 32768, 3)
#endif

int read_loops(struct read_loop loops[READ_LOOPS_MAX]) {
  int count = 0;
  unsigned flags = cpu_flags();
  (void)flags;
#if defined(__x86_64__)
  if (flags & CPU_AVX512) {
    loops[count++] = (struct read_loop){"avx512", read_avx512};
    loops[count++] = (struct read_loop){"avx512, 4 KiB ahead", read_avx512_ahead};
    loops[count++] = (struct read_loop){"avx512, eight streams, 1 KiB ahead", read_avx512_eight};
    loops[count++] = (struct read_loop){"avx512, eight streams, 512 B ahead", read_avx512_eight_near};
    loops[count++] = (struct read_loop){"avx512, blocks as eight streams, the next to L2", read_avx512_blocks};
    loops[count++] = (struct read_loop){"avx512, blocks as eight streams, the next to L1", read_avx512_blocks_near};
  } else if (flags & CPU_AVX2) {
    loops[count++] = (struct read_loop){"avx2", read_avx2};
    loops[count++] = (struct read_loop){"avx2, eight streams", read_avx2_eight};
    loops[count++] = (struct read_loop){"avx2, blocks as eight streams, the next to L2", read_avx2_blocks};
  }
#endif
  if (!count) {
    loops[count++] = (struct read_loop){"words", read_words};
    loops[count++] = (struct read_loop){"words, 4 KiB ahead", read_words_ahead};
    loops[count++] = (struct read_loop){"words, blocks as eight streams, the next to L2", read_words_blocks};
  }
  return count;
}

int read_measure(struct bench_output *output, double *rate, struct error *error) {
  struct read_loop loops[READ_LOOPS_MAX];
  int count = read_loops(loops);
  volatile uint64_t seen = 0;
  uint8_t *data = pages_alloc(MEASURE_BYTES);
  if (!data)
    return error_set(error, ERR_MEMORY, "no memory to be read");
  double seconds[READ_LOOPS_MAX][MEASURE_ROUNDS];
  for (int round = 0; round < MEASURE_ROUNDS; round++)
    for (int l = 0; l < count; l++) {
      double start = core_s();
      seen ^= loops[l].run(data, MEASURE_BYTES);
      seconds[l][round] = core_s() - start;
    }
  pages_free(data, MEASURE_BYTES);
  *rate = 0;
  for (int l = 0; l < count; l++) {
    double found = MEASURE_BYTES / median(seconds[l], MEASURE_ROUNDS);
    *rate = found > *rate ? found : *rate;
  }
  bench_figure(output, "read_gb_s", *rate / 1e9, "GB/s, the fastest loop of one core that only reads memory");
  return 0;
}
