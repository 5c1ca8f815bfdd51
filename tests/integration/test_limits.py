#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""What one user may make the daemon hold: up to each bound, one past it, and how it goes on. Usage: test_limits.py
COLDKVD [TEST ...]"""
import os
import resource
import signal
import socket
import threading
import time
import unittest

import msgpack

from coldkv_protocol import Client, Daemon, RpcError, geometry
from coldkv_testcase import FINGERPRINT, WithDaemon, main


def rss_mb(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def sanitized(pid):
    """AddressSanitizer keeps freed memory, so that its use says nothing."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
        return "libasan" in maps.read()


def cpu_s(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Limits(WithDaemon):
    def raw(self):
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        end.settimeout(30)
        end.connect(self.daemon.socket)
        self.addCleanup(end.close)
        return end

    def wait_for(self, what, seconds=20):
        """Calls what() until it is true."""
        until = time.monotonic() + seconds
        while not what():
            self.assertLess(time.monotonic(), until, "did not happen in time")
            time.sleep(0.02)


    def assert_memory(self, before, most_mb):
        if not sanitized(self.daemon.process.pid):
            self.assertLess(rss_mb(self.daemon.process.pid) - before, most_mb)


class Connections(Limits):
    options = ("--user-connections", "5", "--connections", "7", "--user-conversations", "3")

    def test_one_user(self):
        self.wait_for(lambda: self.client.call("stats")["connections"] == 1)  # not the one of Daemon.start
        clients = [self.connect() for _ in range(4)]
        for client in clients:
            client.call("hello", protocol=1)
        with self.assertRaises(RpcError) as caught:
            self.connect().call("hello", protocol=1)
        self.assertEqual(caught.exception.code, "limit")
        self.assertIn("as many as one user may", str(caught.exception))
        clients[0].close()
        self.wait_for(lambda: self.client.call("stats")["connections"] == 4)
        self.connect().call("hello", protocol=1)

    def test_conversations(self):
        other = self.connect()
        self.open("a")
        handle = self.open("b")["conversation"]
        self.open("c", client=other)
        self.open("c", client=other)  # the same handle again
        for client in (self.client, other):
            with self.assertRaises(RpcError) as caught:
                self.open("d", client=client)
            self.assertEqual(caught.exception.code, "limit")
        self.client.call("conversation.close", conversation=handle)
        self.open("d", client=other)
        self.assertRaises(RpcError, self.open, "e")
        other.close()
        self.wait_for(lambda: self.client.call("stats")["connections"] == 1)
        self.open("e")
        self.open("f")
        self.assertRaises(RpcError, self.open, "g")


class Requests(Limits):
    options = ("--user-requests", "2")

    def test_all_are_answered(self):
        """Far more than may be under way at a time, from several connections: they wait, and none is lost."""
        handle = self.ready()
        self.append(handle, 0, 30)
        clients = [self.connect() for _ in range(8)]
        wanted = []
        for client in clients:
            at = self.open(client=client, write=False)["conversation"]
            wanted.append([client.send("conversation.read", conversation=at, layer=0, head=0, first=0, count=30)
                           for _ in range(40)])
        for client, requests in zip(clients, wanted):
            for request in requests:
                self.assertEqual(client.wait(request)["count"], 30)


class Queue(Limits):
    # a connection's share is 128 KiB
    options = ("--user-connections", "16", "--user-queue-mb", "258", "--client-timeout-s", "5")

    def big(self, size):
        """A request of about that size: its client name is too long, which is an error, but a message."""
        return msgpack.packb([0, 1, "hello", {"protocol": 1, "x": bytes(size)}])

    def test_messages_that_do_not_end(self):
        """Fourteen messages that stop short of their end: four may pass the share, the rest is not read."""
        before = rss_mb(self.daemon.process.pid)
        ends = [self.raw() for _ in range(14)]
        body = self.big(8 << 20)[:-100]
        for end in ends:
            end.setblocking(False)
        sent = [0] * len(ends)
        quiet = time.monotonic()  # since when nothing has gone on
        while time.monotonic() < quiet + 0.7:
            for i, end in enumerate(ends):
                try:
                    sent[i] += end.send(body[sent[i]:sent[i] + (1 << 20)]) if sent[i] < len(body) else 0
                    quiet = time.monotonic() if sent[i] < len(body) else quiet
                except BlockingIOError:
                    pass
        taken = sorted(sent)
        self.assertGreaterEqual(taken[-4], len(body))
        self.assertLess(taken[-5], 1 << 20)
        self.assert_memory(before, 4 * 8 + 14 * 0.25 + 16)
        # small messages go through all the while
        self.assertEqual(self.client.call("hello", protocol=1)["protocol"], 1)
        # and those that are late make room for those that wait
        for end in ends:
            end.settimeout(30)
        last = ends[sent.index(taken[0])]
        last.sendall(self.big(8 << 20)[taken[0]:])
        self.assertEqual(msgpack.unpackb(last.recv(65536))[1], 1)

    def test_answers_that_are_not_taken(self):
        """Clients that ask for much and read nothing: the daemon holds a bounded part, hangs up, and serves others."""
        handle = self.ready()
        self.append(handle, 0, 100)
        self.append(handle, 100, 100)
        before = rss_mb(self.daemon.process.pid)
        ask = [msgpack.packb([0, i, "conversation.read", {"conversation": 256, "layer": 0, "head": 0, "first": 0,
                                                          "count": 200}]) for i in range(3000)]
        ends = [self.raw() for _ in range(10)]
        opening = msgpack.packb([0, 9, "conversation.open", {"name": "c", "fingerprint": FINGERPRINT,
                                                             "geometry": self.shape}])
        for end in ends:
            end.sendall(opening)
            end.recv(65536)
            end.settimeout(0.2)
            try:
                end.sendall(b"".join(ask))
            except TimeoutError:
                pass
        self.assert_memory(before, 10 * 0.25 + 24)
        self.assertEqual(self.client.call("conversation.read", conversation=handle, layer=0, head=0, first=0,
                                          count=200)["count"], 200)
        self.wait_for(lambda: self.client.call("stats")["timed_out"] == 10)

    def test_large_answers_take_turns(self):
        """Answers that are larger than the share, from more clients than may hold much: all come."""
        self.shape = geometry(layers=1, kv_heads=1)
        handle = self.ready()
        for first in range(0, 1500, 250):
            self.append(handle, first, 250)
        clients = [self.connect() for _ in range(9)]
        sizes = []

        def ask(client):
            at = self.open(client=client, write=False)["conversation"]
            ids = [client.send("conversation.read", conversation=at, layer=0, head=0, first=0, count=1500)
                   for _ in range(6)]
            sizes.extend(len(client.wait(number)["records"]) for number in ids)
        threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sizes, [1500 * 104] * 54)


class Time(Limits):
    options = ("--client-timeout-s", "1")

    def goodbye(self, end):
        message = msgpack.unpackb(end.recv(65536))
        self.assertEqual((message[0], message[2]["code"]), (2, "limit"))
        self.assertEqual(end.recv(1), b"")

    def test_says_nothing(self):
        self.client.call("hello", protocol=1)
        self.goodbye(self.raw())
        self.assertEqual(self.client.call("stats")["timed_out"], 1)

    def test_stops_in_a_message(self):
        end = self.raw()
        message = msgpack.packb([0, 1, "hello", {"protocol": 1}])
        end.sendall(message)
        self.assertEqual(msgpack.unpackb(end.recv(65536))[1], 1)
        time.sleep(1.5)  # between messages it may take its time
        end.sendall(message + message[:-1])
        self.assertEqual(msgpack.unpackb(end.recv(65536))[1], 1)
        self.goodbye(end)

    def test_dribbles(self):
        """A byte now and then is not enough: the message as a whole has to come in time."""
        end = self.raw()
        started = time.monotonic()
        message = msgpack.packb([0, 1, "hello", {"protocol": 1, "client": "x" * 100}])
        try:
            for at in range(len(message) - 1):
                end.sendall(message[at:at + 1])
                time.sleep(0.1)
            self.fail("nobody minds")
        except BrokenPipeError:
            pass
        self.assertLess(time.monotonic() - started, 5)


class Quota(Limits):
    options = ("--quota-mb", "1")

    def fill(self, handle, first=0):
        """Appends until it is refused; the next token, and why."""
        for first in range(first, 40000, 50):
            try:
                self.append(handle, first, 50)
            except RpcError as error:
                return first, error
        return self.fail("no quota")

    def test_full(self):
        handle = self.ready()
        first, error = self.fill(handle)
        self.assertEqual(error.code, "no_space")
        self.assertIn("quota", str(error))
        stored = self.client.call("conversation.info", name="c")["bytes"]
        self.assertLess(stored, 1 << 20)
        self.assertGreater(stored, (1 << 20) - 60 * 420 - 3 * 8192)
        # nothing new, but what is there can be used, and what was acknowledged can be sent again
        for what in (lambda: self.open("new"), lambda: self.calibrated(bytes(32))):
            with self.assertRaises(RpcError) as caught:
                for i in range(10):
                    what()
                    self.open(f"filler{i}")
            self.assertEqual(caught.exception.code, "no_space")
        self.open("c")
        self.calibrated()
        got = self.client.call("conversation.read", conversation=handle, layer=0, head=0, first=0, count=first)
        self.assertEqual(got["count"], first)
        # it is the files that count: the same after a restart, clean or not
        for stop in (self.daemon.stop, self.daemon.kill):
            self.client.close()
            stop()
            self.daemon.start()
            self.client = self.connect()
            again = self.open("c")
            self.assertEqual(again["count"], first)
            self.assertEqual(self.fill(again["conversation"], first)[0], first)
        # and there is room again when something is deleted
        self.client.call("conversation.close", conversation=again["conversation"])
        self.wait_for(self.deleted)
        self.assertEqual(self.fill(self.ready("d"))[0] // 50, first // 50)

    def deleted(self):
        try:
            self.client.call("conversation.delete", name="c", confirm="c")
            return True
        except RpcError as error:
            self.assertEqual(error.code, "busy")
            return False


class Descriptors(unittest.TestCase):
    def test_they_run_out(self):
        """With few descriptors the daemon neither stops nor spins, and goes on when there are some again."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        daemon = Daemon(WithDaemon.binary)
        self.addCleanup(daemon.finish)
        first = Client(daemon.socket)
        self.addCleanup(first.close)
        first.call("hello", protocol=1)
        pid = daemon.process.pid
        used = max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 5, hard))
        ends = []
        for _ in range(40):
            end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            end.connect(daemon.socket)
            ends.append(end)
        time.sleep(0.3)
        before = cpu_s(pid)
        time.sleep(1)
        self.assertLess(cpu_s(pid) - before, 0.2)
        self.assertEqual(first.call("hello", protocol=1)["protocol"], 1)
        with self.assertRaises(RpcError) as caught:  # files are opened with descriptors, too
            first.call("conversation.open", name="a", fingerprint=FINGERPRINT, geometry=geometry(), create=True)
        self.assertEqual(caught.exception.code, "io")
        self.assertIn("trying again", daemon.log_text())
        self.assertLess(daemon.log_text().count("trying again"), 20)
        for end in ends:
            end.close()
        later = Client(daemon.socket)
        self.addCleanup(later.close)
        later.call("hello", protocol=1)
        later.call("conversation.open", name="a", fingerprint=FINGERPRINT, geometry=geometry(), create=True)
        daemon.process.send_signal(signal.SIGTERM)
        self.assertEqual(daemon.process.wait(timeout=20), 0)


if __name__ == "__main__":
    main()
