#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
#
# Builds the fuzz targets with clang in build-fuzz/ (libFuzzer, AddressSanitizer, UBSan) and runs each.
# COLDKV_TORTURE_SECONDS=N: that long in all (default: 3 seconds each); COLDKV_FUZZ_TARGETS="messages log": only these.
# Prints one line "ok - fuzz TARGET: ..." each, "not ok" for one that found something (build-fuzz/found/ has the input),
# or "skip - REASON"; the last line is "torture: fuzz messages=N crashes=N". The status is that of the findings.
set -eu
root=$(cd -- "$(dirname -- "$0")/../.." && pwd)
cd "$root"
build=build-fuzz

skip() {
  echo "skip - fuzz: $1"
  exit 0
}
command -v clang >/dev/null 2>&1 || skip "no clang"
trial=$(mktemp -d)
trap 'rm -rf "$trial"' EXIT
trap 'exit 130' INT TERM
echo 'int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return (int)(n * 0) + (d == 0) * 0; }' >"$trial/t.c"
clang -fsanitize=fuzzer,address,undefined "$trial/t.c" -o "$trial/t" >/dev/null 2>&1 || skip "clang without libFuzzer"

if [ ! -f $build/build.ninja ]; then
  CC=clang meson setup $build --buildtype=debugoptimized -Dfuzz=true -Db_sanitize=address,undefined -Db_lundef=false \
    -Dtests=disabled -Ddemo=disabled -Dcuda=disabled >"$trial/log" 2>&1 || { cat "$trial/log"; exit 1; }
fi
ninja -C $build fuzz_targets >"$trial/log" 2>&1 || { cat "$trial/log"; exit 1; }

targets=${COLDKV_FUZZ_TARGETS:-messages options log segment catalog map_file daemon client}
number=$(echo "$targets" | wc -w)
seconds=3
[ -z "${COLDKV_TORTURE_SECONDS:-}" ] || seconds=$((COLDKV_TORTURE_SECONDS / number))
[ "$seconds" -gt 0 ] || seconds=1

export ASAN_OPTIONS="halt_on_error=1:abort_on_error=1:detect_leaks=1:allocator_may_return_null=1"
export UBSAN_OPTIONS="halt_on_error=1:abort_on_error=1:print_stacktrace=1"
messages=0
crashes=0
mkdir -p $build/found $build/corpus
for target in $targets; do
  mkdir -p "$build/corpus/$target"
  status=0
  # What is learnt stays in build-fuzz/corpus. SIGTERM is what the daemon is stopped by.
  "$build/tests/fuzz/fuzz_$target" -max_total_time="$seconds" -timeout=60 -rss_limit_mb=2048 -malloc_limit_mb=256 \
    -handle_term=0 -print_final_stats=1 -artifact_prefix="$build/found/$target-" -dict=tests/fuzz/words.dict \
    "$build/corpus/$target" "tests/fuzz/corpus/$target" >"$trial/out" 2>&1 || status=$?
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$trial/out" | tail -n 1)
  messages=$((messages + ${runs:-0}))
  if [ "$status" -eq 0 ]; then
    echo "ok - fuzz $target: ${runs:-0} inputs in $seconds s"
  else
    crashes=$((crashes + 1))
    tail -n 40 "$trial/out"
    echo "not ok - fuzz $target: found something after ${runs:-an unknown number of} inputs, see $build/found"
  fi
done
echo "torture: fuzz messages=$messages crashes=$crashes"
[ "$crashes" -eq 0 ]
