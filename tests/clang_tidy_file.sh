#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
#
# clang_tidy_file.sh STAMPS COMMON FILE: runs clang-tidy over one file, unless STAMPS says that it passed as it is now.
set -eu
stamps=$1 common=$2 file=$3
stamp="$stamps/$(echo "$file" | tr / _).$common.$(cksum <"$file" | tr ' ' -)"
[ ! -f "$stamp" ] || exit 0
# The compiler's warnings are the build's; another compiler's opinion of its flags is no error here.
set -- --extra-arg=-Wno-error --extra-arg=-Wno-unknown-warning-option
case $file in
  # defines what analyzer.h wraps
  proto/error.c) ;;
  # cmocka's assertions do not tell the analyzer that they do not return
  tests/*) set -- "$@" '--checks=-clang-analyzer-*,-cert-*' ;;
  *) set -- "$@" --extra-arg=-include --extra-arg="$PWD/tests/analyzer.h" ;;
esac
if output=$(clang-tidy -p build --quiet "$@" "$file" 2>&1); then
  rm -f "$stamps/$(echo "$file" | tr / _)".*
  : >"$stamp"
else
  echo "$output" |
    grep -v -e 'warnings\{0,1\} .*generated' -e '^Error while processing' -e '^Suppressed' -e '^Use -header-filter'
  exit 1
fi
