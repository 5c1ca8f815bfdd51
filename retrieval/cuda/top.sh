#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
#
# usage: top.sh NVCC: prints the folder of the CUDA Toolkit that this nvcc, which may be a script, is of.
set -eu
"$1" --dryrun -x cu -c /dev/null -o /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p'
