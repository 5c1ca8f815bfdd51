#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""The coldkv command on an archive, with and without a daemon, whole and damaged.

Usage: test_command.py COLDKV MAKE_ARCHIVE COLDKVD [TEST ...]"""
import glob
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import unittest

import numpy as np

from coldkv_protocol import Daemon

COLDKV = MAKE_ARCHIVE = COLDKVD = None
CAREFUL = "caf\u00e9 \"\\' \U0001f600 / \u4e2d"
PAGE = 4096


class WithArchive(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.base = tempfile.mkdtemp(prefix="coldkv-command-")
        cls.addClassCleanup(shutil.rmtree, cls.base)
        made = subprocess.run([MAKE_ARCHIVE, os.path.join(cls.base, "made")], stdout=subprocess.PIPE, check=True)
        cls.truth = json.loads(made.stdout)

    def setUp(self):
        """Every test gets a copy of its own."""
        self.data = os.path.join(tempfile.mkdtemp(dir=self.base), "archive")
        shutil.copytree(os.path.join(self.base, "made"), self.data)
        self.segment, = glob.glob(f"{self.data}/segments/*/*.seg")
        self.model, = glob.glob(f"{self.data}/models/*")
        logs = sorted(glob.glob(f"{self.data}/conversations/*/log-*"), key=os.path.getsize)
        self.short_log, self.log = logs
        self.meta = os.path.join(os.path.dirname(self.log), "meta")

    def coldkv(self, *arguments, status=0, **environment):
        """Runs the command; returns its output and its complaints."""
        env = {**os.environ, "COLDKV_DATA": "/nonexistent/data", "COLDKV_SOCKET": "/nonexistent/socket", **environment}
        done = subprocess.run([COLDKV, *arguments], capture_output=True, env=env, check=False, timeout=120)
        out, err = done.stdout.decode(), done.stderr.decode()
        self.assertEqual(done.returncode, status, f"{arguments}: {out}\n{err}")
        self.assertEqual(bool(err), status != 0, err)
        return out, err

    def json(self, *arguments, status=0, **environment):
        out, _ = self.coldkv("--json", *arguments, status=status, **environment)
        return json.loads(out)

    def flip(self, path, offset, bit=0):
        with open(path, "r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1 << bit]))


class TestUsage(unittest.TestCase):
    def run_status(self, *arguments):
        return subprocess.run([COLDKV, *arguments], capture_output=True, check=False)

    def test_help_and_version(self):
        self.assertIn(b"usage: coldkv", self.run_status("--help").stdout)
        self.assertRegex(self.run_status("--version").stdout, rb"^coldkv \d+\.\d+\.\d+\n$")

    def test_usage_errors_have_status_2(self):
        for arguments in ([], ["frob"], ["ls", "x"], ["info"], ["info", "a", "b"], ["delete", "a"], ["--frob"],
                          ["delete", "a", "b"], ["ls", "--layer", "1"], ["inspect"], ["inspect", "x", "--token", "1"],
                          ["inspect", "x", "--layer", "-1"], ["inspect", "x", "--layer", "99999999999999999999"],
                          ["inspect", "x", "--ids", ""], ["inspect", "x", "--ids", "1:"],
                          ["inspect", "x", "--ids", ":1"],
                          ["inspect", "x", "--ids", "1:2:3"], ["inspect", "x", "--ids", "1", "--layer", "1"],
                          ["ls", "--data", ""], ["ls", "--data", "x" * 5000]):
            done = self.run_status(*arguments)
            self.assertEqual(done.returncode, 2, arguments)
            self.assertEqual(done.stdout, b"")
            self.assertTrue(done.stderr)

    def test_output_that_cannot_be_written(self):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([COLDKV, "ls", "--json", "--data", "/"], stdout=full, stderr=subprocess.PIPE,
                                  check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"cannot write", done.stderr)


class TestFiles(WithArchive):
    def test_ls(self):
        out, _ = self.coldkv("ls", "--data", self.data)
        lines = out.splitlines()
        self.assertEqual(lines[0].split(), ["NAME", "MODEL", "TOKENS", "SIZE", "LAST", "USE"])
        self.assertEqual(len(lines), 4)
        self.assertTrue(lines[1].startswith(CAREFUL))
        self.assertRegex(lines[2], r"^diary +tiny \u03bb +4796 +2\.9 MiB +just now|min ago$")
        listed = self.json("ls", "--data", self.data)["conversations"]
        self.assertEqual([c["name"] for c in listed], [CAREFUL, "diary", "empty"])
        self.assertEqual([c["tokens"] for c in listed], [3, self.truth["tokens"], 0])
        self.assertEqual([c["model"] for c in listed], ["tiny \u03bb", "tiny \u03bb", None])
        size = sum(os.path.getsize(p) for p in (self.segment, self.log, self.meta))
        self.assertEqual(listed[1]["size"], size)
        self.assertEqual(self.json("ls", COLDKV_DATA=self.data)["conversations"], listed)

    def test_ls_of_no_archive(self):
        for path in ("/nonexistent", self.base, self.segment):
            self.coldkv("ls", "--data", path, status=1)
            self.assertIn("error", self.json("ls", "--data", path, status=1))

    def test_ls_goes_on_past_a_damaged_conversation(self):
        self.flip(self.meta, 40)
        listed = self.json("ls", "--data", self.data, status=1)
        self.assertEqual([c["name"] for c in listed["conversations"]], [CAREFUL, "empty"])
        self.assertEqual(listed["error"]["code"], "corrupt")

    def test_info(self):
        info = self.json("info", "diary", "--data", self.data)
        self.assertEqual((info["tokens"], info["ahead"], info["model_name"]), (4796, 5, "tiny \u03bb"))
        self.assertEqual([(e["kind"], e["first"], e["count"]) for e in info["extents"]],
                         [("segment", 0, 4096), ("open log", 4096, 700)])
        self.assertEqual(self.json("info", CAREFUL, "--data", self.data)["tokens"], 3)
        self.assertEqual(self.json("info", "nobody", "--data", self.data, status=1)["error"]["code"], "no_conversation")
        self.assertIn("diary", self.coldkv("info", "diary", "--data", self.data)[0])

    def test_inspect_segment(self):
        found = self.json("inspect", self.segment)
        self.assertEqual((found["kind"], found["first"], found["count"], found["layers"]), ("segment", 0, 4096, 3))
        self.assertEqual(found["size"], os.path.getsize(self.segment))
        self.assertEqual(sum(r["pages"] for r in found["regions"]), found["pages"])
        self.assertEqual(sum(r["bad_pages"] for r in found["regions"]), 0)
        self.assertEqual([row["records"] for row in found["layer_statistics"]], [8192] * 3)
        self.assertTrue(all(0.9 < row["mean_k_scale"] < 1.1 for row in found["layer_statistics"]))
        blocks = self.json("inspect", self.segment, "--layer", "2")["blocks"]
        self.assertEqual([(b["layer"], b["head"], b["records"], b["bad_crc"]) for b in blocks],
                         [(2, 0, 4096, 0), (2, 1, 4096, 0)])
        self.coldkv("inspect", self.segment)
        self.coldkv("inspect", self.segment, "--layer", "3", status=1)

    def test_inspect_log_meta_model(self):
        log = self.json("inspect", self.log)
        self.assertEqual((log["kind"], log["tokens"], log["end"]), ("log", 700, "whole"))
        self.assertEqual([f["count"] for f in log["frames"]], [64] * 10 + [60])
        self.assertEqual(log["good_bytes"], os.path.getsize(self.log))
        meta = self.json("inspect", self.meta)
        self.assertEqual((meta["kind"], meta["name"], meta["head_dim"]), ("meta", "diary", 64))
        self.assertEqual(meta["extents"][0]["segment"] + ".seg", os.path.basename(self.segment))
        model = self.json("inspect", self.model)
        self.assertEqual((model["kind"], model["basis"], model["seed"]), ("model", "hadamard", "0123456789abcdef"))
        self.assertEqual(len(model["means"]), 6)
        for path in (self.log, self.meta, self.model):
            self.coldkv("inspect", path)
        self.coldkv("inspect", self.meta, "--ids", "0", status=1)

    def test_inspect_conversation(self):
        found = self.json("inspect", "diary", "--data", self.data)
        self.assertEqual([(f["kind"], f["count"], f["state"], f["path"]) for f in found["files"]],
                         [("segment", 4096, "good", self.segment), ("log", 700, "good", self.log)])
        self.assertEqual(self.json("inspect", "empty", "--data", self.data)["files"], [])

    def test_records_decode_to_what_went_in(self):
        for sample in self.truth["samples"]:
            place = ["--layer", str(sample["layer"]), "--head", str(sample["head"]), "--token", str(sample["token"])]
            found = self.json("inspect", "diary", "--data", self.data, *place)
            self.assertTrue(found["crc_good"])
            for name, least in (("key", 0.99), ("value", 0.98)):
                a, b = np.array(found[name]), np.array(sample[name])
                self.assertGreater(a @ b / np.linalg.norm(a) / np.linalg.norm(b), least)
            signs = [s == "-" for s in found["signs"]]
            self.assertEqual(np.packbits(signs, bitorder="little").tobytes().hex(), found["signature"])
            path = self.segment if sample["token"] < 4096 else self.log
            again = self.json("inspect", path, *place)
            self.assertEqual((again["key"], again["crc"]), (found["key"], found["crc"]))
            self.coldkv("inspect", path, *place)

    def test_record_without_its_model(self):
        os.unlink(self.model)
        found = self.json("inspect", self.segment, "--layer", "0", "--head", "0", "--token", "0")
        self.assertTrue(found["crc_good"])
        self.assertNotIn("key", found)

    def test_places_that_are_not_there(self):
        for layer, head, token in ((3, 0, 0), (0, 2, 0), (0, 0, 4796), (0, 0, 2**48 - 1)):
            place = ["--layer", str(layer), "--head", str(head), "--token", str(token)]
            answer = self.json("inspect", "diary", "--data", self.data, *place, status=1)
            self.assertEqual(answer["error"]["code"], "range")

    def test_token_ids(self):
        text = b"The quick brown fox jumps over the lazy dog.\n"
        ids = [300 if i % 100 == 99 else text[i % len(text)] for i in range(4796)]
        found = self.json("inspect", "diary", "--data", self.data, "--ids", "0")
        self.assertEqual((found["first"], found["ids"]), (0, ids))
        found = self.json("inspect", "diary", "--data", self.data, "--ids", "4090:10")
        self.assertEqual((found["first"], found["ids"]), (4090, ids[4090:4100]))
        self.assertEqual(self.json("inspect", self.log, "--ids", "4000:100")["ids"], ids[4096:4100])
        self.assertEqual(self.json("inspect", self.segment, "--ids", "4090:100")["ids"], ids[4090:4096])
        out, _ = self.coldkv("inspect", "diary", "--data", self.data, "--ids", "95:24")
        lines = [" ".join(map(str, [f"{first}:", *ids[first:end]])) for first, end in ((95, 111), (111, 119))]
        self.assertEqual(out.splitlines(), lines)
        out, _ = self.coldkv("inspect", "diary", "--data", self.data, "--ids", "0:46", "--text")
        self.assertEqual(out, text.decode() + "T\n")
        whole = self.json("inspect", "diary", "--data", self.data, "--text")
        self.assertEqual(whole["text"], "".join("<300>" if i == 300 else chr(i) for i in ids))
        self.coldkv("inspect", "diary", "--data", self.data, "--ids", "4796", status=1)
        self.coldkv("inspect", "empty", "--data", self.data, "--text", status=1)


class TestDamage(WithArchive):
    def test_whole_archive_is_good(self):
        out, _ = self.coldkv("verify", self.data)
        self.assertIn("all good", out)
        found = self.json("verify", "--data", self.data)
        self.assertTrue(found["good"])
        self.assertEqual((found["segments"], found["logs"], found["metas"], found["models"]), (1, 2, 3, 1))
        for path in (self.segment, self.log, self.meta, self.model):
            self.assertTrue(self.json("verify", path)["good"])

    def test_flipped_bits_are_found(self):
        rng = random.Random(1)
        # header, table, ids, scan, rescore, value: a page of each
        places = [(self.segment, page * PAGE + rng.randrange(PAGE)) for page in (0, 1, 3, 50, 200, 400)]
        places += [(p, rng.randrange(os.path.getsize(p))) for p in (self.meta, self.model) for _ in range(5)]
        places += [(self.log, rng.randrange(400000)) for _ in range(10)]  # but for the last frame, which may be torn
        for path, offset in places:
            bit = rng.randrange(8)
            self.flip(path, offset, bit)
            for arguments in ([path], [self.data]):
                done = subprocess.run([COLDKV, "verify", "--json", *arguments], capture_output=True, check=False)
                self.assertEqual(done.returncode, 1, (path, offset))
                found = json.loads(done.stdout)
                self.assertTrue("error" in found or found["problems"], found)
            self.flip(path, offset, bit)
        self.coldkv("verify", self.data)

    def test_verify_tells_problems_on_standard_output(self):
        self.flip(self.segment, 50 * PAGE)
        done = subprocess.run([COLDKV, "verify", self.data], capture_output=True, check=False, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn(os.path.basename(self.segment), done.stdout)
        self.assertRegex(done.stdout.splitlines()[-1], r"^checked .*: \d+ problems?$")

    def test_missing_files_are_found(self):
        for path in (self.segment, self.model):
            os.rename(path, path + "x")
            done = subprocess.run([COLDKV, "verify", self.data], capture_output=True, check=False)
            self.assertEqual(done.returncode, 1, path)
            os.rename(path + "x", path)
        self.coldkv("verify", "/nonexistent", status=1)

    def test_bad_page_and_record_in_inspect(self):
        first = 6 + 2 * 18  # scan pages of layer 1, head 0
        self.flip(self.segment, first * PAGE + 16 * 5)
        found = self.json("inspect", self.segment, status=1)
        self.assertEqual([r["bad_pages"] for r in found["regions"]], [0, 0, 0, 1, 0, 0])
        self.assertEqual([row["bad_crc"] for row in found["layer_statistics"]], [0, 1, 0])
        bad = self.json("inspect", self.segment, "--layer", "1", "--head", "0", "--token", "5", status=1)
        self.assertFalse(bad["crc_good"])
        self.assertNotIn("key", bad)
        self.json("inspect", self.segment, "--layer", "1", "--head", "0", "--token", "6")

    def test_torn_and_damaged_logs(self):
        os.truncate(self.log, os.path.getsize(self.log) - 100)
        self.assertEqual(self.json("info", "diary", "--data", self.data)["tokens"], 4736)
        self.assertTrue(self.json("inspect", self.log)["end"].startswith("torn"))
        self.assertEqual(self.json("inspect", "diary", "--data", self.data)["files"][1]["state"], "torn")
        os.unlink(self.segment)
        self.assertEqual(self.json("inspect", "diary", "--data", self.data, status=1)["error"]["code"], "io")

    def test_garbage_and_cut_files(self):
        """No file, however damaged, does more than make a sentence."""
        rng = random.Random(2)
        target = os.path.join(self.base, "target")
        places = [[], ["--layer", "1", "--head", "1", "--token", "70"], ["--ids", "0"], ["--layer", "1"]]
        for path in (self.segment, self.log, self.short_log, self.meta, self.model):
            with open(path, "rb") as file:
                whole = file.read()
            for round_number in range(24):
                data = bytearray(whole)
                if round_number % 3 == 0:
                    del data[rng.randrange(len(data)):]
                else:
                    near = len(data) if round_number % 3 == 1 else min(200, len(data))
                    for _ in range(rng.randrange(1, 6)):
                        data[rng.randrange(near)] = rng.randrange(256)
                with open(target, "wb") as file:
                    file.write(data)
                for arguments in ([["verify", target]] + [["inspect", target, *p] for p in places]):
                    done = subprocess.run([COLDKV, "--json", *arguments], capture_output=True, check=False)
                    self.assertIn(done.returncode, (0, 1), (path, arguments, done.stderr))
                    json.loads(done.stdout)
        for data in (b"", b"\0" * 100, b"CKV-SEGM", b"CKV-LOGS" + b"\xff" * 5000, os.urandom(9000)):
            with open(target, "wb") as file:
                file.write(data)
            self.coldkv("inspect", target, status=1)


class TestDaemon(WithArchive):
    def setUp(self):
        super().setUp()
        self.daemon = Daemon(COLDKVD)
        self.addCleanup(self.daemon.finish)
        self.served = self.daemon.data
        self.daemon.kill()
        shutil.rmtree(self.served)
        shutil.copytree(self.data, self.served)
        self.daemon.start()

    def test_ls_and_info_agree_with_the_files(self):
        for arguments in (["ls"], ["info", "diary"]):
            asked = self.json(*arguments, "--socket", self.daemon.socket)
            self.assertEqual(self.json(*arguments, COLDKV_SOCKET=self.daemon.socket), asked)
            read = self.json(*arguments, "--data", self.served)
            rows = zip(asked.pop("conversations", [asked]), read.pop("conversations", [read]))
            for mine, theirs in rows:
                for key in ("name", "tokens", "ahead", "created", "id", "extents"):
                    self.assertEqual(mine.get(key), theirs.get(key), key)
                self.assertAlmostEqual(mine["size"], theirs["size"], delta=PAGE)
        self.assertEqual(self.json("info", "nobody", "--socket", self.daemon.socket, status=1)["error"]["code"],
                         "no_conversation")

    def test_stats(self):
        stats = self.json("stats", "--socket", self.daemon.socket)
        self.assertGreaterEqual(stats["connections"], 1)  # ours; the one that saw it start may not be gone yet
        self.assertIn("scanned bytes", self.coldkv("stats", "--socket", self.daemon.socket)[0])

    def test_delete(self):
        self.coldkv("delete", "diary", "diar", "--socket", self.daemon.socket, status=2)
        self.coldkv("delete", "diary", "diary", "--socket", self.daemon.socket)
        again = self.json("delete", "diary", "diary", "--socket", self.daemon.socket, status=1)
        self.assertEqual(again["error"]["code"], "no_conversation")
        self.coldkv("delete", CAREFUL, CAREFUL, "--socket", self.daemon.socket)
        names = [c["name"] for c in self.json("ls", "--socket", self.daemon.socket)["conversations"]]
        self.assertEqual(names, ["empty"])

    def test_no_daemon(self):
        self.daemon.kill()
        for arguments in (["stats"], ["delete", "a", "a"], ["ls"], ["info", "diary"]):
            answer = self.json(*arguments, "--socket", self.daemon.socket, status=1)
            self.assertEqual(answer["error"]["code"], "unreachable")
        read = self.json("ls", COLDKV_SOCKET=self.daemon.socket, COLDKV_DATA=self.served)
        self.assertEqual(len(read["conversations"]), 3)


if __name__ == "__main__":
    COLDKV, MAKE_ARCHIVE, COLDKVD = map(os.path.abspath, sys.argv[1:4])
    unittest.main(argv=[sys.argv[0], *sys.argv[4:]])
