#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
#
# usage: old_x86.sh PROGRAM...: runs test programs on an emulated x86-64 processor of 2008, without AVX, where every
# instruction that it lacks ends the program, and on one of 2013 with AVX2 and no AVX-512.
# Exit status 77 (skipped) on other machines and where qemu is missing: apt-get install qemu-user
set -eu
if [ "$(uname -m)" != x86_64 ] || ! command -v qemu-x86_64 >/dev/null; then
  echo "skipped: no qemu-x86_64 here, or not an x86-64 machine"
  exit 77
fi
output=$(mktemp)
trap 'rm -f "$output"' EXIT
for cpu in Nehalem Haswell; do
  for program; do
    status=0
    qemu-x86_64 -cpu "$cpu" "$program" >"$output" 2>&1 || status=$?
    echo "$cpu: ${program##*/}: $(tail -n 1 "$output")"
    [ "$status" -eq 0 ] || exit 1
  done
done
