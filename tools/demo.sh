#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
#
# Installs what is missing, builds, and runs the demo; arguments go to coldkv-demo (see `tools/demo.sh --help`).
set -eu

root=$(cd -- "$(dirname -- "$0")/.." && pwd)
cd "$root"

sh tools/install-deps.sh demo

# Quiet while all is well; the whole log when it is not.
quietly() {
  mkdir -p build
  if ! "$@" >build/demo-build.log 2>&1; then
    cat build/demo-build.log >&2
    echo "demo.sh: '$*' failed; its output stands above" >&2
    exit 1
  fi
}

[ ! -t 2 ] || echo "building in $root/build ..." >&2
[ -f build/build.ninja ] || quietly meson setup build --buildtype=release
quietly ninja -C build
if [ ! -x build/tools/demo/coldkv-demo ]; then
  # build/ was set up while the BLAS was missing
  quietly meson setup --reconfigure -Ddemo=enabled build
  quietly ninja -C build
fi
exec build/tools/demo/coldkv-demo "$@"
