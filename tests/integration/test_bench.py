#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Every command of coldkv-bench runs and prints the figures that the documentation names.

What the figures are is not tested: that depends on the machine and on who else uses it. Usage: test_bench.py
COLDKV-BENCH COLDKVD COMMAND"""
import json
import os
import subprocess
import sys

# By command: figures that must be positive numbers.
FIGURES = {
    "scan": ["signatures", "weighted_bytes", "read_gb_s", "hamming_over_read", "weighted_over_read", "rows8_over_1",
             "lookup_over_scan"],
    "lookup": [f"lookup_{tokens}_{what}" for tokens in (4096, 16384, 65536)
               for what in ("p50_us", "p99_us", "here_us")],
    "codec": ["encode_over_ref", "decode_over_ref", "encode_d128_per_s", "encode_d80_per_s"],
    "append": [f"append{tokens}_{shape}_{what}" for tokens in (1, 64) for shape in ("tiny", "8b")
               for what in ("tokens_per_s", "mb_per_s", "p50_ms", "p99_ms")],
    "fetch": ["candidates", "batched_over_faults", "faults_pages_per_s", "batched_pages_per_s"],
    "recall": ["recall_4096", "recall_4096_hamming", "recall_4096_weighted_c256", "recall_4096_rows"],
}
# Figures that are null where the machine cannot show them: one processor, no io_uring or no O_DIRECT.
MAY_BE_NULL = {"scan": ["threads2_over_1"], "fetch": ["batched_over_direct"]}


def main():
    program, daemon, command = sys.argv[1:]
    answer = subprocess.run([program, command, "--quick", "--json", "--coldkvd", daemon], stdout=subprocess.PIPE,
                            text=True, check=False)
    assert answer.returncode == 0, answer
    figures = json.loads(answer.stdout)
    assert figures["command"] == command and figures["machine"], figures
    assert figures["kernel"] and (command == "recall" or figures["read_gb_s"] > 0), figures
    for name in FIGURES[command]:
        assert isinstance(figures[name], (int, float)) and figures[name] > 0, (name, figures[name])
    for name in MAY_BE_NULL.get(command, []):
        assert figures[name] is None or figures[name] > 0, (name, figures[name])
    if command == "lookup":
        assert figures["protocol_share"] < 1, figures["protocol_share"]
        assert all(figures[f"lookup_{n}_p99_us"] >= figures[f"lookup_{n}_p50_us"] for n in (4096, 16384, 65536))
    if command == "recall":  # a lookup that finds what it should, on real keys: far above chance, which is 0.02
        assert 0.9 < figures["recall_4096"] < 1.1, figures["recall_4096"]
    if command == "codec" and figures["kernel"] != "c" and "COLDKV_CPU_MASK" not in os.environ:
        assert figures["encode_over_ref"] > 1, figures["encode_over_ref"]


main()
