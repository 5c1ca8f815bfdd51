#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Lookups of a daemon with a GPU, which a stand-in takes the place of, against those of one without. Usage:
test_gpu.py COLDKVD COLDKVD_WITH_STAND_IN [TEST ...]"""
import os
import re
import subprocess
import sys
import threading
import time

from coldkv_protocol import Client, Daemon, RpcError, geometry, model
from coldkv_records import append, fill, queries
from coldkv_testcase import FINGERPRINT, WithDaemon, main

WITH_GPU = sys.argv.pop(2)
COUNT = 9000


class Gpu(WithDaemon):
    """`client` speaks to a daemon on the processor, `other` to one with a GPU; both have the same records."""
    options = ("--backend", "cpu", "--scrub-mb-s", "0", "--durability", "none")
    gpu_options = ("--backend", "cuda", "--gpu-tokens-min", "1000", "--spin-us", "200", *options[2:])

    def setUp(self):
        super().setUp()
        self.shape = geometry(layers=2, kv_heads=2)
        self.gpu = None

    def begin(self, count=COUNT, *options, **environment):
        os.environ.update(environment)
        self.gpu = Daemon(WITH_GPU, *self.gpu_options, *options)
        for name in environment:
            del os.environ[name]
        self.addCleanup(self.gpu.finish)
        self.other = Client(self.gpu.socket)
        self.addCleanup(self.other.close)
        self.handles = [self.make(client, "c", count) for client in (self.client, self.other)]

    def make(self, client, name, count):
        made = client.call("model.calibrate", **model(FINGERPRINT, self.shape))
        handle = self.open(name, client, model=made["id"])["conversation"]
        fill(client, self.shape, handle, count)
        return handle

    def stats(self, client=None):
        return (client or self.other).call("stats")

    def same(self, seed=1, layer=0, k=16, rows=1, **more):
        """Both give the same bytes."""
        q = b"".join(queries(self.shape, seed * 100 + row) for row in range(rows))
        answers = [client.call("conversation.lookup", conversation=handle, layer=layer, rows=rows, queries=q, k=k,
                               **more) for client, handle in zip((self.client, self.other), self.handles)]
        self.assertEqual(answers[0], answers[1])
        self.assertGreater(len(answers[0]["heads"][0]["tokens"]), 0)

    def test_it_says_so(self):
        self.begin(100)
        hello = self.client.call("hello", protocol=1)
        self.assertEqual((hello["backend"], hello.get("device")), ("cpu", None))
        hello = self.other.call("hello", protocol=1)
        self.assertEqual((hello["backend"], hello["device"]), ("cuda", "a stand-in"))
        self.assertIn("a stand-in", self.gpu.log_text())
        self.assertEqual((self.stats()["gpu"], self.stats(self.client)["gpu"]), (1, 0))
        self.assertEqual(self.stats()["gpu_bytes_max"], 1 << 29)  # half of it

    def test_same_answers(self):
        self.begin()
        seed = 0
        for mode in (0, 1):
            for candidates in (0, 16, 1024, 8000):
                for bounds in ({}, {"from": 4, "before": 5000}, {"from": 4100}, {"before": 8999}, {"from": 8500}):
                    for rows in (1, 3):
                        seed += 1
                        self.same(seed, seed % 2, rows=rows, mode=mode, candidates=candidates, **bounds)
        stats = self.stats()
        self.assertEqual(stats["gpu_lookups"], seed // 5 * 4)
        self.assertEqual((stats["gpu_errors"], stats["gpu_conversations"]), (0, 1))
        self.assertGreater(stats["gpu_bytes"], 0)
        self.assertEqual(stats["scanned_bytes"], self.stats(self.client)["scanned_bytes"])

    def test_same_answers_rescored(self):
        self.begin(COUNT, "--vram-codes-limit", "100")
        for layer in (0, 1):
            self.same(layer=layer)  # brings the signatures
        seed = 2
        for mode in (0, 1):
            for candidates in (0, 16, 40, 8000):
                for bounds in ({}, {"from": 4, "before": 5000}, {"before": 8999}):
                    for rows in (1, 3):
                        seed += 1
                        self.same(seed, seed % 2, rows=rows, mode=mode, candidates=candidates, **bounds)
        stats = self.stats()
        self.assertEqual((stats["gpu_lookups"], stats["gpu_rescored"], stats["gpu_errors"]), (seed, seed - 2, 0))
        self.assertEqual(stats["gpu_code_bytes_max"], 100 << 20)
        self.assertEqual(stats["gpu_code_bytes"], 2 * 2 * 2 * 8192 * 32)  # layers, heads, pieces of 8192 tokens
        for name in ("fetched_candidates", "winners", "scanned_bytes"):
            self.assertEqual(stats[name], self.stats(self.client)[name])

    def test_rescored_with_tokens_that_come(self):
        self.begin(2000, "--vram-codes-limit", "100")
        self.same()
        for end in range(2001, 2030):
            for client, handle in zip((self.client, self.other), self.handles):
                fill(client, self.shape, handle, end, end - 1)
            self.same(end)
        self.assertEqual(self.stats()["gpu_rescored"], 28)  # once the codes are there, every token comes at once

    def test_too_little_memory_for_codes(self):
        self.begin(COUNT, "--vram-codes-limit", "1")  # one layer's, and not the other's
        for seed in range(8):
            self.same(seed, seed % 2)
        self.assertEqual((self.stats()["gpu_lookups"], self.stats()["gpu_rescored"]), (8, 3))
        self.assertLessEqual(self.stats()["gpu_code_bytes"], 1 << 20)

    def test_tokens_that_come(self):
        self.begin(990)
        for end in (990, 1010, 1400, 4095, 4097, 5500, 8193):
            for client, handle in zip((self.client, self.other), self.handles):
                first = client.call("conversation.info", name="c")["tokens"]
                fill(client, self.shape, handle, end, first)
            for seed in range(4):
                self.same(seed, seed % 2)
        self.assertEqual(self.stats()["gpu_lookups"], 4 * 6)

    def test_too_little_memory(self):
        self.begin(COUNT, "--vram-limit", "1")  # one layer's columns, and not the other's
        for seed in range(8):
            self.same(seed, seed % 2)
        self.assertEqual(self.stats()["gpu_lookups"], 4)
        self.assertLessEqual(self.stats()["gpu_bytes"], 1 << 20)

    def test_a_gpu_with_less_than_it_says(self):
        self.begin(COUNT, FAKE_GPU_BYTES="700000")
        for seed in range(8):
            self.same(seed, seed % 2)
        stats = self.stats()
        self.assertEqual((stats["gpu_lookups"], stats["gpu_errors"], stats["gpu"]), (4, 1, 1))

    def test_a_gpu_that_fails(self):
        self.begin(COUNT, FAKE_GPU_FAIL_SCANS="2")
        for seed in range(6):
            self.same(seed)
        stats = self.stats()
        self.assertEqual((stats["gpu_lookups"], stats["gpu_errors"], stats["gpu"]), (4, 2, 1))
        self.assertEqual(len(re.findall("the GPU failed", self.gpu.log_text())), 1)

    def test_a_gpu_that_always_fails(self):
        self.begin(COUNT, FAKE_GPU_FAIL_SCANS="1000")
        for seed in range(6):
            self.same(seed)
        stats = self.stats()
        self.assertEqual((stats["gpu_lookups"], stats["gpu_errors"], stats["gpu"]), (0, 3, 0))

    def test_deleted_and_gone(self):
        self.begin()
        self.same()
        self.assertEqual(self.stats()["gpu_conversations"], 1)
        self.other.call("conversation.close", conversation=self.handles[1])
        self.same_after_reopening()
        self.other.call("conversation.close", conversation=self.handles[1])
        for _ in range(1000):
            try:
                self.other.call("conversation.delete", name="c", confirm="c")
                break
            except RpcError as error:
                self.assertEqual(error.code, "busy")
                time.sleep(0.01)
        else:
            self.fail("still open")
        stats = self.stats()
        self.assertEqual((stats["gpu_conversations"], stats["gpu_bytes"]), (0, 0))

    def same_after_reopening(self):
        bytes_before = self.stats()["gpu_bytes"]
        self.handles[1] = self.open("c", self.other)["conversation"]
        self.same(7)
        self.assertEqual(self.stats()["gpu_bytes"], bytes_before)

    def test_a_segment_that_goes_bad(self):
        self.begin()
        self.same()
        for daemon, client in ((self.daemon, self.client), (self.gpu, self.other)):
            self.sealed(client)
            extents = client.call("conversation.info", name="c")["extents"]
            text = extents[1]["id"].hex()
            os.truncate(os.path.join(daemon.data, "segments", text[:2], text + ".seg"), 4096)
        for client, handle in zip((self.client, self.other), self.handles):
            try:
                client.call("conversation.lookup", conversation=handle, layer=0, rows=1, k=16,
                            queries=queries(self.shape, 3))
            except RpcError as error:
                self.assertEqual(error.code, "io")
        for seed in range(4):
            self.same(seed, seed % 2)  # without that segment
        self.assertEqual(self.stats()["gpu_dropped"], 1)
        self.assertGreaterEqual(self.stats()["gpu_lookups"], 4)

    def sealed(self, client):
        for _ in range(1000):
            if client.call("stats")["segments_sealed"] == COUNT // 4096:
                return
            time.sleep(0.01)
        self.fail("not sealed")

    def test_many_at_a_time(self):
        self.begin()
        wrong = []

        def work(number):
            client = Client(self.gpu.socket)
            handle = self.open("c", client, write=False, create=False)["conversation"]
            for seed in range(15):
                q = queries(self.shape, seed)
                got = client.call("conversation.lookup", conversation=handle, layer=(seed + number) % 2, rows=1,
                                  queries=q, k=16, before=COUNT)
                if got != wanted[seed, (seed + number) % 2]:
                    wrong.append((number, seed))
            client.close()

        wanted = {(seed, layer): self.client.call("conversation.lookup", conversation=self.handles[0], layer=layer,
                                                  rows=1, queries=queries(self.shape, seed), k=16, before=COUNT)
                  for seed in range(15) for layer in range(2)}
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for step in range(10):
            append(self.other, self.shape, self.handles[1], COUNT + step, 1)
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])

    def test_large_lookups_do_not_keep_the_gpu(self):
        """Small ones want its memory for results, too, which threads that yield to others must not sit on."""
        self.begin(1300, "--threads", "8", "--vram-codes-limit", "0")
        answered, ends = [0] * 4, time.monotonic() + 4

        def work(number):
            client = Client(self.gpu.socket)
            handle = self.open("c", client, write=False, create=False)["conversation"]
            q = b"".join(queries(self.shape, row) for row in range(512))
            while time.monotonic() < ends:
                client.call("conversation.lookup", conversation=handle, layer=0, rows=512, queries=q, k=4,
                            candidates=1024)
                answered[number] += 1
            client.close()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(answered))]
        for thread in threads:
            thread.start()
        small = 0
        while time.monotonic() < ends:
            self.other.call("conversation.lookup", conversation=self.handles[1], layer=0, rows=1, k=4, candidates=16,
                            queries=queries(self.shape, 1))
            small += 1
        for thread in threads:
            thread.join()
        self.assertGreater(min(answered), 0)
        self.assertGreater(small, 6 * sum(answered))


class Choice(WithDaemon):
    """Which backend it takes."""

    def start(self, *options, **environment):
        command = [self.binary, "--data", os.path.join(self.daemon.dir, "d"), "--socket",
                   os.path.join(self.daemon.dir, "t"), *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False,
                              env={**os.environ, **environment})

    def test_no_gpu(self):
        # where there is one, it is hidden
        result = self.start("--backend", "cuda", CUDA_VISIBLE_DEVICES="")
        self.assertEqual(result.returncode, 1)
        self.assertRegex(result.stderr, "backend cuda: no GPU")

    def test_wrong_name(self):
        result = self.start("--backend", "tpu")
        self.assertEqual(result.returncode, 2)
        self.assertIn("none of auto, cpu, cuda", result.stderr)

    def test_auto(self):
        text = self.daemon.log_text()
        self.assertRegex(text, "backend (cpu|cuda: )")
        if "backend cpu" in text:
            self.assertRegex(text, "scans run on the processor: no GPU")


if __name__ == "__main__":
    main()
