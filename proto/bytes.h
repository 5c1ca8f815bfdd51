// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// Little-endian loads and stores at any alignment, and the fp16 conversions of the record.
#ifndef COLDKV_PROTO_BYTES_H
#define COLDKV_PROTO_BYTES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Formats and bulk arrays on the wire are little endian, and columns are used where they are mapped. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "coldkv needs a little-endian machine");

/* Bytes that somebody else owns. */
struct span {
  const uint8_t *data;
  size_t size;
};

static inline uint16_t load_u16(const uint8_t *p) {
  uint16_t v;
  memcpy(&v, p, sizeof v);
  return v;
}

static inline uint32_t load_u32(const uint8_t *p) {
  uint32_t v;
  memcpy(&v, p, sizeof v);
  return v;
}

static inline uint64_t load_u64(const uint8_t *p) {
  uint64_t v;
  memcpy(&v, p, sizeof v);
  return v;
}

static inline float load_f32(const uint8_t *p) {
  float v;
  memcpy(&v, p, sizeof v);
  return v;
}

static inline void store_u16(uint8_t *p, uint16_t v) { memcpy(p, &v, sizeof v); }
static inline void store_u32(uint8_t *p, uint32_t v) { memcpy(p, &v, sizeof v); }
static inline void store_u64(uint8_t *p, uint64_t v) { memcpy(p, &v, sizeof v); }

/* IEEE 754 binary16 to binary32; exact, infinities and NaN included. */
static inline float f32_from_f16(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
  uint32_t exponent = (h >> 10) & 31u;
  uint32_t fraction = h & 0x3ffu;
  uint32_t bits;
  if (exponent == 31)
    bits = sign | 0x7f800000u | fraction << 13;
  else if (exponent)
    bits = sign | (exponent + 112) << 23 | fraction << 13;
  else {
    float subnormal = (float)fraction * 0x1p-24f;
    memcpy(&bits, &subnormal, sizeof bits);
    bits |= sign;
  }
  float v;
  memcpy(&v, &bits, sizeof v);
  return v;
}

/* IEEE 754 binary32 to binary16, round to nearest even; too large becomes infinity, NaN stays NaN. */
static inline uint16_t f16_from_f32(float v) {
  uint32_t bits;
  memcpy(&bits, &v, sizeof bits);
  uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u)
    return sign | 0x7e00u;
  if (magnitude >= 0x47800000u) /* 65536 */
    return sign | 0x7c00u;
  if (magnitude < 0x38800000u) { /* below 2^-14: subnormal; adding 0.5 rounds at 2^-24 in the fraction */
    float rounded;
    memcpy(&rounded, &magnitude, sizeof rounded);
    rounded += 0.5f;
    uint32_t r;
    memcpy(&r, &rounded, sizeof r);
    return sign | (uint16_t)(r - 0x3f000000u);
  }
  uint32_t half = magnitude - 0x38000000u;
  return sign | (uint16_t)((half + 0xfffu + (half >> 13 & 1u)) >> 13);
}

#endif
