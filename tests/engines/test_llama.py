#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""coldkv under an unpatched llama.cpp, on the demo's model. Usage: test_llama.py COLDKVD BUILD-FOLDER [TEST ...]

Needs COLDKV_ENGINES=1; makes the virtual environment and builds in BUILD-FOLDER, both once. tools/quality measures the
same at length."""
import os
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [os.path.join(ROOT, "tools", "quality"), os.path.join(ROOT, "tests", "integration")]

BLOCK = 64
VOCABULARY = 260


def skip(reason):
    print("skipped: " + reason)
    sys.exit(77)


def prepare(build):
    """The models as GGUF and the programs in `build`."""
    venv = subprocess.run(["sh", os.path.join(HERE, "venv.sh")], stdout=subprocess.PIPE, text=True,
                          check=True).stdout.strip()
    llama_build.build(build, os.path.join(venv, "bin", "python"), ("", "half", "yarn"))


class WithLlama(unittest.TestCase):
    coldkvd, build = None, None

    def setUp(self):
        self.daemon = Daemon(self.coldkvd)
        self.addCleanup(self.daemon.finish)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def driver(self, model="tiny"):
        return self.start("quality-llama", os.path.join(self.build, model + ".gguf"))

    def start(self, program, model):
        driver = Driver(os.path.join(self.build, "tools", "quality", program), model, self.daemon.socket, 1,
                        errors=subprocess.DEVNULL)
        self.addCleanup(driver.kill)
        return driver

    def path(self, name, data=None):
        path = os.path.join(self.folder, name)
        if data is not None:
            with open(path, "wb") as file:
                file.write(data)
        return path

    def filler(self, size=4096):
        return self.path("filler", documents.filler(3, size).encode())

    def document(self, facts):
        """A document of 4096 bytes, and its facts, all of them older than the trained window."""
        text, found = documents.document(5, 4096, facts)
        return self.path("document", text.encode()), found

    def ask(self, driver, facts, slots):
        answers = []
        for fact in facts:
            path = self.path("question", fact.question.encode())
            said = driver("ask", documents.DIGITS, path, 0, len(fact.question), slots).split()
            answers.append("".join(chr(int(id)) for id in said))
        return answers

    def logits_of(self, driver, path, first, count, slots):
        out = self.path("logits", b"")
        driver("logits", out, path, first, count, slots)
        return numpy.fromfile(out, numpy.float32).reshape(count, VOCABULARY).astype(float)

    def logits(self, size, begin, slots, model="tiny"):
        """[size][VOCABULARY] of the filler's first bytes, in a context that the words `begin` make."""
        driver = self.driver(model)
        driver(*begin)
        return self.logits_of(driver, self.filler(), 0, size, slots)

    def read(self, driver, path, size):
        """Reads a document of whole blocks: the hot window does not move while up to a block is asked and answered."""
        self.assertEqual(size % BLOCK, 0)
        self.assertEqual(driver("feed", path, 0, size, 0), str(size))


def divergence(exact, other):
    """Kullback-Leibler divergence of each row's distribution."""
    p, q = ((x - x.max(1, keepdims=True)) for x in (exact, other))
    p, q = ((x - numpy.log(numpy.exp(x).sum(1, keepdims=True))) for x in (p, q))
    return (numpy.exp(p) * (p - q)).sum(1)


class TestWindow(WithLlama):
    """Against the same llama.cpp with the whole text in its cache."""

    def check(self, flash, model, size):
        exact = self.logits(size, ("plain", flash), 0, model)
        ours = self.logits(size, ("open", f"window{flash}{model}", 8, 64, flash), 64, model)
        hot = abs(exact[:256] - ours[:256]).max()
        self.assertLess(hot, 0.1 if flash else 1e-4)  # flash attention in f16 sums cells in another order
        divergences = divergence(exact, ours)[256:]
        same = (exact.argmax(1) == ours.argmax(1))[256:].mean()
        print(f"{model}, flash {flash}, {size} tokens: all hot, largest difference of logits {hot:.2g}; past that "
              f"median KL {numpy.median(divergences):.6f}, mean {divergences.mean():.5f}, same top token {same:.4f}")
        self.assertLess(numpy.median(divergences), 0.0005)
        self.assertGreaterEqual(same, 0.975)

    def test_llama(self):
        self.check(0, "tiny", 896)

    def test_flash_attention_and_half_split_rope(self):
        self.check(1, "tinyhalf", 640)

    def test_yarn(self):
        self.check(0, "tinyyarn", 640)

    def same_as_operator(self, size, most):
        """Slots at the right places: the last tokens' logits are those of coldkv's own attention in f32."""
        count, found = 32, []
        for program, model, begin in (
                ("quality-llama", os.path.join(self.build, "tinyhalf.gguf"), (8, 64, 0)),
                ("quality-demo", llama_build.MODEL, (os.path.join(self.build, "tinyhalf.gguf"),))):
            driver = self.start(program, model)
            driver("open", program, *begin)
            driver("feed", self.filler(), 0, size - count, 0)
            found.append(self.logits_of(driver, self.filler(), size - count, count, 64))
        divergences = divergence(found[1], found[0])
        print(f"{size} tokens, against coldkv's operator: mean KL {divergences.mean():.2g}, "
              f"largest {divergences.max():.2g}")
        self.assertLess(divergences.mean(), most)

    def test_slots_inside_the_window(self):
        self.same_as_operator(1408, 2e-5)

    def test_slots_past_the_window(self):
        self.same_as_operator(3008, 5e-4)

    def test_rows_have_slots_of_their_own(self):
        """Blocks of eight tokens give what single tokens give."""
        one, eight = (self.logits(512, ("open", f"rows{rows}", rows, 64, 0), 64)[384:] for rows in (1, 8))
        print(f"rows: median KL {numpy.median(divergence(one, eight)):.3g}, mean {divergence(one, eight).mean():.3g}")
        self.assertLess(numpy.median(divergence(one, eight)), 1e-5)
        self.assertGreaterEqual((one.argmax(1) == eight.argmax(1)).mean(), 0.99)


class TestFacts(WithLlama):
    def test_killed(self):
        """Facts from past the window are answered, not without retrieval, and again after both processes were
        killed."""
        path, facts = self.document(4)
        driver = self.driver()
        driver("open", "killed", 8, 64, 1)
        self.read(driver, path, 4096)
        right = [fact.digits for fact in facts]
        self.assertEqual(self.ask(driver, facts, 64), right)
        driver("sync")
        driver.kill()
        self.daemon.kill()
        self.daemon.start()
        driver = self.driver()
        self.assertEqual(driver("open", "killed", 3, 64, 0), "4096")  # fewer rows than sinks
        self.assertEqual(self.ask(driver, facts, 64), right)
        self.assertFalse(set(self.ask(driver, facts, 0)) & set(right))

    def chat(self, text, facts, die):
        """coldkv-llama reads the text and answers questions; it and the daemon are killed while it waits for more."""
        command = [os.path.join(self.build, "tools", "llama", "coldkv-llama"), "-m",
                   os.path.join(self.build, "tiny.gguf"), "-c", "chat", "--socket", self.daemon.socket, "--temperature",
                   "0", "--threads", "1", "--predict", "12", "--read", text]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
            answers = []
            for fact in facts:
                program.stdin.write(fact.question[1:].encode() + b"\n")
                program.stdin.flush()
                answers.append(program.stdout.readline().decode().strip())
            if die:
                program.stdin.write(b"x" * 300 + b"\n")  # it is at work
                program.stdin.flush()
                self.daemon.kill()
                program.kill()
            else:
                program.stdin.close()
                self.assertEqual(program.wait(), 0)
        return answers

    def test_program(self):
        """coldkv-llama goes on after both processes were killed. In between it reads more than the hot window holds, so
        that what it said before is no help; one fact it was not asked for before."""
        path, facts = self.document(4)
        right = [fact.digits for fact in facts]
        self.assertEqual(self.chat(path, facts[:3], die=True), right[:3])
        self.daemon.start()
        self.assertEqual(self.chat(self.filler(640), facts, die=False), right)


class TestGoingBack(WithLlama):
    def test_rewind(self):
        """What is fed again gives the same; a moved hot window is not brought back."""
        filler, driver = self.filler(), self.driver()
        driver("open", "rewind", 8, 64, 0)
        driver("feed", filler, 0, 1024, 0)
        first = self.logits_of(driver, filler, 1024, 8, 64)
        driver("feed", filler, 3000, 40, 64)
        driver("rewind", 1024)
        self.assertLess(abs(first - self.logits_of(driver, filler, 1024, 8, 64)).max(), 1e-4)
        driver("feed", filler, 3000, 100, 64)
        with self.assertRaises(RuntimeError) as caught:
            driver("rewind", 1024)
        self.assertIn("1088 is possible", str(caught.exception))

    def test_daemon_away(self):
        """Slots that nothing fills have no part in attention: it is that to sinks and hot window."""
        logits, filler = [], self.filler()
        for slots in (0, 64):
            driver = self.driver()
            driver("open", f"away{slots}", 8, 64, 0)
            driver("feed", filler, 0, 1024, 0)
            driver("sync")
            self.daemon.kill()
            logits.append(self.logits_of(driver, filler, 1024, 8, slots))
            driver.kill()
            self.daemon.start()
        self.assertLess(abs(logits[0] - logits[1]).max(), 1e-3)


class TestMemory(WithLlama):
    def test_flat(self):
        """The engine's memory does not grow with the conversation."""
        end, sizes = 4096, []
        filler, driver = self.filler(end), self.driver()
        driver("open", "long", 8, 64, 0)
        for first, last in ((0, 1024), (1024, end)):
            driver("feed", filler, first, last - first - BLOCK, 0)
            driver("feed", filler, last - BLOCK, BLOCK, 64)
            sizes.append(int(driver("memory")))
        print(f"resident bytes at 1024 and {end} tokens: {sizes}")
        self.assertLess(sizes[1], 1.05 * sizes[0])


class TestHarness(WithLlama):
    def test_llama_is_an_engine(self):
        """tools/quality asks, times and weighs llama.cpp as every other engine."""
        engine = Lines("llama.cpp", self.driver(), 1)
        self.addCleanup(engine.folder.cleanup)
        meter = measure.Meter(engine, 64, lambda books: [measure.examine(engine, book, 64, "book") for book in books])
        self.assertEqual(meter.passkey(3072, 3, 3), {
            "accuracy": 1, "questions": 3, "documents": 1, "cut": 0, "cut_questions": 3})
        self.assertGreater(meter.memory([512])["sizes"][0]["resident"], 1 << 20)
        self.assertGreater(engine.decode_seconds([65] * 256, 8, 0), 0)
        engine.open("speed")
        engine.feed([65] * 640, 0)
        self.assertGreater(engine.decode_seconds([], 60, 64), 0)
        self.assertEqual(engine.driver("close"), "0")


class TestRefusals(WithLlama):
    def test_version(self):
        """Another llama.cpp is refused in a sentence that names it, unless the user insists."""
        shim = self.path("shim.so")
        with open(self.path("shim.c"), "w", encoding="ascii") as file:
            file.write('const char *llama_version(void); const char *llama_version(void) { return "0.0.1"; }\n')
        subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, self.path("shim.c")], check=True)
        command = [os.path.join(self.build, "tools", "llama", "coldkv-llama"), "-m",
                   os.path.join(self.build, "tiny.gguf"), "-c", "version", "--socket", self.daemon.socket]
        run = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "check": False,
               "env": {**os.environ, "LD_PRELOAD": shim}}
        refused = subprocess.run(command, **run)
        self.assertEqual(refused.returncode, 1, refused.stderr)
        self.assertIn("llama.cpp 0.0.1", refused.stderr)
        self.assertEqual(subprocess.run(command + ["--any-version"], **run).returncode, 0)

    def test_other_weights(self):
        """A conversation goes on with the model that it began with only."""
        driver = self.driver()
        driver("open", "weights", 1, 64, 0)
        driver("feed", self.path("text", b"x" * 1024), 0, 1024, 0)
        driver("sync")
        driver.kill()
        with self.assertRaises(RuntimeError) as caught:
            self.driver("tinyhalf")("open", "weights", 1, 64, 0)
        self.assertIn("fingerprint", str(caught.exception))


if os.environ.get("COLDKV_ENGINES") != "1":
    skip("COLDKV_ENGINES=1 runs the engine tests, which download and build packages")
import numpy  # noqa: E402  pylint: disable=wrong-import-position
import documents  # noqa: E402  pylint: disable=wrong-import-position
import measure  # noqa: E402  pylint: disable=wrong-import-position
import llama_build  # noqa: E402  pylint: disable=wrong-import-position
from coldkv_protocol import Daemon  # noqa: E402  pylint: disable=wrong-import-position
from engine_lines import Driver, Lines  # noqa: E402  pylint: disable=wrong-import-position

WithLlama.coldkvd, WithLlama.build = map(os.path.abspath, sys.argv[1:3])
del sys.argv[1:3]
prepare(WithLlama.build)
unittest.main(verbosity=2)
