// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// What a conversation on a GPU costs there: encoding what leaves the hot window, and attention.
#ifndef COLDKV_TOOLS_BENCH_DEVICE_H
#define COLDKV_TOOLS_BENCH_DEVICE_H

#include "tools/bench/bench.h"

/* Prints the figures; read_rate: bytes per second that the device's memory is read at. */
int bench_device(bool quick, double read_rate, struct bench_output *output, struct error *error);

#endif
