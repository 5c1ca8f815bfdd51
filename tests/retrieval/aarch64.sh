#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
#
# Builds the kernels for aarch64 and checks them under qemu: NEON against plain C.
# Exit status 77 (skipped) where the cross compiler or qemu is missing:
#   apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
set -eu
cd "$(dirname "$0")/../.."
if ! command -v aarch64-linux-gnu-gcc >/dev/null || ! command -v qemu-aarch64 >/dev/null; then
  echo "skipped: no aarch64 cross compiler or no qemu here"
  exit 77
fi
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
# msgpack.h has nothing of the processor in it, so the host's will do
cflags='-std=gnu11 -O2 -D_GNU_SOURCE -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra -Werror
  -Wno-format-truncation -I. -idirafter /usr/include'
proto='proto/codebook.c proto/cpu.c proto/crc32c.c proto/error.c proto/record.c'
# shellcheck disable=SC2086 # lists of words
aarch64-linux-gnu-gcc $cflags -static -o "$out/checkkernels" tests/retrieval/check*.c retrieval/*.c client/codec.c \
  client/kernels/codec_*.c $proto -lm -lpthread
qemu-aarch64 "$out/checkkernels"
