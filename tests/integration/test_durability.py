#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""The daemon's options that say when tokens reach the disk and leave memory, and its check of both. Usage:
test_durability.py COLDKVD [TEST ...]"""
import os
import struct
import time

import numpy as np

from coldkv_protocol import RECORD_BYTES
from coldkv_testcase import WithDaemon, main


class Durability(WithDaemon):
    options = ("--durability", "none")

    def test_sync_on_request(self):
        handle = self.ready()
        self.assertEqual(self.append(handle, 0, 3)[2], {"stored": 3, "durable": 0})
        self.assertEqual(self.append(handle, 3, 1, sync=True)[2], {"stored": 4, "durable": 4})
        answer = self.client.call("conversation.append", conversation=handle, first=4, sync=True)
        self.assertEqual(answer, {"stored": 4, "durable": 4})


class Interval(WithDaemon):
    options = ("--durability", "interval", "--interval-ms", "50")

    def test_syncs_by_itself(self):
        handle = self.ready()
        self.assertEqual(self.append(handle, 0, 3)[2]["stored"], 3)
        for _ in range(200):
            if self.client.call("conversation.info", name="c")["durable"] == 3:
                return
            time.sleep(0.02)
        self.fail("not synced within seconds")


class SmallTails(WithDaemon):
    options = ("--tail-memory-mb", "1")

    def test_idle_tails_leave_and_come_back(self):
        handles = {}
        kept = {}
        for name in ("a", "b", "c"):
            handles[name] = self.ready(name)
            kept[name] = self.append(handles[name], 0, 20)[1]
        self.assertLess(self.client.call("stats")["tail_bytes"], 3 * 4 * 104 * 4096)
        for name in ("a", "b", "c", "a"):
            got = self.client.call("conversation.read", conversation=handles[name], layer=0, head=0, first=0, count=20)
            whole = np.frombuffer(kept[name], np.uint8).reshape(20, 2, 2, RECORD_BYTES)
            self.assertEqual(got["records"], whole[:, 0, 0].tobytes())
            self.append(handles[name], 20 if name != "a" or len(kept[name]) == 20 * 4 * 104 else 21, 0)


class Verify(WithDaemon):
    def ended(self, client):
        for _ in range(500):
            time.sleep(0.02)
            answer = client.call("verify")
            if not answer.get("running"):
                return answer
        return self.fail("verify does not end")

    def verify(self, client):
        self.assertTrue(client.call("verify").get("running"))
        return self.ended(client)

    def rot(self):
        path = next(os.path.join(where, name) for where, _, names in os.walk(self.daemon.data) for name in names
                    if name.startswith("log-"))
        with open(path, "r+b") as file:
            file.seek(5000)
            byte = file.read(1)
            file.seek(5000)
            file.write(bytes([byte[0] ^ 1]))

    def test_finds_a_flipped_bit(self):
        handle = self.ready()
        self.append(handle, 0, 50)
        self.append(handle, 50, 50)
        self.assertEqual(self.verify(self.client)["bad"], 0)
        self.rot()
        answer = self.verify(self.client)
        self.assertGreater(answer["bad"], 0)
        self.assertIn("log-", answer["problems"][0]["path"])

    def test_what_nobody_waited_for_is_not_told_later(self):
        handle = self.ready()
        self.append(handle, 0, 50)
        self.append(handle, 50, 50)
        gone = self.connect()
        self.assertTrue(gone.call("verify").get("running"))
        gone.close()
        time.sleep(0.5)  # it has ended by now; if not, the next hears of it and waits for it
        self.rot()
        self.assertGreater(self.verify(self.connect())["bad"], 0)


if __name__ == "__main__":
    main()
