#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
#
# usage: sh tests/torture.sh [MINUTES]
#
# The tests of durability, faults and hostile input for as long as asked (default 30 minutes), one after another, each
# its share. Builds build/ (release); the fuzz targets build themselves with clang. Ends with a table of what each did
# and found; what was lost or wrong makes the exit status 1, and its output is shown. COLDKV_TORTURE_PARTS="simdisk rot"
# runs only these.
set -eu

root=$(cd -- "$(dirname -- "$0")/.." && pwd)
cd "$root"

case ${1:-30} in
  *[!0-9]* | 0*)
    echo "usage: torture.sh [MINUTES]" >&2
    exit 2
    ;;
esac
minutes=${1:-30}

# What runs, as NAME:MESON-TEST:PER-CENT of the time; fuzz.sh is no test of meson's.
parts="simdisk:store/simdisk:22 strike:store/strike:6 inject:inject:10 sigkill:sigkill:18 powercut:powercut:6
  rot:store/rot:12 client:torture_client:8 alloc:alloc:5 abusers:abusers:3 fuzz::10"

sh tools/install-deps.sh tests
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

if ! { [ -f build/build.ninja ] || meson setup build --buildtype=release -Dtests=enabled; } >"$work/log" 2>&1 ||
  ! ninja -C build >"$work/log" 2>&1; then
  cat "$work/log"
  exit 1
fi

# Everything that test NAME of meson printed, last time.
test_output() {
  /usr/bin/python3 -c 'import json, sys
for line in open("build/meson-logs/testlog.json", encoding="utf-8", errors="replace"):
    test = json.loads(line)
    print(test.get("stdout") or "", test.get("stderr") or "", sep="\n")'
}

# run_part NAME MESON-TEST SECONDS: leaves its output in $work/NAME and one line in $work/table.
run_part() {
  echo "$1: $3 s ..." >&2
  status=0
  if [ -z "$2" ]; then
    COLDKV_TORTURE_SECONDS=$3 sh tests/fuzz/fuzz.sh >"$work/$1" 2>&1 || status=1
  else
    rm -f build/meson-logs/testlog.json
    COLDKV_TORTURE_SECONDS=$3 meson test -C build --no-rebuild -t 0 "$2" >"$work/$1.meson" 2>&1 || status=1
    if [ -f build/meson-logs/testlog.json ]; then
      test_output >"$work/$1"
    else
      mv "$work/$1.meson" "$work/$1"
      status=1
    fi
  fi
  figures=$(sed -n 's/^torture: [a-z]* *//p' "$work/$1" | tail -n 1)
  if [ $status -ne 0 ]; then
    failed=1
    echo "--- $1 failed:"
    tail -n 60 "$work/$1"
    figures="FAILED  $figures"
  elif [ -z "$figures" ]; then
    figures="skipped: $(grep -v '^ *$' "$work/$1" | tail -n 1)"
  fi
  printf '%-9s %5s s  %s\n' "$1" "$3" "$figures" >>"$work/table"
}

failed=0
: >"$work/table"
for part in $parts; do
  name=${part%%:*}
  share=${part##*:}
  test_name=${part#*:}
  test_name=${test_name%:*}
  case " ${COLDKV_TORTURE_PARTS:-$name} " in
    *" $name "*) run_part "$name" "$test_name" $((minutes * 60 * share / 100)) ;;
  esac
done

echo
echo "sh tests/torture.sh $minutes, at commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)," \
  "$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1), $(nproc) cores, Linux $(uname -r)"
echo
cat "$work/table"
exit $failed
