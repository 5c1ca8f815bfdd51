#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
#
# Every test there is: builds build/ (release) and build-asan/ (AddressSanitizer and UndefinedBehaviorSanitizer), runs
# meson's tests in both, the fuzz targets for a few seconds each (build-fuzz/), many clients under ThreadSanitizer
# (build-tsan/) and the house rules, and ends with "N passed, N failed, N skipped". Exit status 0
# means none failed. With COLDKV_WERROR=1 warnings are errors. With COLDKV_ENGINES=1 the tests of inference engines run
# too; otherwise they are skipped, for they need packages from PyPI that take minutes to install, once for a machine.
set -eu

root=$(cd -- "$(dirname -- "$0")/.." && pwd)
cd "$root"

engines=${COLDKV_ENGINES:-0}
if [ "$engines" = 1 ]; then
  sh tools/install-deps.sh engines
else
  sh tools/install-deps.sh tests
fi

werror=false
[ "${COLDKV_WERROR:-0}" = 0 ] || werror=true
summary="/usr/bin/python3 tests/summary.py"

# A sanitizer's finding must end the test, and with a status that is no skip.
export ASAN_OPTIONS="${ASAN_OPTIONS:-halt_on_error=1:abort_on_error=1:detect_leaks=1:strict_string_checks=1}"
export UBSAN_OPTIONS="${UBSAN_OPTIONS:-halt_on_error=1:abort_on_error=1:print_stacktrace=1}"

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
trap 'exit 130' INT TERM

# setup DIR OPTIONS...: configures a build directory, again if it exists, since packages may have come since.
setup() {
  directory=$1
  shift
  again=""
  [ ! -f "$directory/build.ninja" ] || again=--reconfigure
  # shellcheck disable=SC2086  # no word when empty
  if ! meson setup $again "$directory" "$@" -Dwerror=$werror -Dtests=enabled -Ddemo=enabled -Dpython=enabled \
    >"$results/setup.log" 2>&1; then
    cat "$results/setup.log"
    return 1
  fi
}

# build DIR: quiet while all is well.
build() {
  if ! ninja -C "$1" >"$results/build.log" 2>&1; then
    grep -v '^\[[0-9]*/[0-9]*\] [^F]' "$results/build.log" || true
    return 1
  fi
  grep -A4 'warning:' "$results/build.log" || true
}

# suite DIR MULTIPLIER: one build directory, from configuration to counted results.
suite() {
  directory=$1
  multiplier=$2
  shift 2
  echo "== $directory: building"
  if ! setup "$directory" "$@" || ! build "$directory"; then
    $summary --failed "$directory: does not build" >>"$results/counts"
    return 0
  fi
  echo "== $directory: testing"
  rm -f "$directory/meson-logs/testlog.json"
  meson test -C "$directory" --no-rebuild --timeout-multiplier "$multiplier" >"$results/test.log" 2>&1 || true
  if [ -f "$directory/meson-logs/testlog.json" ]; then
    $summary --meson "$directory" >>"$results/counts"
  else
    cat "$results/test.log"
    $summary --failed "$directory: meson test did not run" >>"$results/counts"
  fi
}

# Before any test's time limit runs. Who asks for these tests is told when they cannot run, not that they are skipped.
if [ "$engines" = 1 ]; then
  echo "== engines: virtual environment"
  if ! sh tests/engines/venv.sh >"$results/venv.log" 2>&1; then
    tail -n 40 "$results/venv.log"
    $summary --failed "engine tests: their packages cannot be installed, so none of them ran" >>"$results/counts"
    export COLDKV_ENGINES=0
  fi
fi

suite build 1 --buildtype=release
suite build-asan 5 --buildtype=debugoptimized -Db_sanitize=address,undefined -Db_lundef=false -Dcuda=disabled

echo "== fuzz targets"
sh tests/fuzz/fuzz.sh >"$results/fuzz.log" 2>&1 || true
grep -v '^torture: ' "$results/fuzz.log" >"$results/fuzz.lines" || true
$summary --lines "$results/fuzz.lines" >>"$results/counts"

echo "== many clients under ThreadSanitizer"
sh tests/load/tsan.sh >"$results/tsan.log" 2>&1 || true
$summary --lines "$results/tsan.log" >>"$results/counts"

echo "== house rules"
sh tests/tidy.sh >"$results/tidy.log" 2>&1 || true
$summary --lines "$results/tidy.log" >>"$results/counts"

$summary --total "$results/counts"
