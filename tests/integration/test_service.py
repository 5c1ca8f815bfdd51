#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""The daemon as a service: what it tells a service manager, sockets that it is handed, how it stops, and a kernel that
forbids io_uring. The manager is this program. Usage: test_service.py COLDKVD [TEST ...]"""
import ctypes
import errno
import os
import random
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import threading
import time
import unittest

from coldkv_protocol import Client, Daemon, RpcError, geometry, model, tokens
from coldkv_testcase import FINGERPRINT, WithDaemon, main

IO_URING_SETUP = 425  # on every architecture


class Manager(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="coldkv-service-")
        self.addCleanup(folder.cleanup)
        self.dir = folder.name
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.notify.close)
        self.notify.settimeout(30)

    def start(self, options=(), listen=None, **environment):
        """coldkvd as a manager starts it; `listen`: a socket that becomes descriptor 3."""
        def prepare():
            if listen is not None:
                os.dup2(listen.fileno(), 3)
        # the variable has to name the child itself, so that a shell sets it
        command = ["sh", "-c", 'LISTEN_PID=$$ exec "$@"' if listen is not None else 'exec "$@"', "sh",
                   WithDaemon.binary, "--data", f"{self.dir}/data", *options]
        with open(f"{self.dir}/log", "ab") as log:
            process = subprocess.Popen(command, stderr=log, preexec_fn=prepare, pass_fds=(3,) if listen else (),
                                       env={**os.environ, "NOTIFY_SOCKET": self.address, **environment})
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def bind_notify(self, address):
        self.notify.bind(address)
        self.address = address.replace("\0", "@")

    def log_text(self):
        with open(f"{self.dir}/log", encoding="utf-8") as log:
            return log.read()

    def told(self):
        return dict(line.split("=", 1) for line in self.notify.recv(4096).decode().splitlines())

    def test_notify(self):
        for address in (f"{self.dir}/notify", f"\0coldkv-test-{os.getpid()}"):
            self.notify.close()
            self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.notify.settimeout(30)
            self.bind_notify(address)
            process = self.start(["--socket", f"{self.dir}/s"])
            ready = self.told()
            self.assertEqual(ready["READY"], "1")
            self.assertIn(f"{self.dir}/data", ready["STATUS"])
            client = Client(f"{self.dir}/s")  # what is ready answers at once
            client.call("hello", protocol=1)
            client.close()
            process.send_signal(signal.SIGTERM)
            self.assertEqual(self.told()["STOPPING"], "1")
            self.assertEqual(process.wait(timeout=20), 0)

    def listener(self, kind=socket.SOCK_STREAM, backlog=5):
        end = socket.socket(socket.AF_UNIX, kind)
        self.addCleanup(end.close)
        end.bind(f"{self.dir}/activated")
        if backlog:
            end.listen(backlog)
        return end

    def test_activation(self):
        self.bind_notify(f"{self.dir}/notify")
        end = self.listener()
        early = Client(f"{self.dir}/activated")  # connects before there is a daemon
        self.addCleanup(early.close)
        request = early.send("hello", protocol=1)
        for _ in range(2):
            process = self.start(listen=end, LISTEN_FDS="1", COLDKV_SOCKET=f"{self.dir}/own")
            self.assertEqual(self.told()["READY"], "1")
            if request:
                self.assertEqual(early.wait(request)["protocol"], 1)
                early.close()
            request = None
            client = Client(f"{self.dir}/activated")
            client.call("hello", protocol=1)
            client.close()
            self.assertFalse(os.path.exists(f"{self.dir}/own"))
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(timeout=20), 0)
            self.assertEqual(self.told()["STOPPING"], "1")
            # the socket is the manager's: it stays, and goes on collecting clients
            self.assertTrue(stat.S_ISSOCK(os.stat(f"{self.dir}/activated").st_mode))
        Client(f"{self.dir}/activated").close()

    def test_what_is_no_listening_socket(self):
        self.bind_notify(f"{self.dir}/notify")
        for end in (self.listener(backlog=0), open("/dev/null", "rb")):
            self.addCleanup(end.close)
            process = self.start(listen=end, LISTEN_FDS="1")
            self.assertEqual(process.wait(timeout=20), 2)
            self.assertIn("is no listening Unix stream socket", self.log_text())
        process = self.start(listen=end, LISTEN_FDS="2")
        self.assertEqual(process.wait(timeout=20), 2)
        self.assertIn("handed on 2 sockets", self.log_text())

    def test_variables_of_another_process(self):
        self.bind_notify(f"{self.dir}/notify")
        self.start(["--socket", f"{self.dir}/s"], LISTEN_FDS="1", LISTEN_PID="1")
        self.assertEqual(self.told()["READY"], "1")
        Client(f"{self.dir}/s").close()


class Stop(WithDaemon):
    options = ("--durability", "none")

    def test_answers_and_syncs(self):
        """SIGTERM in the middle of appends: it ends with status 0, and what was answered is there."""
        handle = self.ready()
        ready = [tokens(self.rng, self.shape, first, 10) for first in range(0, 400, 10)]
        requests = [self.client.send("conversation.append", conversation=handle, first=10 * i, ids=ids, records=records)
                    for i, (ids, records) in enumerate(ready[:20])]
        stopper = threading.Timer(0.01, lambda: self.daemon.process.send_signal(signal.SIGTERM))
        stopper.start()
        stored = 0
        try:
            for i, (ids, records) in enumerate(ready[20:], 20):
                requests.append(self.client.send("conversation.append", conversation=handle, first=10 * i, ids=ids,
                                                 records=records))
            for request in requests:
                stored = self.client.wait(request)["stored"]
        except ConnectionError:
            pass
        except RpcError as error:
            self.assertEqual(error.code, "shutting_down")
        self.assertEqual(self.daemon.process.wait(timeout=20), 0)
        self.assertFalse(os.path.exists(self.daemon.socket))
        self.daemon.start()
        self.client = self.connect()
        self.assertGreaterEqual(self.open()["count"], stored)
        self.assertEqual(self.client.call("stats")["torn_frames"], 0)


def forbid(number, code):
    """From now on this process and its children get that error from the system call (a seccomp filter)."""
    libc = ctypes.CDLL(None, use_errno=True)
    program = struct.pack("=HBBIHBBIHBBIHBBI",
                          0x20, 0, 0, 0,               # load the number of the call
                          0x15, 0, 1, number,          # is it that one?
                          0x06, 0, 0, 0x50000 | code,  # answer with the error
                          0x06, 0, 0, 0x7fff0000)      # else go on
    text = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("=HxxxxxxQ", 4, ctypes.addressof(text))
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.c_char_p(head), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


class IoUring(unittest.TestCase):
    def run_daemon(self, *options, code=0):
        """Answers and figures of a daemon that opens a sealed segment. The kernel may read all of so small a file
        ahead, so that nothing is left for io_uring to do: what it does is tested in tests/store/test_fetch.c."""
        wrap = ["/usr/bin/python3", "-c", "import os, sys; sys.path.insert(0, sys.argv[1]); import test_service as t;"
                f"t.forbid({IO_URING_SETUP}, {code}); os.execv(sys.argv[2], sys.argv[2:])",
                os.path.dirname(os.path.abspath(__file__))] if code else []
        daemon = Daemon(WithDaemon.binary, "--scan-memory-mb", "0", "--scrub-mb-s", "0", *options, wrap=wrap)
        self.addCleanup(daemon.finish)
        shape = geometry(layers=1, kv_heads=1)
        client = Client(daemon.socket)
        known = client.call("model.calibrate", **model(FINGERPRINT, shape))
        opening = {"name": "a", "fingerprint": FINGERPRINT, "geometry": shape, "model": known["id"]}
        handle = client.call("conversation.open", create=True, write=True, **opening)["conversation"]
        for first, (ids, records) in RECORDS:
            client.call("conversation.append", conversation=handle, first=first, ids=ids, records=records)
        for _ in range(500):
            if client.call("stats")["segments_sealed"]:
                break
            time.sleep(0.02)
        client.close()
        self.assertEqual(daemon.stop(), 0)
        self.drop_cache(daemon.data)
        daemon.start()
        client = Client(daemon.socket)
        self.addCleanup(client.close)
        handle = client.call("conversation.open", **opening)["conversation"]
        query = struct.pack("<128f", *[random.Random(7).uniform(-1, 1) for _ in range(128)])
        found = client.call("conversation.lookup", conversation=handle, layer=0, rows=1, queries=query, k=64)["heads"]
        figures = client.call("stats")
        return found, client.call("hello", protocol=1)["cold_pages"], figures, daemon.log_text()

    @staticmethod
    def drop_cache(folder):
        for where, _, names in os.walk(folder):
            for name in names:
                fd = os.open(os.path.join(where, name), os.O_RDONLY)
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)

    def test_forbidden_and_allowed(self):
        wanted, way, figures, _ = self.run_daemon()
        self.assertIn(way, ("io_uring", "madvise"))
        self.assertEqual(figures["io_uring"], way == "io_uring")
        for options, code in ((("--io-uring", "off"), 0), ((), errno.ENOSYS), ((), errno.EPERM), ((), errno.ENOMEM)):
            found, way, others, log = self.run_daemon(*options, code=code)
            self.assertEqual((way, others["io_uring"]), ("madvise", 0))
            self.assertEqual(found, wanted)
            self.assertEqual("io_uring is not allowed here" in log, bool(code))


RECORDS = []


if __name__ == "__main__":
    maker = random.Random(5)
    RECORDS = [(first, tokens(maker, geometry(layers=1, kv_heads=1), first, min(240, 4100 - first)))
               for first in range(0, 4100, 240)]
    main()
