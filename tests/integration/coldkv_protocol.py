# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""A client of the coldkv protocol written from PROTOCOL.md and RECORD.md alone, and a daemon to try it on."""
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time

import msgpack

HEAD_DIM = 128
RECORD_BYTES = 104


class RpcError(Exception):
    def __init__(self, fault):
        super().__init__(f"{fault['code']}: {fault['message']}")
        self.code = fault["code"]


class Client:
    """One connection; requests are answered by call(), or sent ahead with send() and collected with wait()."""

    def __init__(self, path, timeout=20):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(path)
        except OSError:
            self.socket.close()
            raise
        self.unpacker = msgpack.Unpacker(raw=False, max_buffer_size=64 << 20, strict_map_key=True)
        self.next_id = 0
        self.answers = {}

    def send(self, method, **params):
        self.next_id += 1
        try:
            self.socket.sendall(msgpack.packb([0, self.next_id, method, params], use_bin_type=True))
        except BrokenPipeError:
            pass  # it has hung up; what it said before can still be read
        return self.next_id

    def receive(self):
        """The next message of any kind; None when the daemon hung up."""
        while True:
            for message in self.unpacker:
                return message
            data = self.socket.recv(1 << 20)
            if not data:
                return None
            self.unpacker.feed(data)

    def wait(self, request):
        while request not in self.answers:
            message = self.receive()
            if message is None:
                raise ConnectionError("the daemon hung up")
            if message[0] == 2:
                raise RpcError(message[2])
            self.answers[message[1]] = message
        _, _, fault, result = self.answers.pop(request)
        if fault is not None:
            raise RpcError(fault)
        return result

    def call(self, method, **params):
        return self.wait(self.send(method, **params))

    def close(self):
        self.socket.close()


class Daemon:
    """A coldkvd on a fresh directory, or on that which `data` names."""

    def __init__(self, binary, *options, wrap=(), data=None, start=True):
        self.binary, self.options, self.wrap = binary, options, list(wrap)
        self.dir = tempfile.mkdtemp(prefix="coldkv-test-")
        self.data = data or os.path.join(self.dir, "data")
        self.socket = os.path.join(self.dir, "s")
        self.log = os.path.join(self.dir, "log")
        self.process = None
        if start:
            self.start()

    def launch(self):
        """Starts it without waiting for it."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.wrap + [self.binary, "--data", self.data, "--socket", self.socket, *self.options],
                stdout=log, stderr=log)

    def greet(self):
        """Raises an error unless it answers. A connection alone says little: a child of a daemon that was killed a
        moment ago may still hold the old socket, and resets it then."""
        client = Client(self.socket)
        try:
            client.call("hello", protocol=1)
        except RpcError:
            pass  # an answer, too
        finally:
            client.close()

    def start(self):
        self.launch()
        for _ in range(1000):
            try:
                self.greet()
                return
            except (ConnectionError, FileNotFoundError):
                if self.process.poll() is not None:
                    break
                time.sleep(0.02)
        raise RuntimeError("coldkvd did not start:\n" + self.log_text())

    def log_text(self):
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return log.read()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        """SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def finish(self):
        if self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.dir, ignore_errors=True)


def crc32c(data, crc=0):
    """CRC-32C bit by bit, from its polynomial."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def geometry(layers=2, kv_heads=2, group=1, head_dim=HEAD_DIM, window=2048):
    freqs = struct.pack(f"<{head_dim // 2}d", *[10000.0 ** (-2 * i / head_dim) for i in range(head_dim // 2)])
    return {"layers": layers, "kv_heads": kv_heads, "group": group, "head_dim": head_dim, "window": window,
            "rope_layout": 1, "rope_dims": head_dim, "rope_freqs": freqs}


def model(fingerprint, shape):
    means = bytes(4 * shape["layers"] * shape["kv_heads"] * shape["head_dim"])
    return {"name": "test", "fingerprint": fingerprint, "geometry": shape, "basis": "hadamard", "codec": 1,
            "seed": 7, "tokens": 192, "mean_k": means, "mean_v": means}


def record(rng, layer, head, token):
    """A record of random codes with valid scales and CRC."""
    body = bytearray(rng.randbytes(100))
    body[16:18] = struct.pack("<e", rng.uniform(0.1, 2.0))
    body[98:100] = struct.pack("<e", rng.uniform(0.1, 2.0))
    place = struct.pack("<HHQ", layer, head, token)
    return bytes(body) + struct.pack("<I", crc32c(bytes(body) + place))


def tokens(rng, shape, first, count):
    """ids and records of `count` tokens, as conversation.append wants them."""
    ids = struct.pack(f"<{count}I", *[rng.randrange(1000) for _ in range(count)])
    records = b"".join(record(rng, layer, head, token) for token in range(first, first + count)
                       for layer in range(shape["layers"]) for head in range(shape["kv_heads"]))
    return ids, records
