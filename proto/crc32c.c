// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
#include "proto/crc32c.h"

#include <pthread.h>
#include <string.h>
#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__)
#include <arm_acle.h>
#endif

#include "proto/bytes.h"
#include "proto/cpu.h"

/* Eight tables: table[0] advances one byte, table[j] a byte that is followed by j zero bytes ("slicing by 8"). */
static uint32_t table[8][256];
static uint32_t (*crc_best)(uint32_t, const uint8_t *, size_t);
static pthread_once_t crc_once = PTHREAD_ONCE_INIT;

static uint32_t crc_tables(uint32_t crc, const uint8_t *p, size_t size) {
  for (; size >= 8; p += 8, size -= 8) {
    uint64_t v = load_u64(p) ^ crc;
    crc = 0;
    for (int i = 0; i < 8; i++)
      crc ^= table[7 - i][v >> (8 * i) & 255];
  }
  for (; size; p++, size--)
    crc = crc >> 8 ^ table[0][(crc ^ *p) & 255];
  return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc_hardware(uint32_t crc, const uint8_t *p, size_t size) {
  uint64_t wide = crc;
  for (; size >= 8; p += 8, size -= 8)
    wide = _mm_crc32_u64(wide, load_u64(p));
  crc = (uint32_t)wide;
  for (; size; p++, size--)
    crc = _mm_crc32_u8(crc, *p);
  return crc;
}
#define CRC_HARDWARE_FLAG CPU_SSE42
#elif defined(__aarch64__)
__attribute__((target("+crc"))) static uint32_t crc_hardware(uint32_t crc, const uint8_t *p, size_t size) {
  for (; size >= 8; p += 8, size -= 8)
    crc = __crc32cd(crc, load_u64(p));
  for (; size; p++, size--)
    crc = __crc32cb(crc, *p);
  return crc;
}
#define CRC_HARDWARE_FLAG CPU_ARM_CRC
#endif

static void crc_init(void) {
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; bit++)
      crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    table[0][i] = crc;
  }
  for (int j = 1; j < 8; j++)
    for (uint32_t i = 0; i < 256; i++)
      table[j][i] = table[j - 1][i] >> 8 ^ table[0][table[j - 1][i] & 255];
  crc_best = crc_tables;
#ifdef CRC_HARDWARE_FLAG
  if (cpu_flags() & CRC_HARDWARE_FLAG)
    crc_best = crc_hardware;
#endif
}

uint32_t crc32c(uint32_t crc, const void *data, size_t size) {
  pthread_once(&crc_once, crc_init);
  return ~crc_best(~crc, data, size);
}

uint32_t crc32c_portable(uint32_t crc, const void *data, size_t size) {
  pthread_once(&crc_once, crc_init);
  return ~crc_tables(~crc, data, size);
}
