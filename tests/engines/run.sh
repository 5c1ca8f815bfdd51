#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
#
# Engine tests in the virtual environment of venv.sh: run.sh PYTEST-ARGUMENT...
# Skips unless COLDKV_ENGINES=1, because that environment takes minutes and gigabytes to make.
set -eu

if [ "${COLDKV_ENGINES:-}" != 1 ]; then
  echo "COLDKV_ENGINES=1 runs it, in a virtual environment with PyTorch and transformers that is made once"
  exit 77
fi
venv=$(sh "$(dirname "$0")/venv.sh")
PYTHONDONTWRITEBYTECODE=1 exec "$venv/bin/python" -m pytest -q -rs -p no:cacheprovider "$@"
