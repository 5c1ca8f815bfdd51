#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""A durable append is at most two writes and one fdatasync, in the order write, fdatasync, answer, however many layers.

Watches the daemon's system calls with strace; skipped where that is not allowed. Usage: test_strace.py COLDKVD"""
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import time

from coldkv_protocol import Client, Daemon, geometry, model, tokens

SKIPPED = 77


def main():
    if not shutil.which("strace") or subprocess.run(["strace", "-f", "true"], capture_output=True,
                                                    check=False).returncode:
        print("skipped: strace is missing or not permitted here")
        return SKIPPED
    daemon = Daemon(sys.argv[1])
    try:
        client = Client(daemon.socket)
        shape = geometry(layers=12, kv_heads=4)
        frozen = client.call("model.calibrate", **model(bytes(32), shape))
        handle = client.call("conversation.open", name="c", fingerprint=bytes(32), geometry=shape, create=True,
                             write=True, model=frozen["id"])["conversation"]
        rng = random.Random(3)

        def append(first):
            ids, records = tokens(rng, shape, first, 1)
            answer = client.call("conversation.append", conversation=handle, first=first, ids=ids, records=records,
                                 ahead=struct.pack("<I", 5))
            assert answer == {"stored": first + 1, "durable": first + 1}, answer

        append(0)  # makes the log
        trace = os.path.join(daemon.dir, "trace")
        watcher = subprocess.Popen(["strace", "-f", "-y", "-o", trace, "-p", str(daemon.process.pid)],
                                   stderr=subprocess.PIPE, text=True)
        watcher.stderr.readline()
        time.sleep(0.3)
        append(1)
        time.sleep(0.3)
        watcher.terminate()
        watcher.wait()
        with open(trace, encoding="utf-8") as file:
            lines = file.read().splitlines()
    finally:
        daemon.finish()
    calls = []
    for line in lines:
        match = re.match(r"\d+\s+(pwritev2?|pwrite64|writev?|sendmsg|fdatasync|fsync|ftruncate|sync_file_range|msync)"
                         r"\((\d+)<([^>]*)>", line)
        if match and ("log-" in match[3] or "socket" in match[3] or "/data/" in match[3]):
            calls.append((match[1], "log" if "log-" in match[3] else "socket" if "socket" in match[3] else match[3]))
    print(calls)
    writes = [call for call, where in calls if where == "log" and "write" in call]
    syncs = [call for call, where in calls if "sync" in call]
    assert 1 <= len(writes) <= 2, calls
    assert syncs == ["fdatasync"], calls
    assert [where for _, where in calls if where not in ("log", "socket")] == [], calls
    order = ["fdatasync" if "sync" in call else where for call, where in calls]
    assert order == ["log"] * len(writes) + ["fdatasync", "socket"], order
    return 0


if __name__ == "__main__":
    sys.exit(main())
