#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""The daemon seen from outside, by a client that knows only PROTOCOL.md. Usage: test_protocol.py COLDKVD [TEST ...]"""
import os
import random
import socket
import struct
import subprocess
import sys
import time
import unittest

import msgpack
import numpy as np

from coldkv_protocol import Client, Daemon, RpcError, RECORD_BYTES, crc32c, geometry, model, tokens

BINARY = None
FINGERPRINT = bytes(range(32))
NONE = 0xFFFFFFFF
LEVELS = np.rint(1024 * np.array([0.24509418, 0.756005287, 1.34390926, 2.15194559], np.float32)).astype(np.int64)


def scores_of(records, query, mode):
    """Scan and rescore scores by retrieval/README.md, for head_dim 128."""
    raw = np.frombuffer(records, np.uint8).reshape(-1, RECORD_BYTES)
    negative = np.unpackbits(raw[:, :16], axis=1, bitorder="little").astype(np.int64)
    scale = raw[:, 16:18].copy().view(np.float16)[:, 0].astype(np.float32)
    q = query.astype(np.float64)
    if mode == 1:
        scan = -np.sum(negative != (query < 0), axis=1).astype(np.float32)
    else:
        q4 = np.clip(np.rint(7 * q / np.max(np.abs(q))), -7, 7).astype(np.int64)
        scan = ((1 - 2 * negative) @ q4).astype(np.float32) * scale
    low = np.unpackbits(raw[:, 18:34], axis=1, bitorder="little").astype(np.int64)
    high = np.unpackbits(raw[:, 34:50], axis=1, bitorder="little").astype(np.int64)
    q12 = np.rint(2047 * q / np.max(np.abs(q))).astype(np.int64)
    final = (((1 - 2 * negative) * LEVELS[low + 2 * high]) @ q12).astype(np.float32) * scale
    return scan, final


def best(scores, among, count):
    """Indices of the best, ties to the lower index."""
    among = np.sort(among)
    return among[np.argsort(-scores[among], kind="stable")[:count]]


class WithDaemon(unittest.TestCase):
    options = ()

    def setUp(self):
        self.daemon = Daemon(BINARY, *self.options)
        self.addCleanup(self.daemon.finish)
        self.client = self.connect()
        self.rng = random.Random(1)
        self.shape = geometry()

    def connect(self):
        client = Client(self.daemon.socket)
        self.addCleanup(client.close)
        return client

    def calibrated(self, fingerprint=FINGERPRINT):
        return self.client.call("model.calibrate", **model(fingerprint, self.shape))

    def open(self, name="c", client=None, **more):
        return (client or self.client).call("conversation.open", name=name, fingerprint=FINGERPRINT,
                                            geometry=self.shape, **{"create": True, "write": True, **more})

    def ready(self, name="c"):
        """An open conversation with a model."""
        return self.open(name, model=self.calibrated()["id"])["conversation"]

    def append(self, handle, first, count, ahead=b"", **more):
        ids, records = tokens(self.rng, self.shape, first, count)
        answer = self.client.call("conversation.append", conversation=handle, first=first, ids=ids, records=records,
                                  ahead=ahead, **more)
        return ids, records, answer

    def refused(self, code, method, client=None, **params):
        with self.assertRaises(RpcError) as caught:
            (client or self.client).call(method, **params)
        self.assertEqual(caught.exception.code, code, str(caught.exception))


class Basics(WithDaemon):
    def test_hello(self):
        answer = self.client.call("hello", protocol=1, client="test")
        self.assertEqual(answer["protocol"], 1)
        self.assertEqual(answer["durability"], "always")
        self.refused("version", "hello", protocol=2)

    def test_unknown_and_unsupported(self):
        self.refused("unknown_method", "nonsense")
        for name in ("fork", "match_prefix", "feedback"):
            self.refused("not_supported", "conversation." + name)

    def test_model_is_frozen(self):
        first = self.calibrated()
        other = model(FINGERPRINT, self.shape)
        other["mean_k"] = b"\0\0\x80?" * (len(other["mean_k"]) // 4)
        again = self.client.call("model.calibrate", **other)
        self.assertEqual(again["id"], first["id"])
        self.assertEqual(again["mean_k"], first["mean_k"])
        self.assertEqual(self.client.call("model.get", id=first["id"])["mean_v"], first["mean_v"])
        self.assertEqual(self.client.call("model.get", fingerprint=FINGERPRINT)["id"], first["id"])
        listed = self.client.call("model.list")["models"]
        self.assertEqual([m["id"] for m in listed], [first["id"]])
        self.assertNotIn("mean_k", listed[0])
        self.refused("model_mismatch", "model.calibrate", **model(FINGERPRINT, geometry(layers=3)))
        self.refused("no_model", "model.get", id=bytes(16))
        self.refused("no_model", "model.get", fingerprint=bytes(32))
        self.refused("bad_params", "model.get")

    def test_model_checks(self):
        good = model(FINGERPRINT, self.shape)
        self.refused("bad_params", "model.calibrate", **{**good, "mean_k": good["mean_k"][:-4]})
        self.refused("bad_params", "model.calibrate", **{**good, "mean_v": b"\0\0\xc0\x7f" + good["mean_v"][4:]})
        self.refused("not_supported", "model.calibrate", **{**good, "basis": "stored"})
        for change in ({"head_dim": 68}, {"head_dim": 256}, {"layers": 0}, {"rope_dims": 127}, {"rope_layout": 3},
                       {"rope_freqs": b""}, {"layers": "2"}):
            self.refused("bad_params", "model.calibrate", **{**good, "geometry": {**self.shape, **change}})
        self.refused("limit", "model.calibrate", **{**good, "geometry": {**self.shape, "layers": 1024, "kv_heads": 8}})

    def test_open_checks(self):
        self.refused("no_conversation", "conversation.open", name="none", fingerprint=FINGERPRINT,
                     geometry=self.shape)
        self.ready()
        self.refused("model_mismatch", "conversation.open", name="c", fingerprint=bytes(32), geometry=self.shape)
        self.refused("model_mismatch", "conversation.open", name="c", fingerprint=FINGERPRINT,
                     geometry=geometry(layers=3))
        for name in ("", "x" * 256, "a\nb", b"\xff".decode("latin1") * 200, 5):
            self.refused("bad_params", "conversation.open", name=name, fingerprint=FINGERPRINT, geometry=self.shape)
        self.refused("no_model", "conversation.open", name="d", fingerprint=FINGERPRINT, geometry=self.shape,
                     create=True, model=bytes(16))

    def test_lease(self):
        handle = self.ready()
        other = self.connect()
        self.refused("busy", "conversation.open", client=other, name="c", fingerprint=FINGERPRINT,
                     geometry=self.shape, write=True)
        reader = self.open(client=other, write=False)["conversation"]
        ids, records = tokens(self.rng, self.shape, 0, 1)
        self.refused("not_open", "conversation.append", client=other, conversation=reader, first=0, ids=ids,
                     records=records)
        self.refused("not_open", "conversation.append", client=other, conversation=reader + 1, first=0, ids=ids,
                     records=records)
        self.assertEqual(self.open()["conversation"], handle)
        self.client.close()
        for _ in range(100):
            try:
                self.open(client=other)
                break
            except RpcError as error:
                self.assertEqual(error.code, "busy")
                time.sleep(0.02)
        self.assertEqual(self.open(client=other)["conversation"], reader)

    def test_list_info_delete(self):
        handle = self.ready("b")
        for name in ("a", "ü", "c c"):
            self.open(name)
        self.append(handle, 0, 3, ahead=struct.pack("<2I", 8, 9))
        listed = self.client.call("conversation.list")
        self.assertEqual([c["name"] for c in listed["conversations"]], ["a", "b", "c c", "ü"])
        page = self.client.call("conversation.list", after="a", limit=2)
        self.assertEqual(([c["name"] for c in page["conversations"]], page["more"]), (["b", "c c"], True))
        info = self.client.call("conversation.info", name="b")
        self.assertEqual((info["tokens"], info["durable"], info["ahead"]), (3, 3, 2))
        self.assertGreater(info["bytes"], 3 * 4 * RECORD_BYTES)
        self.refused("no_conversation", "conversation.info", name="zz")
        self.refused("bad_params", "conversation.delete", name="b", confirm="a")
        self.refused("busy", "conversation.delete", name="b", confirm="b")
        self.client.call("conversation.close", conversation=handle)
        self.refused("not_open", "conversation.close", conversation=handle)
        self.client.call("conversation.delete", name="b", confirm="b")
        self.refused("no_conversation", "conversation.info", name="b")
        self.assertEqual(self.open("b")["count"], 0)

    def test_clean_stop(self):
        self.append(self.ready(), 0, 5)
        self.assertEqual(self.daemon.stop(), 0, self.daemon.log_text())
        self.assertFalse(os.path.exists(self.daemon.socket))

    def test_second_daemon_is_refused(self):
        other = subprocess.run([BINARY, "--data", self.daemon.data, "--socket", self.daemon.socket + "2"],
                               capture_output=True, text=True, timeout=30, check=False)
        self.assertEqual(other.returncode, 1)
        self.assertIn(str(self.daemon.process.pid), other.stderr)
        other = subprocess.run([BINARY, "--data", self.daemon.data + "2", "--socket", self.daemon.socket],
                               capture_output=True, text=True, timeout=30, check=False)
        self.assertEqual(other.returncode, 1)
        self.assertIn("another daemon", other.stderr)
        self.assertEqual(self.client.call("hello", protocol=1)["protocol"], 1)

    def test_options(self):
        for arguments in (["--nonsense"], ["--threads", "0"], ["--durability", "often"], ["extra"],
                          ["--config", "/nonexistent"]):
            self.assertNotEqual(subprocess.run([BINARY, *arguments], capture_output=True, check=False).returncode, 0)
        for option in ("--help", "--version"):
            answer = subprocess.run([BINARY, option], capture_output=True, text=True, check=True)
            self.assertIn("coldkvd", answer.stdout)
        config = os.path.join(self.daemon.dir, "conf")
        with open(config, "w", encoding="utf-8") as file:
            file.write("# comment\ndurability = none\nthreads = x\n")
        answer = subprocess.run([BINARY, "--config", config], capture_output=True, text=True, check=False)
        self.assertIn("line 3", answer.stderr)


class Tokens(WithDaemon):
    def test_append_and_read(self):
        handle = self.ready()
        ids, records, answer = self.append(handle, 0, 10, ahead=struct.pack("<3I", 1, 2, 3))
        self.assertEqual(answer, {"stored": 10, "durable": 10})
        more_ids, more, _ = self.append(handle, 10, 7, ahead=struct.pack("<2I", 4, 5))
        whole = np.frombuffer(records + more, np.uint8).reshape(17, 2, 2, RECORD_BYTES)
        for layer in range(2):
            for head in range(2):
                got = self.client.call("conversation.read", conversation=handle, layer=layer, head=head, first=3,
                                       count=12)
                self.assertEqual(got["records"], whole[3:15, layer, head].tobytes())
        got = self.client.call("conversation.tokens", conversation=handle, first=5, count=100)
        self.assertEqual(got["ids"], (ids + more_ids)[20:] + struct.pack("<2I", 4, 5))
        self.refused("range", "conversation.read", conversation=handle, layer=0, head=0, first=10, count=8)
        self.refused("range", "conversation.read", conversation=handle, layer=2, head=0, first=0, count=1)
        self.refused("range", "conversation.read", conversation=handle, layer=0, head=2, first=0, count=1)

    def test_append_again(self):
        handle = self.ready()
        ids, records, _ = self.append(handle, 0, 8)
        token = 4 * RECORD_BYTES
        again = self.client.call("conversation.append", conversation=handle, first=2, ids=ids[8:24],
                                 records=records[2 * token:6 * token])
        self.assertEqual(again, {"stored": 8, "durable": 8})
        new_ids, new = tokens(self.rng, self.shape, 8, 2)
        over = self.client.call("conversation.append", conversation=handle, first=6, ids=ids[24:] + new_ids,
                                records=records[6 * token:] + new)
        self.assertEqual(over["stored"], 10)
        other_ids, other = tokens(self.rng, self.shape, 6, 2)
        self.refused("conflict", "conversation.append", conversation=handle, first=6, ids=ids[24:], records=other)
        self.refused("conflict", "conversation.append", conversation=handle, first=6, ids=other_ids,
                     records=records[6 * token:])
        self.refused("gap", "conversation.append", conversation=handle, first=11, ids=new_ids,
                     records=tokens(self.rng, self.shape, 11, 2)[1])
        self.assertEqual(self.open()["count"], 10)

    def test_bad_records(self):
        handle = self.ready()
        ids, records = tokens(self.rng, self.shape, 0, 2)
        moved = tokens(self.rng, self.shape, 1, 2)[1]
        flipped = bytearray(records)
        flipped[700] ^= 4
        bad_scale = bytearray(records)
        bad_scale[16:18] = b"\x00\xfc"
        bad_scale[100:104] = struct.pack("<I", crc32c(bytes(bad_scale[:100]) + struct.pack("<HHQ", 0, 0, 0)))
        for bad in (moved, bytes(flipped), bytes(bad_scale)):
            self.refused("bad_record", "conversation.append", conversation=handle, first=0, ids=ids, records=bad)
        self.refused("bad_params", "conversation.append", conversation=handle, first=0, ids=ids, records=records[104:])
        self.refused("bad_params", "conversation.append", conversation=handle, first=0, ids=ids, records=records[1:])
        self.refused("bad_params", "conversation.append", conversation=handle, first=0, ids=bytes(4 * 257), records=b"")
        self.assertEqual(self.open()["count"], 0)

    def test_ahead_without_model(self):
        handle = self.open("young")["conversation"]
        ahead = struct.pack("<100I", *range(100))
        answer = self.client.call("conversation.append", conversation=handle, first=0, ahead=ahead, sync=True)
        self.assertEqual(answer, {"stored": 0, "durable": 0})
        ids, records = tokens(self.rng, self.shape, 0, 1)
        self.refused("no_model", "conversation.append", conversation=handle, first=0, ids=ids, records=records)
        self.daemon.kill()
        self.daemon.start()
        self.client = self.connect()
        self.assertEqual(self.open("young")["ahead"], ahead)
        handle = self.open("young", model=self.calibrated()["id"])["conversation"]
        self.append(handle, 0, 4)
        self.assertEqual(self.open("young")["ahead"], b"")

    def test_kill_keeps_what_was_acknowledged(self):
        self.shape = geometry(layers=1, kv_heads=1)
        handle = self.ready()
        ids = records = b""
        for round_number in range(5):
            for _ in range(4):
                first = len(ids) // 4
                more_ids, more, answer = self.append(handle, first, 250, ahead=struct.pack("<I", first))
                self.assertEqual(answer["durable"], first + 250)
                ids, records = ids + more_ids, records + more
            self.daemon.kill()
            self.daemon.start()
            self.client = self.connect()
            opened = self.open()
            handle = opened["conversation"]
            self.assertEqual((opened["count"], opened["durable"]), (len(ids) // 4,) * 2)
            self.assertEqual(opened["ahead"], struct.pack("<I", len(ids) // 4 - 250))
        got = b""
        while len(got) < len(records):
            got += self.client.call("conversation.read", conversation=handle, layer=0, head=0,
                                    first=len(got) // RECORD_BYTES, count=500)["records"]
        self.assertEqual(got, records)
        self.assertEqual(self.client.call("conversation.tokens", conversation=handle, first=0, count=6000)["ids"],
                         ids + struct.pack("<I", len(ids) // 4 - 250))
        for _ in range(200):
            if self.client.call("conversation.info", name="c").get("extents"):
                break
            time.sleep(0.05)
        extents = self.client.call("conversation.info", name="c")["extents"]
        self.assertEqual([(e["kind"], e["first"], e["count"]) for e in extents], [(0, 0, 4096)])


class Lookups(WithDaemon):
    def brute_force(self, records, query, mode, k, candidates, first, before):
        scan, final = scores_of(records, query, mode)
        chosen = best(scan, np.arange(first, before), candidates)
        return best(final, chosen, k), final

    def check(self, handle, records, count, layer, **params):
        """One lookup against brute force over everything."""
        rows, k = params["rows"], params["k"]
        queries = np.array([self.rng.gauss(0, 1) for _ in range(rows * 2 * 128)], np.float32).reshape(rows, 2, 128)
        answer = self.client.call("conversation.lookup", conversation=handle, layer=layer,
                                  queries=queries.tobytes(), **params)
        whole = np.frombuffer(records, np.uint8).reshape(count, 2, 2, RECORD_BYTES)
        first, before = params.get("from", 0), min(params.get("before", count), count)
        candidates = params.get("candidates") or min(max((before - first) // 32, 1024), 4096)
        self.assertEqual(answer["scanned"], before - first)
        self.assertEqual(answer["candidates"], candidates)
        for head in range(2):
            part = answer["heads"][head]
            union = np.frombuffer(part["tokens"], np.uint64)
            self.assertTrue(np.all(np.diff(union.astype(np.int64)) > 0))
            self.assertEqual(part["records"], whole[union.astype(int), layer, head].tobytes())
            index = np.frombuffer(part["index"], np.uint32).reshape(rows, k)
            scores = np.frombuffer(part["scores"], np.float32).reshape(rows, k)
            for row in range(rows):
                expected, final = self.brute_force(whole[:, layer, head].tobytes(), queries[row, head],
                                                   params.get("mode", 0), k, candidates, first, before)
                got = index[row][index[row] != NONE]
                np.testing.assert_array_equal(union[got], expected)
                np.testing.assert_array_equal(scores[row][:len(got)], final[expected])
                self.assertTrue(np.all(scores[row][len(got):] == 0))

    def test_against_brute_force(self):
        handle = self.ready()
        records = b""
        for first in range(0, 600, 200):
            records += self.append(handle, first, 200)[1]
        for mode in (0, 1):
            self.check(handle, records, 600, 0, rows=1, k=64, mode=mode)
            self.check(handle, records, 600, 1, rows=5, k=7, candidates=20, mode=mode)
            self.check(handle, records, 600, 1, rows=2, k=16, candidates=100, mode=mode, **{"from": 4, "before": 333})
            self.check(handle, records, 600, 0, rows=1, k=64, mode=mode, **{"from": 10, "before": 20})
        stats = self.client.call("stats")
        self.assertEqual(stats["bad_records"], 0)
        self.assertGreater(stats["scanned_bytes"], 0)

    def test_only_candidates_are_fetched(self):
        self.shape = geometry(layers=1, kv_heads=1)
        handle = self.ready()
        for first in range(0, 2000, 250):
            self.append(handle, first, 250)
        query = np.array([self.rng.gauss(0, 1) for _ in range(128)], np.float32).tobytes()
        before = self.client.call("stats")
        self.client.call("conversation.lookup", conversation=handle, layer=0, rows=1, queries=query, k=8,
                         candidates=50)
        after = self.client.call("stats")
        change = {name: after[name] - before[name] for name in after}
        self.assertEqual(change["scanned_bytes"], 2000 * 18)
        self.assertEqual((change["fetched_candidates"], change["winners"]), (50, 8))
        self.assertEqual(change["fetched_bytes"], 50 * 34 + 8 * 104)

    def test_append_then_lookup_unanswered(self):
        handle = self.ready()
        query = np.ones((1, 2, 128), np.float32).tobytes()
        for first in range(0, 40, 4):
            ids, records = tokens(self.rng, self.shape, first, 4)
            append = self.client.send("conversation.append", conversation=handle, first=first, ids=ids,
                                      records=records)
            lookup = self.client.send("conversation.lookup", conversation=handle, layer=0, rows=1, queries=query, k=1)
            self.assertEqual(self.client.wait(lookup)["scanned"], first + 4)
            self.assertEqual(self.client.wait(append)["stored"], first + 4)

    def test_checks(self):
        handle = self.ready()
        query = np.ones((1, 2, 128), np.float32)
        good = {"conversation": handle, "layer": 0, "rows": 1, "queries": query.tobytes(), "k": 4}
        empty = self.client.call("conversation.lookup", **good)
        self.assertEqual(empty["scanned"], 0)
        self.assertEqual(empty["heads"][0]["index"], b"\xff" * 16)
        query[0, 1, 5] = np.nan
        for bad in ({"queries": query.tobytes()}, {"rows": 2}, {"k": 0}, {"k": 2000}, {"mode": 2},
                    {"candidates": 3}, {"candidates": 20000}, {"rows": 5000}, {"queries": "text"}):
            self.refused("bad_params", "conversation.lookup", **{**good, **bad})
        self.refused("range", "conversation.lookup", **{**good, "layer": 2})
        self.refused("limit", "conversation.lookup", **{**good, "rows": 1024, "k": 1024,
                                                        "queries": bytes(1024 * 2 * 512)})


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
    def test_finds_a_flipped_bit(self):
        handle = self.ready()
        self.append(handle, 0, 50)
        self.append(handle, 50, 50)

        def verify():
            self.client.call("verify")
            for _ in range(200):
                time.sleep(0.02)
                answer = self.client.call("verify")
                if answer["finished_s"]:
                    return answer
            return self.fail("verify does not end")

        self.assertEqual(verify()["bad"], 0)
        path = next(os.path.join(where, name) for where, _, names in os.walk(self.daemon.data) for name in names
                    if name.startswith("log-"))
        with open(path, "r+b") as file:
            file.seek(5000)
            byte = file.read(1)
            file.seek(5000)
            file.write(bytes([byte[0] ^ 1]))
        for _ in range(100):
            answer = verify()
            if answer["bad"]:
                break
        self.assertGreater(answer["bad"], 0)
        self.assertIn("log-", answer["problems"][0]["path"])


if __name__ == "__main__":
    BINARY = sys.argv.pop(1)
    unittest.main(verbosity=2)
