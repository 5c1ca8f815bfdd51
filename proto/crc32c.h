// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78; RFC 3720 section 12.1).
#ifndef COLDKV_PROTO_CRC32C_H
#define COLDKV_PROTO_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* CRC of `size` bytes. Pass 0 to begin, or the CRC of the bytes before to go on: crc32c(crc32c(0, a), b) is the CRC of
 * a followed by b. crc32c(0, "123456789") = 0xe3069283. */
uint32_t crc32c(uint32_t crc, const void *data, size_t size);

/* The table-driven version that every machine has, for comparison in tests. */
uint32_t crc32c_portable(uint32_t crc, const void *data, size_t size);

#endif
