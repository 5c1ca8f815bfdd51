#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
#
# Makes the virtual environment of the engine tests, once for a machine and a requirements.txt, and prints its folder:
#     "$(sh tests/engines/venv.sh)"/bin/python
# It lies outside the build tree, in $COLDKV_ENGINES_VENV or else in the user's cache, because it takes minutes to make.
# PYTHON names the interpreter (python3). What pip says goes to standard error.
set -eu

fail() {
  echo "engine tests: $1 failed, see above; what is in $venv is made anew next time" >&2
  exit 1
}

here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
version=$("$python" -c 'import sys; print(sys.version)')
hash=$({ printf '%s\n' "$version"; cat "$here/requirements.txt"; } | sha256sum | cut -c 1-16)
venv=${COLDKV_ENGINES_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/coldkv/engines-$hash}

mkdir -p "$(dirname "$venv")"
exec 9> "$venv.lock"
flock 9
if [ "$(cat "$venv/coldkv-requirements" 2> /dev/null || true)" != "$hash" ]; then
  "$python" -m venv --clear "$venv" >&2 || fail "making a virtual environment (Debian: python3-venv)"
  torch=$(grep '^torch==' "$here/requirements.txt")
  "$venv/bin/pip" install --disable-pip-version-check --quiet "$torch" >&2 || fail "installing $torch from PyPI"
  # llama-cpp-python is built here, for minutes: leave out what the tests do not need.
  CMAKE_ARGS="-DLLAVA_BUILD=OFF -DGGML_OPENMP=OFF -DLLAMA_OPENSSL=OFF" \
    "$venv/bin/pip" install --disable-pip-version-check --quiet -r "$here/requirements.txt" >&2 ||
    fail "installing the packages of tests/engines/requirements.txt from PyPI"
  printf '%s\n' "$hash" > "$venv/coldkv-requirements"
fi
printf '%s\n' "$venv"
