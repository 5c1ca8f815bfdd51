#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
#
# The house rules as a test, and clang-tidy over every C file: one line "ok - RULE", "not ok - RULE" or
# "skip - RULE: REASON" each, after what is wrong. Exit status 0 means no rule is broken. Set up build/ first: compiling
# options come from there, and the programs whose --help the man pages are held against.
#
# COLDKV_TIDY_SKIP=clang leaves clang-tidy out.
set -eu

root=$(cd -- "$(dirname -- "$0")/.." && pwd)
cd "$root"

status=0
/usr/bin/python3 tests/tidy.py || status=1

clang() {
  if ! command -v clang-tidy >/dev/null 2>&1; then
    echo "skip - clang-tidy: not installed"
    return 0
  fi
  if [ ! -f build/compile_commands.json ]; then
    echo "skip - clang-tidy: build/ is not set up"
    return 0
  fi
  # A file that passed is not looked at again until it, a header or the configuration changes.
  stamps=build/clang-tidy
  mkdir -p "$stamps"
  find . -path './build*' -prune -o -path ./.git -prune -o -name '*.h' -type f -print | LC_ALL=C sort |
    xargs cat .clang-tidy >"$stamps/common.tmp"
  common=$(cksum <"$stamps/common.tmp" | tr ' ' -)
  rm -f "$stamps/common.tmp"
  files=$(/usr/bin/python3 tests/tidy.py --compiled)
  if ! echo "$files" | xargs -P "$(getconf _NPROCESSORS_ONLN)" -n 1 sh tests/clang_tidy_file.sh "$stamps" "$common"
  then
    echo "not ok - clang-tidy"
    return 1
  fi
  echo "ok - clang-tidy"
}

[ "${COLDKV_TIDY_SKIP:-}" = clang ] || clang || status=1
exit $status
