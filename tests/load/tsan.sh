#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
#
# Builds daemon and library with ThreadSanitizer in build-tsan/ and runs both under a load of many clients for
# COLDKV_TORTURE_SECONDS (default 8). Prints "ok - tsan: ...", "not ok - tsan: ..." after what was found, or
# "skip - tsan: REASON".
set -eu
root=$(cd -- "$(dirname -- "$0")/../.." && pwd)
cd "$root"
build=build-tsan
seconds=${COLDKV_TORTURE_SECONDS:-8}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
trap 'exit 130' INT TERM
if ! echo 'int main(void) { return 0; }' | cc -fsanitize=thread -x c -o "$log" - 2>/dev/null || ! "$log"; then
  echo "skip - tsan: this compiler and machine have no ThreadSanitizer"
  exit 0
fi
rm -f "$log"
if [ ! -f $build/build.ninja ]; then
  meson setup $build --buildtype=debugoptimized -Db_sanitize=thread -Db_lundef=false -Dtests=disabled -Ddemo=disabled \
    -Dcuda=disabled \
    >"$log" 2>&1 || { cat "$log"; exit 1; }
fi
ninja -C $build daemon/coldkvd tests/load/load >"$log" 2>&1 || { cat "$log"; exit 1; }

status=0
TSAN_OPTIONS="exitcode=66:suppressions=$root/tests/load/tsan.supp:second_deadlock_stack=1" \
  $build/tests/load/load $build/daemon/coldkvd "$seconds" >"$log" 2>&1 || status=$?
if [ "$status" -ne 0 ] || grep -q 'WARNING: ThreadSanitizer' "$log"; then
  head -n 200 "$log"
  echo "not ok - tsan: status $status, $(grep -c 'WARNING: ThreadSanitizer' "$log" || true) reports"
  exit 1
fi
echo "ok - tsan: $(tail -n 1 "$log") in $seconds s"
