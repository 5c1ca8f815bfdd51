#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
#
# Installs what is missing to build coldkv on Debian 12: `install-deps.sh demo` for the programs and the demo,
# `install-deps.sh tests` for the tests too, `install-deps.sh engines` for those with COLDKV_ENGINES=1 as well. Looks
# first, and calls apt only when something is missing.
set -eu

usage() {
  echo "usage: install-deps.sh demo|tests|engines" >&2
  exit 2
}

missing=""
PATH="$PATH:/usr/sbin:/sbin" # where Debian keeps mkfs

# want_command NAME PACKAGE, want_library PKG-CONFIG-NAME PACKAGE
want_command() {
  command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
want_library() {
  pkg-config --exists "$1" >/dev/null 2>&1 || missing="$missing $2"
}

# The linker and the C library's headers, not only the compiler.
want_compiler() {
  trial=$(mktemp -d)
  if ! printf '#include <stdio.h>\nint main(void) { return puts("") < 0; }\n' |
    cc -x c -o "$trial/trial" - >/dev/null 2>&1; then
    missing="$missing gcc libc6-dev"
  fi
  rm -rf "$trial"
}

want_python() {
  /usr/bin/python3 -c "import $1" >/dev/null 2>&1 || missing="$missing $2"
}

# clang's libFuzzer and sanitizers come in a package of their own, which clang only recommends on some mirrors.
want_fuzzer() {
  [ -n "$(find /usr/lib/llvm-*/lib/clang -name 'libclang_rt.fuzzer-*.a' 2>/dev/null)" ] ||
    missing="$missing libclang-rt-14-dev"
}

look() {
  missing=""
  want_command meson meson
  want_command ninja ninja-build
  want_command pkg-config pkg-config
  want_compiler
  want_library libuv libuv1-dev
  want_library lmdb liblmdb-dev
  want_library liburing liburing-dev
  want_library msgpack libmsgpack-dev
  want_library openblas libopenblas-dev
  [ "$1" != demo ] || return 0
  want_library cmocka libcmocka-dev
  want_command clang-tidy clang-tidy
  want_command clang clang
  want_fuzzer
  want_command strace strace
  want_command mkfs.ext4 e2fsprogs
  want_command mkfs.xfs xfsprogs
  want_command qemu-x86_64 qemu-user
  want_command aarch64-linux-gnu-gcc "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
  want_python msgpack python3-msgpack
  want_python numpy python3-numpy
  want_python pytest python3-pytest
  want_command g++ g++
  [ "$1" = engines ] || return 0
  want_python ensurepip python3-venv
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  else
    sudo "$@"
  fi
}

install() {
  # shellcheck disable=SC2086  # a list of words
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing
}

[ $# -eq 1 ] || usage
case $1 in
  demo | tests | engines) ;;
  *) usage ;;
esac

look "$1"
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null 2>&1; then
  echo "install-deps: missing, and no apt-get to install it with:$missing" >&2
  exit 1
fi
if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null 2>&1; then
  echo "install-deps: run as root:  apt-get install$missing" >&2
  exit 1
fi
echo "install-deps: installing$missing" >&2
# A machine that never listed its packages needs the list first.
install >&2 || { as_root apt-get update >&2 && install >&2; }
look "$1"
if [ -n "$missing" ]; then
  echo "install-deps: still missing:$missing" >&2
  exit 1
fi
