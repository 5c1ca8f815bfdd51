#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
#
# exports.sh LIBRARY HEADER: the library exports every function that the header declares, and nothing else.
set -eu
exported=$(nm -D --defined-only "$1" | awk '$2 == "T" { sub("@.*", "", $3); print $3 }' | sort)
others=$(nm -D --defined-only "$1" | awk '$2 != "T" && $3 !~ /^COLDKV_[0-9]+$/ { print $3 }')
declared=$(sed -n 's/^COLDKV_API.*[ *]\(coldkv_[a-z_]*\)(.*/\1/p' "$2" | sort)
if [ -z "$declared" ] || [ "$exported" != "$declared" ] || [ -n "$others" ]; then
  echo "declared:" $declared
  echo "exported:" $exported
  echo "others:" $others
  exit 1
fi
