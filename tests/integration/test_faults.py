#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Disks that fail under a daemon: it says so, harms nothing, and serves what it still can. Usage:
test_faults.py COLDKVD [TEST ...]"""
import os
import threading
import time

from coldkv_protocol import RpcError, geometry
from coldkv_records import append, check_all, fill, lookup
from coldkv_testcase import FINGERPRINT, WithDaemon, main


class WithSegments(WithDaemon):
    """Conversations of one segment and a tail."""
    COUNT = 4200

    def setUp(self):
        super().setUp()
        self.shape = geometry(layers=2, kv_heads=1)
        self.handles = {}

    def make(self, name):
        self.handles[name] = self.ready(name)
        fill(self.client, self.shape, self.handles[name], self.COUNT)
        self.wait(lambda: self.stats("segments_sealed") == len(self.handles))

    def stats(self, name):
        return self.client.call("stats")[name]

    def wait(self, condition):
        for _ in range(500):
            if condition():
                return
            time.sleep(0.02)
        self.fail("not within seconds")

    def segment_of(self, name):
        extents = self.client.call("conversation.info", name=name)["extents"]
        text = extents[0]["id"].hex()
        return os.path.join(self.daemon.data, "segments", text[:2], text + ".seg")

    def fails(self, code, call, *arguments):
        with self.assertRaises(RpcError) as caught:
            call(*arguments)
        self.assertEqual(caught.exception.code, code, str(caught.exception))
        return str(caught.exception)


class Unreadable(WithSegments):
    """A file that is cut short under its mapping raises the signal that a read error raises."""

    def setUp(self):
        super().setUp()
        self.make("a")
        self.make("b")

    def look(self, name, layer=0):
        return lookup(self.client, self.shape, self.handles[name], layer)

    def others_are_served(self):
        self.assertEqual(len(self.look("b")[0]), 8)
        self.assertEqual(check_all(self.client, self.shape, self.handles["b"], self.COUNT), 0)
        self.assertEqual(append(self.client, self.shape, self.handles["b"], self.COUNT, 1)["durable"], self.COUNT + 1)
        self.assertIsNone(self.daemon.process.poll())

    def test_a_lookup_fails_alone(self):
        self.look("a")
        path = self.segment_of("a")
        os.truncate(path, 0)
        text = self.fails("io", self.look, "a")
        self.assertIn(os.path.basename(path), text)
        self.assertIn("page ", text)
        self.others_are_served()
        # from now on that part is left out, and the rest of the conversation serves
        for layer in (0, 1):
            found = self.look("a", layer)[0]
            self.assertTrue(found and min(found) >= 4096, found)
        self.assertEqual(append(self.client, self.shape, self.handles["a"], self.COUNT, 3)["durable"], self.COUNT + 3)
        self.assertEqual(self.stats("bad_pages"), 1)
        self.assertEqual(self.stats("read_only"), 0)

    def test_reads_fail_alone(self):
        path = self.segment_of("a")
        os.truncate(path, 4096 * 3)
        handle = self.handles["a"]
        for method, more in (("conversation.read", {"layer": 1, "head": 0}), ("conversation.tokens", {})):
            text = self.fails("io", lambda m=method, o=more: self.client.call(m, conversation=handle, first=7, count=9,
                                                                             **o))
            self.assertIn(os.path.basename(path), text)
        self.others_are_served()
        # what it cannot compare it does not call wrong
        self.fails("io", append, self.client, self.shape, handle, 100, 4)
        self.assertIn("cannot be read", self.daemon.log_text() + text)

    def test_verify_goes_on(self):
        os.truncate(self.segment_of("a"), 4096)
        found = [self.client.call("verify")]

        def ended():
            if not found[-1]["running"]:
                return True
            found.append(self.client.call("verify"))
            return bool(found[-1]["bad"])

        self.wait(ended)
        self.assertGreater(found[-1]["bad"], 0)
        self.others_are_served()

    def test_cut_under_a_load(self):
        ends, wrong, failed = [], [], []

        def work(name):
            client = self.connect()
            handle = client.call("conversation.open", name=name, fingerprint=FINGERPRINT, geometry=self.shape,
                                 create=False, write=False)["conversation"]
            seed = 0
            while not ends:
                seed += 1
                try:
                    lookup(client, self.shape, handle, seed % 2, 8, seed)
                except RpcError as error:
                    failed.append((name, error.code))
                except AssertionError as error:
                    wrong.append(str(error))

        threads = [threading.Thread(target=work, args=(name,)) for name in "aabb"]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        os.truncate(self.segment_of("a"), 4096 * 20)
        time.sleep(0.3)
        ends.append(True)
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])
        self.assertTrue(set(failed) <= {("a", "io")}, failed)
        self.others_are_served()


if __name__ == "__main__":
    main()
