#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Disks that fail under a daemon: it says so, harms nothing, and serves what it still can. Usage:
test_faults.py COLDKVD [TEST ...]"""
import os
import shutil
import subprocess
import tempfile
import threading
import time
import unittest

from coldkv_protocol import RpcError, geometry, model
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
            found.append(self.client.call("verify"))
            return not found[-1].get("running")

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


class Strace:
    """Injects errors into a running daemon's system calls."""

    def __init__(self, daemon, calls, inject):
        self.process = subprocess.Popen(["strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=" + calls, "-e",
                                         f"inject={calls}:{inject}", "-p", str(daemon.process.pid)],
                                        stderr=subprocess.PIPE, text=True)
        path = f"/proc/{daemon.process.pid}/task"
        for _ in range(500):
            traced = []
            for task in os.listdir(path):
                with open(os.path.join(path, task, "status"), encoding="utf-8") as status:
                    traced.append("TracerPid:\t0\n" not in status.read())
            if all(traced):
                return
            time.sleep(0.01)
        raise RuntimeError("strace did not attach")

    def end(self):
        self.process.terminate()
        self.process.communicate()


def strace_works():
    return shutil.which("strace") and subprocess.run(["strace", "-f", "true"], capture_output=True,
                                                     check=False).returncode == 0


@unittest.skipUnless(strace_works(), "strace is missing or not permitted here")
class FailedSync(WithSegments):
    def test_nothing_is_written_any_more(self):
        self.make("a")
        handle = self.handles["a"]
        strace = Strace(self.daemon, "fdatasync", "error=EIO")
        try:
            text = self.fails("io", append, self.client, self.shape, handle, self.COUNT, 2)
            self.assertIn("cannot sync", text)
        finally:
            strace.end()
        # the disk is well again, but who knows what it dropped
        text = self.fails("read_only", append, self.client, self.shape, handle, self.COUNT, 3)
        for part in ("log-", "Input/output error", "check the disk", "restart the daemon"):
            self.assertIn(part, text)
        self.fails("read_only", self.open, "new")
        self.fails("read_only", lambda: self.client.call("model.calibrate", **model(bytes(32), self.shape)))
        stats = self.client.call("stats")
        self.assertEqual(stats["read_only"], 1)
        self.assertIn("Input/output error", stats["read_only_reason"])
        self.assertEqual(self.daemon.log_text().count("no more writes"), 1)
        # reads go on, of what is durable and of what is not
        self.assertEqual(len(lookup(self.client, self.shape, handle)[0]), 8)
        self.assertEqual(check_all(self.client, self.shape, handle, self.COUNT), 0)
        self.assertEqual(self.daemon.stop(), 0)
        self.daemon.start()
        self.client = self.connect()
        again = self.open("a")
        self.assertGreaterEqual(again["count"], self.COUNT)
        self.assertEqual(check_all(self.client, self.shape, again["conversation"], again["count"]), 0)
        append(self.client, self.shape, again["conversation"], again["count"], 5)


class FullDisk(WithSegments):
    """A file system of its own that fills up: in a log, at the making of one, in a segment, in the catalog."""
    MEGABYTES = 40
    LEFT_KB = (0, 8, 40, 200, 700, 872, 900, 960)

    def setUp(self):
        self.mount = tempfile.mkdtemp(prefix="coldkv-full-")
        self.addCleanup(shutil.rmtree, self.mount, ignore_errors=True)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self.MEGABYTES}m", "none", self.mount],
                          capture_output=True, check=False).returncode:
            self.skipTest("mounting a file system is not permitted here")
        self.addCleanup(subprocess.run, ["umount", self.mount], check=False)
        before = tempfile.tempdir
        tempfile.tempdir = self.mount
        try:
            super().setUp()
        finally:
            tempfile.tempdir = before

    def leave(self, kilobytes):
        room = os.statvfs(self.mount)
        with open(os.path.join(self.mount, "filler"), "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, room.f_bavail * room.f_frsize - 1024 * kilobytes))

    def make_room(self):
        os.unlink(os.path.join(self.mount, "filler"))

    def sealed(self, handle, segments):
        append(self.client, self.shape, handle, 4090, 1)  # an append after the pause tries again
        return self.stats("segments_sealed") >= segments

    def tries(self, call, *arguments):
        """True when it worked; the only other way is no_space."""
        try:
            call(*arguments)
        except RpcError as error:
            self.assertEqual(error.code, "no_space", str(error))
            self.assertIn("No space left on device", str(error))
            return False
        return True

    def test_appends_are_refused_until_there_is_room(self):
        refused = 0
        for number, kilobytes in enumerate(self.LEFT_KB):
            name = f"c{kilobytes}"
            handle = self.handles[name] = self.ready(name)
            fill(self.client, self.shape, handle, 4090)
            self.leave(kilobytes)
            stored = 4090
            for _ in range(30):  # over the border, and on until it is full
                if not self.tries(append, self.client, self.shape, handle, stored, 100):
                    refused += 1
                    break
                stored += 100
            self.assertEqual(check_all(self.client, self.shape, handle, stored), 0)
            if not self.tries(self.open, f"new{kilobytes}"):
                refused += 1
            self.assertEqual(self.stats("read_only"), 0)
            self.assertEqual(len(lookup(self.client, self.shape, handle)[0]), 8)
            self.make_room()
            append(self.client, self.shape, handle, stored, 100)
            self.open(f"new{kilobytes}")
            self.wait(lambda: self.sealed(handle, number + 1))
            self.assertEqual(check_all(self.client, self.shape, handle, stored + 100), 0)
            self.client.call("conversation.close", conversation=handle)
            self.handles[name] = stored + 100
        self.assertGreaterEqual(refused, 5)
        self.assertEqual(self.daemon.stop(), 0)
        self.daemon.start()
        self.client = self.connect()
        for name, count in self.handles.items():
            again = self.open(name)
            self.assertEqual(again["count"], count)
            self.assertEqual(check_all(self.client, self.shape, again["conversation"], count), 0)
        log = self.daemon.log_text()
        self.assertIn("sealing conversation", log)  # that failed, too
        for word in ("damage", "quarantine", "corrupt"):
            self.assertNotIn(word, log)


if __name__ == "__main__":
    main()
