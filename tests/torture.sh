#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
#
# usage: sh tests/torture.sh [MINUTES]
#
# The tests of durability, faults and hostile input for as long as asked (default 30 minutes): the simulated disk most
# of the time, others beside it one after another, each its share, and at the end what measures times alone. Builds
# build/ (release); the fuzz targets build themselves with clang. Ends with a table of what each did and found; what was
# lost or wrong makes the exit status 1, and its output is shown. COLDKV_TORTURE_PARTS="simdisk rot" runs only these.
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
beside="simdisk:store/simdisk:95"
parts="strike:store/strike:8 inject:inject:13 sigkill:sigkill:25 powercut:powercut:8 rot:store/rot:14
  client:torture_client:10 alloc:alloc:5 fuzz::12"
alone="abusers:abusers:3"

sh tools/install-deps.sh tests
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

if ! { [ -f build/build.ninja ] || meson setup build --buildtype=release -Dtests=enabled; } >"$work/log" 2>&1 ||
  ! ninja -C build >"$work/log" 2>&1; then
  cat "$work/log"
  exit 1
fi

# test_output LOG: everything that the tests of this log of meson's printed.
test_output() {
  /usr/bin/python3 -c 'import json, sys
for line in open(sys.argv[1], encoding="utf-8", errors="replace"):
    test = json.loads(line)
    print(test.get("stdout") or "", test.get("stderr") or "", sep="\n")' "$1"
}

# run_part NAME MESON-TEST SECONDS: leaves its output in $work/NAME and a line in $work/NAME.line; $work/failed exists
# when one failed.
run_part() {
  echo "$1: $3 s ..." >&2
  status=0
  if [ -z "$2" ]; then
    COLDKV_TORTURE_SECONDS=$3 sh tests/fuzz/fuzz.sh >"$work/$1" 2>&1 || status=1
  else
    rm -f "build/meson-logs/torture-$1.json"
    COLDKV_TORTURE_SECONDS=$3 meson test -C build --no-rebuild -t 0 --logbase "torture-$1" "$2" \
      >"$work/$1.meson" 2>&1 || status=1
    if ! test_output "build/meson-logs/torture-$1.json" >"$work/$1" 2>/dev/null; then
      mv "$work/$1.meson" "$work/$1"
      status=1
    fi
  fi
  figures=$(sed -n 's/^torture: [a-z]* *//p' "$work/$1" | tail -n 1)
  if [ $status -ne 0 ]; then
    : >"$work/failed"
    echo "--- $1 failed:"
    tail -n 60 "$work/$1"
    figures="FAILED  $figures"
  elif [ -z "$figures" ]; then
    figures="skipped: $(sed '/^ *$/d' "$work/$1" | tail -n 1)"
  fi
  printf '%-9s %5s s  %s\n' "$1" "$3" "$figures" >"$work/$1.line"
}

# run PART...: those that are asked for.
run() {
  for part; do
    name=${part%%:*}
    test_name=${part#*:}
    case " ${COLDKV_TORTURE_PARTS:-$name} " in
      *" $name "*) run_part "$name" "${test_name%:*}" $((minutes * 60 * ${part##*:} / 100)) ;;
    esac
  done
}

# shellcheck disable=SC2086  # lists of words
run $beside &
# shellcheck disable=SC2086
run $parts
wait
# shellcheck disable=SC2086
run $alone

echo
echo "sh tests/torture.sh $minutes, at commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)," \
  "$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1), $(nproc) cores, Linux $(uname -r)"
echo
for part in $beside $parts $alone; do
  [ ! -f "$work/${part%%:*}.line" ] || cat "$work/${part%%:*}.line"
done
[ ! -f "$work/failed" ]
