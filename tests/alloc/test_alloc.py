#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Allocations that fail, one at a time, in the daemon while it starts and while it serves, and in the library. Usage:
test_alloc.py COLDKVD FAILALLOC CLIENT_ALLOC. COLDKV_TORTURE_SECONDS=N tries that long (0: every allocation) instead of
a few seconds; the last line is "torture: allocations failed=N crashed=N lost=N"."""
import mmap
import os
import random
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "integration"))
from coldkv_protocol import Client, Daemon, RpcError, geometry, model, tokens  # noqa: E402  (the path comes first)

SHAPE = geometry(layers=1, kv_heads=1, head_dim=64)
FINGERPRINT = b"a" * 32
PATIENCE_S = 20
LIMIT_S = os.environ.get("COLDKV_TORTURE_SECONDS")
SHARE_S = 6 if LIMIT_S is None else float(LIMIT_S) / 3 or 1e9
# What a request may be answered when memory is short; a hang-up is allowed too.
ALLOWED = {"memory", "not_open", "no_conversation", "no_model", "busy", "range"}


class Control:
    """The numbers that the preloaded library watches."""

    def __init__(self, path):
        self.path = path
        with open(path, "wb") as file:
            file.write(bytes(24))
        self.file = open(path, "r+b")
        self.map = mmap.mmap(self.file.fileno(), 24)

    def arm(self, countdown):
        self.map[:] = struct.pack("<qQQ", countdown, 0, 0)

    @property
    def count(self):
        return struct.unpack("<qQQ", self.map[:])[1]

    @property
    def failed(self):
        return struct.unpack("<qQQ", self.map[:])[2]


class Preloaded(Daemon):
    """A daemon whose allocations can be made to fail."""

    def __init__(self, binary, library, *options):
        self.library, self.control = library, None
        super().__init__(binary, *options)

    def environment(self):
        sanitizer = os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0:detect_leaks=1"
        known = os.path.join(os.path.dirname(os.path.abspath(__file__)), "leaks.supp")
        return {"LD_PRELOAD": self.library, "COLDKV_ALLOC_CONTROL": self.control.path, "ASAN_OPTIONS": sanitizer,
                "LSAN_OPTIONS": f"suppressions={known}:print_suppressions=0"}

    def start(self):
        if not self.control:
            self.control = Control(os.path.join(self.dir, "control"))
        extra = [f"{key}={value}" for key, value in self.environment().items()]
        self.wrap = ["env", *extra]
        super().start()


def wait_gone(process):
    return process.wait(timeout=PATIENCE_S)


class Daemons:
    def __init__(self, binary, library):
        self.binary, self.library = binary, library
        self.failed = self.crashed = self.lost = self.models = 0
        self.rng = random.Random(3)
        self.stored = []  # (ids, records) of what was acknowledged in the conversation "kept"

    def crash(self, what, daemon):
        self.crashed += 1
        print(f"{what}: status {daemon.process.poll()}\n{daemon.log_text()[-3000:]}", file=sys.stderr)

    def open(self, client, name="kept", **more):
        return client.call("conversation.open", name=name, fingerprint=FINGERPRINT, geometry=SHAPE, create=True,
                           write=True, **more)

    def append(self, client, handle, first, count):
        ids, records = tokens(self.rng, SHAPE, first, count)
        client.call("conversation.append", conversation=handle, first=first, ids=ids, records=records)
        return ids, records

    def prepare(self, daemon):
        """Tokens that have to stay, in a segment, in a closed log and in the open one."""
        client = Client(daemon.socket)
        found = client.call("model.calibrate", **model(FINGERPRINT, SHAPE))
        handle = self.open(client, model=found["id"])["conversation"]
        at = 0
        while at < 4096 + 300:
            self.stored.append(self.append(client, handle, at, 256))
            at += 256
        client.close()

    def check(self, daemon):
        """Everything that was acknowledged is there; what was not may be."""
        client = Client(daemon.socket, PATIENCE_S)
        try:
            opened = self.open(client)
            ids = b"".join(part[0] for part in self.stored)
            records = b"".join(part[1] for part in self.stored)
            count = len(ids) // 4
            assert opened["count"] >= count, f"{opened['count']} of {count} tokens"
            got = client.call("conversation.tokens", conversation=opened["conversation"], first=0, count=count)["ids"]
            assert got == ids, "other ids"
            got = client.call("conversation.read", conversation=opened["conversation"], layer=0, head=0, first=0,
                              count=count)["records"]
            assert got == records, "other records"
        except (AssertionError, RpcError, OSError) as error:
            self.lost += 1
            print(f"lost: {error}\n{daemon.log_text()[-3000:]}", file=sys.stderr)
        client.close()

    # --- the start ---

    def one_start(self, daemon, countdown):
        """Starts with one allocation failing; False when there were fewer."""
        control = daemon.control
        control.arm(countdown)
        open(daemon.log, "wb").close()
        try:
            daemon.start()
        except RuntimeError:
            status = wait_gone(daemon.process)
            if status not in (1, 2) or "coldkvd: " not in daemon.log_text():
                self.crash(f"start, allocation {countdown}", daemon)
        failed = control.failed
        control.arm(0)
        self.failed += failed
        if daemon.process.poll() is None:
            self.check(daemon)
            if daemon.stop() != 0:
                self.crash(f"stop after a start, allocation {countdown}", daemon)
        return failed > 0

    def starts(self, daemon):
        control = daemon.control
        control.arm(0)
        daemon.start()
        total = control.count
        daemon.stop()
        end = time.monotonic() + SHARE_S
        order = list(range(1, total + 1))
        self.rng.shuffle(order)
        tried = 0
        for countdown in order:
            if time.monotonic() > end:
                break
            self.one_start(daemon, countdown)
            tried += 1
        print(f"start: {tried} of {total} allocations")
        daemon.start()
        self.check(daemon)

    # --- requests ---

    def steps(self):
        """Name and what to do with a connection and the handle of "kept"."""
        query = bytes(512)
        return [
            ("hello", lambda c, h: c.call("hello", protocol=1)),
            ("connect", lambda c, h: Client(self.path, PATIENCE_S).close()),
            ("calibrate", self.calibrate_new),
            ("model.get", lambda c, h: c.call("model.get", fingerprint=FINGERPRINT)),
            ("model.list", lambda c, h: c.call("model.list")),
            ("open", lambda c, h: self.open(c, f"n{self.rng.randrange(10 ** 9)}")),
            ("reopen", lambda c, h: self.open(c)),
            ("append", self.append_kept),
            ("lookup", lambda c, h: c.call("conversation.lookup", conversation=h, layer=0, rows=1, queries=query, k=8)),
            ("read", lambda c, h: c.call("conversation.read", conversation=h, layer=0, head=0, first=4000, count=200)),
            ("tokens", lambda c, h: c.call("conversation.tokens", conversation=h, first=0, count=60000)),
            ("info", lambda c, h: c.call("conversation.info", name="kept")),
            ("list", lambda c, h: c.call("conversation.list")),
            ("stats", lambda c, h: c.call("stats")),
            *self.verify_step(),
            ("delete", self.delete_new),
            ("close", lambda c, h: c.call("conversation.close", conversation=h)),
            ("pipeline", self.pipeline),
        ]

    def verify_step(self):
        """Verify forks to read the catalog, and AddressSanitizer's locks may be held by threads that the child has
        not."""
        with open(self.binary, "rb") as file:
            if b"__asan_init" in file.read():
                return []
        return [("verify", lambda c, h: c.call("verify"))]

    def calibrate_new(self, client, _handle):
        """Only what was made is not asked for again: the more models there are, the more is allocated."""
        client.call("model.calibrate", **model(bytes([self.models]) * 32, SHAPE))
        self.models += 1

    def append_kept(self, client, handle):
        first = client.call("conversation.info", name="kept")["tokens"]
        known = sum(len(part[0]) // 4 for part in self.stored)
        if first > known:  # not acknowledged, but stored
            ids = client.call("conversation.tokens", conversation=handle, first=known, count=first - known)["ids"]
            records = client.call("conversation.read", conversation=handle, layer=0, head=0, first=known,
                                  count=first - known)["records"]
            self.stored.append((ids[:4 * (first - known)], records))
        self.stored.append(self.append(client, handle, first, 3))

    def delete_new(self, client, _handle):
        name = f"d{self.rng.randrange(10 ** 9)}"
        handle = self.open(client, name)["conversation"]
        client.call("conversation.close", conversation=handle)
        for _ in range(1000):
            try:
                client.call("conversation.delete", name=name, confirm=name)
                return
            except RpcError as error:
                if error.code != "busy":
                    raise
            time.sleep(0.001)

    def pipeline(self, client, _handle):
        """More than a socket takes at once, so that answers have to be kept."""
        requests = [client.send("conversation.tokens", conversation=0, first=0, count=1) for _ in range(60)]
        for request in requests:
            try:
                client.wait(request)
            except RpcError as error:
                if error.code != "not_open":
                    raise

    def one_request(self, daemon, name, step, countdown):
        control = daemon.control
        client = Client(daemon.socket, PATIENCE_S)
        handle = self.open(client)["conversation"]
        control.arm(countdown)
        try:
            step(client, handle)
        except RpcError as error:
            if error.code not in ALLOWED:
                self.crash(f"{name}, allocation {countdown}: {error}", daemon)
        except TimeoutError:
            self.crash(f"{name}, allocation {countdown}: no answer", daemon)
        except OSError:
            pass  # hung up
        failed = control.failed
        control.arm(0)
        client.close()
        self.failed += failed
        return failed > 0

    def wait_lease(self, daemon):
        """A connection's handles are given up a moment after it ends."""
        for _ in range(2000):
            client = Client(daemon.socket, PATIENCE_S)
            try:
                self.open(client)
                return
            except RpcError as error:
                if error.code != "busy":
                    raise
            finally:
                client.close()
            time.sleep(0.002)
        self.crash("the lease is never given up", daemon)

    def requests(self, daemon):
        self.path = daemon.socket
        end = time.monotonic() + SHARE_S
        steps = [[name, step, 1] for name, step in self.steps()]
        tried = 0
        while steps and time.monotonic() < end:
            for entry in list(steps):
                name, step, countdown = entry
                self.wait_lease(daemon)
                if not self.one_request(daemon, name, step, countdown):
                    steps.remove(entry)
                entry[2] += 1
                tried += 1
                if daemon.process.poll() is not None:
                    self.crash(f"{name}, allocation {countdown}", daemon)
                    daemon.start()
        print(f"requests: {tried} tries, left: {', '.join(f'{s[0]} {s[2]}' for s in steps) or 'none'}")
        self.check(daemon)


def run_client(daemons, daemon, program, library):
    control = Control(os.path.join(daemon.dir, "client-control"))
    sanitizer = os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0:detect_leaks=1"
    seconds = str(int(min(SHARE_S, 100000)))
    done = subprocess.run([program, daemon.socket, control.path, seconds], capture_output=True, text=True, check=False,
                          env={**os.environ, "LD_PRELOAD": library, "COLDKV_ALLOC_CONTROL": control.path,
                               "ASAN_OPTIONS": sanitizer})
    if done.returncode:
        daemons.crashed += 1
        print(f"client: status {done.returncode}\n{done.stderr[-4000:]}", file=sys.stderr)
        return
    print("client:", done.stdout.strip(), "allocations")
    daemons.failed += int(done.stdout.split()[0])


def main():
    binary, library, program = sys.argv[1:]
    daemons = Daemons(binary, library)
    daemon = Preloaded(binary, library, "--threads", "2")
    try:
        daemons.prepare(daemon)
        daemons.requests(daemon)
        run_client(daemons, daemon, program, library)
        if daemon.stop() != 0:
            daemons.crash("stop", daemon)  # a leak is a finding of the sanitizer's at the end
        daemons.starts(daemon)
        if daemon.stop() != 0:
            daemons.crash("stop", daemon)
    except (OSError, RpcError, RuntimeError, subprocess.TimeoutExpired) as error:
        daemons.crash(f"the run ends: {error}", daemon)
    finally:
        daemon.finish()
    print(f"torture: allocations failed={daemons.failed} crashed={daemons.crashed} lost={daemons.lost}")
    sys.exit(1 if daemons.crashed or daemons.lost or not daemons.failed else 0)


main()
