# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Rot under a running daemon: the scrub finds it, status names it, the rest goes on serving, and repair mends it."""
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import unittest

from coldkv_protocol import Client, Daemon, RpcError, geometry

PAGE = 4096
TOKENS, SEALED = 4796, 4096  # what make_archive makes of "diary"
LAYERS, HEADS, DIM = 3, 2, 64
BLOCKS = LAYERS * HEADS
SCAN = 1 + 1 + 4  # pages before the scan region: header, table, ids
FINGERPRINT = bytes([7]) + bytes(31)


def find(base, what):
    found = [os.path.join(d, f) for d, _, files in os.walk(base) for f in files if what(os.path.join(d, f))]
    assert len(found) == 1, found
    return found[0]


class TestRot(unittest.TestCase):
    def setUp(self):
        self.daemon = Daemon(COLDKVD, "--scrub-mb-s", "200", "--scrub-pause-s", "1")
        self.addCleanup(self.daemon.finish)
        self.daemon.stop()
        shutil.rmtree(self.daemon.data)
        subprocess.run([MAKE_ARCHIVE, self.daemon.data], check=True, stdout=subprocess.DEVNULL)
        self.segment = find(self.daemon.data, lambda p: p.endswith(".seg"))
        self.log = find(self.daemon.data, lambda p: p.endswith("log-00000000000000004096"))

    def flip(self, path, offset, bit=3):
        with open(path, "r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1 << bit]))

    def coldkv(self, *arguments, status=0):
        done = subprocess.run([COLDKV, *arguments, "--json"], capture_output=True, check=False)
        self.assertEqual(done.returncode, status, (arguments, done.stdout, done.stderr))
        return json.loads(done.stdout)

    def status(self, status=0):
        return self.coldkv("status", "--socket", self.daemon.socket, status=status)

    def wait_for(self, what, condition, seconds=20):
        end = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), end, what)
            time.sleep(0.1)

    def damage(self):
        done = subprocess.run([COLDKV, "status", "--json", "--socket", self.daemon.socket], capture_output=True,
                              check=False)
        return json.loads(done.stdout)["damage"]

    def cycles(self):
        done = subprocess.run([COLDKV, "status", "--json", "--socket", self.daemon.socket], capture_output=True,
                              check=False)
        return json.loads(done.stdout)["scrub_cycles"]

    def open(self, client, name="diary", **more):
        shape = geometry(layers=LAYERS, kv_heads=HEADS, group=2, head_dim=DIM, window=512)
        return client.call("conversation.open", name=name, fingerprint=FINGERPRINT, geometry=shape, **more)

    def lookup(self, client, handle, layer, **more):
        queries = struct.pack(f"<{HEADS * 128}f", *[((i * 37) % 41) - 20 for i in range(HEADS * 128)])
        return client.call("conversation.lookup", conversation=handle, layer=layer, rows=1, queries=queries, k=8,
                           **more)

    def test_scrub_finds_a_bit_in_a_cold_segment(self):
        self.daemon.start()
        self.wait_for("a first cycle", lambda: self.cycles() >= 1)
        self.assertEqual(self.status()["damage"], [])
        page = SCAN + 18 * BLOCKS + 32 * BLOCKS + 5  # v_code of layer 0, head 0
        self.flip(self.segment, page * PAGE + 100)
        self.wait_for("the flipped bit", self.damage)
        found = self.status(status=1)["damage"][0]
        self.assertEqual(found["conversation"], "diary")
        self.assertEqual(found["page"], page)
        self.assertEqual(os.path.join(self.daemon.data, found["path"]), self.segment)
        token = 5 * PAGE // 48
        self.assertEqual((found["first"], found["count"]), (token, -(-6 * PAGE // 48) - token))
        self.flip(self.segment, page * PAGE + 100)
        self.wait_for("the end of the damage", lambda: not self.damage())
        client = Client(self.daemon.socket)
        self.addCleanup(client.close)
        stats = client.call("stats")
        self.assertEqual(stats["damaged"], 0)
        self.assertEqual(stats["quarantined"], 1)
        self.assertGreaterEqual(stats["scrub_cycles"], 3)
        self.assertGreater(stats["scrub_bytes"], 3 * os.path.getsize(self.segment))

    def test_scrub_keeps_to_its_rate(self):
        self.daemon.options = ("--scrub-mb-s", "1")
        self.daemon.start()
        before = self.status()["scrub_bytes_done"]
        time.sleep(1)
        status = self.status()
        self.assertTrue(status["scrub_running"])
        self.assertLess(status["scrub_bytes_done"] - before, 3 << 20)
        self.assertEqual(self.daemon.stop(), 0)  # at once, not after the cycle
        self.daemon.options = ("--scrub-mb-s", "0")
        self.daemon.start()
        self.assertEqual(self.status()["scrub_bytes_per_second"], 0)

    def test_lookups_say_what_they_missed(self):
        self.flip(self.segment, (SCAN + 18 * HEADS + 3) * PAGE)  # a signature of layer 1, head 0
        self.daemon.options = ("--scrub-mb-s", "0")
        self.daemon.start()
        client = Client(self.daemon.socket)
        self.addCleanup(client.close)
        handle = self.open(client, write=True)["conversation"]
        whole, part = self.lookup(client, handle, 0), self.lookup(client, handle, 1)
        self.assertEqual((whole.get("missed", 0), whole["scanned"]), (0, TOKENS))
        self.assertEqual((part.get("missed", 0), part["scanned"]), (SEALED, TOKENS))
        self.assertEqual(self.lookup(client, handle, 1, **{"from": 4000, "before": 4200}).get("missed", 0), 96)
        self.assertEqual(self.lookup(client, handle, 1, **{"from": 4096}).get("missed", 0), 0)
        for head in part["heads"]:
            self.assertGreaterEqual(min(struct.unpack(f"<{len(head['tokens']) // 8}Q", head["tokens"])), SEALED)
        found = self.status(status=1)["damage"]
        self.assertEqual([(d["conversation"], d["page"]) for d in found], [("diary", SCAN + 18 * HEADS + 3)])

    def test_a_damaged_log_is_read_up_to_the_damage(self):
        self.flip(self.log, 64 + 1000)  # the first frame
        self.flip(self.segment, 30)     # and the segment's header
        self.daemon.options = ("--scrub-mb-s", "0")
        self.daemon.start()
        client = Client(self.daemon.socket)
        self.addCleanup(client.close)
        with self.assertRaises(RpcError) as caught:
            self.open(client, write=True)
        self.assertEqual(caught.exception.code, "corrupt")
        self.assertIn("coldkv repair", str(caught.exception))
        opened = self.open(client)
        self.assertEqual(opened["count"], SEALED)
        answer = self.lookup(client, opened["conversation"], 0)
        self.assertEqual((answer.get("missed", 0), answer["scanned"]), (SEALED, SEALED))
        paths = sorted(os.path.join(self.daemon.data, d["path"]) for d in self.status(status=1)["damage"])
        self.assertEqual(paths, sorted([self.segment, self.log]))
        # the others know nothing of it
        others = [c for c in client.call("conversation.list")["conversations"] if c["name"] != "diary"]
        self.assertEqual(len(others), 2)
        for other in others:
            if other.get("model"):
                handle = self.open(client, name=other["name"], write=True)["conversation"]
                self.assertEqual(self.lookup(client, handle, 0).get("missed", 0), 0)

    def test_repair(self):
        self.coldkv("repair", self.daemon.data)
        self.flip(self.log, 64 + 1000)  # the first frame, of 64 tokens
        self.flip(self.segment, (SCAN + 18 * HEADS + 3) * PAGE)
        self.daemon.start()
        busy = self.coldkv("repair", self.daemon.data, status=1)
        self.assertEqual(busy["error"]["code"], "busy")
        self.daemon.stop()
        dry = self.coldkv("repair", self.daemon.data, "--dry-run", status=1)
        self.coldkv("verify", self.daemon.data, status=1)
        told = self.coldkv("repair", self.daemon.data)
        self.assertEqual(told["lines"], dry["lines"])
        lost = [(w["conversation"], w["first"], w["count"], w["layer"], w["head"])
                for w in told["lines"] if w["result"] == "lost"]
        self.assertEqual(lost, [("diary", 3 * PAGE // 16, 1, 1, 0), ("diary", SEALED, 64, None, None)])
        self.assertEqual((told["records_lost"], told["ids_lost"]), (1 + 64 * BLOCKS, 64))
        after = self.coldkv("verify", self.daemon.data)
        self.assertEqual(after["missing"], 1 + 64 * BLOCKS + 64)
        self.assertEqual(len(os.listdir(os.path.join(self.daemon.data, "quarantine"))), 3)
        self.daemon.start()
        client = Client(self.daemon.socket)
        self.addCleanup(client.close)
        opened = self.open(client, write=True)
        self.assertEqual(opened["count"], TOKENS)
        handle = opened["conversation"]
        self.assertEqual(self.lookup(client, handle, 1).get("missed", 0), 0)
        with self.assertRaises(RpcError) as caught:
            client.call("conversation.read", conversation=handle, layer=1, head=0, first=SEALED + 3, count=1)
        self.assertEqual(caught.exception.code, "corrupt")
        self.assertIn("given up by a repair", str(caught.exception))
        client.call("conversation.read", conversation=handle, layer=1, head=0, first=SEALED + 64, count=100)
        with self.assertRaises(RpcError):
            client.call("conversation.tokens", conversation=handle, first=SEALED - 1, count=2)
        self.assertEqual(self.status()["damage"], [])
        self.daemon.stop()
        purged = self.coldkv("repair", self.daemon.data, "--purge")
        self.assertEqual((purged["files_mended"], purged["files_purged"]), (0, 3))


if __name__ == "__main__":
    COLDKV, MAKE_ARCHIVE, COLDKVD = map(os.path.abspath, sys.argv[1:4])
    unittest.main(argv=[sys.argv[0], *sys.argv[4:]], verbosity=2)
