#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""The daemon seen from outside, by a client that knows only PROTOCOL.md. Usage: test_protocol.py COLDKVD [TEST ...]"""
import os
import random
import struct
import subprocess
import time

import numpy as np

from coldkv_protocol import RECORD_BYTES, RpcError, crc32c, geometry, model, tokens
from coldkv_testcase import FINGERPRINT, WithDaemon, main

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
        other = subprocess.run([self.binary, "--data", self.daemon.data, "--socket", self.daemon.socket + "2"],
                               capture_output=True, text=True, timeout=30, check=False)
        self.assertEqual(other.returncode, 1)
        self.assertIn(str(self.daemon.process.pid), other.stderr)
        other = subprocess.run([self.binary, "--data", self.daemon.data + "2", "--socket", self.daemon.socket],
                               capture_output=True, text=True, timeout=30, check=False)
        self.assertEqual(other.returncode, 1)
        self.assertIn("another daemon", other.stderr)
        self.assertEqual(self.client.call("hello", protocol=1)["protocol"], 1)

    def test_options(self):
        for arguments in (["--nonsense"], ["--threads", "0"], ["--durability", "often"], ["extra"],
                          ["--config", "/nonexistent"]):
            answer = subprocess.run([self.binary, *arguments], capture_output=True, check=False)
            self.assertNotEqual(answer.returncode, 0)
        for option in ("--help", "--version"):
            answer = subprocess.run([self.binary, option], capture_output=True, text=True, check=True)
            self.assertIn("coldkvd", answer.stdout)
        config = os.path.join(self.daemon.dir, "conf")
        with open(config, "w", encoding="utf-8") as file:
            file.write("# comment\ndurability = none\nthreads = x\n")
        answer = subprocess.run([self.binary, "--config", config], capture_output=True, text=True, check=False)
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


if __name__ == "__main__":
    main()
