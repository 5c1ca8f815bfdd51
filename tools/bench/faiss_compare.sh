#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
#
# Finds the two FAISS that `coldkv-bench scan --against faiss` is measured against, installing what is missing: PyPI's
# faiss-cpu in a virtual environment in the user's cache directory, and Debian's python3-faiss. Prints a line for each,
# "pypi INTERPRETER" and "debian INTERPRETER", and says on the error stream what could not be had.
set -eu

cache="${XDG_CACHE_HOME:-$HOME/.cache}/coldkv"
environment="$cache/venv-faiss"
python=/usr/bin/python3

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  else
    sudo -n "$@"
  fi
}

install_packages() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >&2
}

has_faiss() {
  "$1" -c 'import faiss' >/dev/null 2>&1
}

make_environment() {
  "$python" -c 'import ensurepip' >/dev/null 2>&1 || install_packages python3-venv || return 1
  mkdir -p "$cache"
  "$python" -m venv "$environment" >&2 && "$environment/bin/python" -m pip install --quiet faiss-cpu >&2
}

if has_faiss "$environment/bin/python" || { make_environment && has_faiss "$environment/bin/python"; }; then
  echo "pypi $environment/bin/python"
else
  echo "faiss-cpu cannot be installed in $environment" >&2
fi
if has_faiss "$python" || { install_packages python3-faiss && has_faiss "$python"; }; then
  echo "debian $python"
else
  echo "python3-faiss cannot be installed" >&2
fi
