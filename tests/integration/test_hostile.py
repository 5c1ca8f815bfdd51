#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Clients that send what they should not: the daemon answers or hangs up, and serves the others. Usage:
test_hostile.py COLDKVD [TEST ...]"""
import random
import socket

import msgpack

from coldkv_protocol import RpcError
from coldkv_testcase import FINGERPRINT, WithDaemon, main


class Hostile(WithDaemon):
    def raw(self, data, half_close=True):
        """What the daemon says to bytes; it must hang up on its own when they are no message."""
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        end.settimeout(20)
        end.connect(self.daemon.socket)
        answer = b""
        try:
            end.sendall(data)
            if half_close:
                end.shutdown(socket.SHUT_WR)
            while True:
                piece = end.recv(65536)
                if not piece:
                    break
                answer += piece
        except ConnectionError:
            pass
        end.close()
        return answer

    def test_bytes_that_are_no_message(self):
        for data, code in ((b"\xc1", "bad_message"), (b"\x91" * 100, "limit"), (b"\xdd\xff\xff\xff\xff", "limit"),
                           (b"\xc6\xff\xff\xff\xff", "limit"), (b"\xdf\x7f\xff\xff\xff", "limit"),
                           (b"GET / HTTP/1.1\r\n\r\n", "bad_message"),
                           (msgpack.packb([0, -1, "hello", {}]), "bad_message"),
                           (msgpack.packb([1, 1, None, {}]), "bad_message"), (msgpack.packb([5]), "bad_message")):
            answer = msgpack.unpackb(self.raw(data, half_close=False))
            self.assertEqual((answer[0], answer[1], answer[2]["code"]), (2, "error", code), data[:8])

    def test_params_that_are_no_map(self):
        for params in (None, 5, [], "x"):
            answer = msgpack.unpackb(self.raw(msgpack.packb([0, 1, "hello", params])))
            self.assertEqual(answer[2]["code"], "bad_params")

    def test_random_bytes(self):
        rng = random.Random(2)
        request = msgpack.packb([0, 1, "conversation.open", {"name": "x", "fingerprint": FINGERPRINT,
                                                             "geometry": self.shape, "create": True}])
        for _ in range(300):
            data = bytearray(request)
            for _ in range(rng.randrange(1, 8)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            self.raw(bytes(data[:rng.randrange(1, len(data) + 1)]))
            self.raw(rng.randbytes(rng.randrange(1, 400)))
        self.assertEqual(self.client.call("hello", protocol=1)["protocol"], 1)
        self.assertIsNone(self.daemon.process.poll())

    def test_pipelined_flood(self):
        count = 5000
        flood = b"".join(msgpack.packb([0, i, "hello", {"protocol": 1}]) for i in range(count))
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        end.settimeout(20)
        end.connect(self.daemon.socket)
        end.sendall(flood)
        unpacker = msgpack.Unpacker(raw=False)
        seen = set()
        while len(seen) < count:
            unpacker.feed(end.recv(1 << 20))
            seen.update(message[1] for message in unpacker)
        self.assertEqual(seen, set(range(count)))
        end.close()

    def test_reader_that_does_not_read(self):
        handle = self.ready()
        self.append(handle, 0, 200)
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        end.settimeout(2)
        end.connect(self.daemon.socket)
        request = msgpack.packb([0, 1, "stats", {}])
        sent = 0
        try:
            while sent < 64 << 20:
                sent += end.send(request * 1000)
        except TimeoutError:
            pass
        self.assertLess(sent, 64 << 20)
        self.assertEqual(self.client.call("hello", protocol=1)["protocol"], 1)
        end.close()

    def test_message_in_pieces(self):
        data = msgpack.packb([0, 9, "hello", {"protocol": 1, "client": "slow"}])
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        end.settimeout(20)
        end.connect(self.daemon.socket)
        for byte in data:
            end.sendall(bytes([byte]))
        self.assertEqual(msgpack.unpackb(end.recv(65536))[1], 9)
        end.close()

    def test_too_many_handles(self):
        with self.assertRaises(RpcError) as caught:
            for i in range(257):
                self.open(f"n{i}")
        self.assertEqual((caught.exception.code, i), ("limit", 256))


if __name__ == "__main__":
    main()
