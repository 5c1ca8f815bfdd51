#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""coldkv under an unpatched llama.cpp, on the demo's model. Usage: test_llama.py COLDKVD BUILD-FOLDER [long] [TEST ...]

Needs COLDKV_ENGINES=1; makes the virtual environment and builds in BUILD-FOLDER, both once. "long": 100 documents of
16,384 tokens, and memory at 65,536."""
import os
import random
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [HERE, os.path.join(ROOT, "tests", "integration")]

BLOCK = 64
VOCABULARY = 260


def skip(reason):
    print("skipped: " + reason)
    sys.exit(77)


def prepare(build):
    """The models as GGUF and the programs in `build`; returns the environment's python."""
    venv = subprocess.run(["sh", os.path.join(HERE, "venv.sh")], stdout=subprocess.PIPE, text=True,
                          check=True).stdout.strip()
    python = os.path.join(venv, "bin", "python")
    site = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                          stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    setup = ["meson", "setup", build, ROOT, "--buildtype=release", "-Dtests=disabled", "-Dcuda=disabled",
             "-Ddemo=enabled", "-Dpython=disabled", "-Dllama=" + site]
    if os.path.exists(os.path.join(build, "build.ninja")):
        setup.insert(2, "--reconfigure")
    for command in (setup, ["ninja", "-C", build, "tests/engines/llama_driver", "tests/engines/demo_logits",
                            "tools/llama/coldkv-llama"]):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            sys.exit(done.stdout)
    for variant in ("", "half", "yarn"):
        subprocess.run([python, os.path.join(HERE, "tiny_gguf.py"), os.path.join(ROOT, "tools", "demo", "model"),
                        os.path.join(build, f"tiny{variant}.gguf"), variant], check=True)


class Driver:
    """llama_driver under way."""

    def __init__(self, build, socket, model="tiny"):
        self.process = subprocess.Popen(
            [os.path.join(build, "tests", "engines", "llama_driver"), os.path.join(build, model + ".gguf"), socket,
             "1"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def __call__(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer or answer.startswith("failed"):
            raise RuntimeError(f"{words}: {answer!r}")
        return answer.rstrip("\n")

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class WithLlama(unittest.TestCase):
    coldkvd, build, long = None, None, False

    def setUp(self):
        self.daemon = Daemon(self.coldkvd)
        self.addCleanup(self.daemon.finish)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.rng = random.Random(5)

    def driver(self, model="tiny"):
        driver = Driver(self.build, self.daemon.socket, model)
        self.addCleanup(driver.kill)
        return driver

    def path(self, name, data=None):
        path = os.path.join(self.folder, name)
        if data is not None:
            with open(path, "wb") as file:
                file.write(data)
        return path

    def filler(self, size=1 << 18):
        path = self.path("filler")
        self.driver()("write", path, 3, size)
        with open(path, "rb") as file:
            return file.read()

    def document(self, size, facts, filler):
        text, facts = document(self.rng, filler, size, facts)
        return self.path("document", text), facts

    def ask(self, driver, question, retrieve):
        return driver("ask", 5, retrieve, self.path("question", question), 0, len(question))

    def logits(self, size, begin, retrieve, model="tiny"):
        """[size][VOCABULARY] of the filler's first bytes, in a context that the words `begin` make."""
        out, driver = self.path("logits", b""), self.driver(model)
        driver(*begin)
        driver("logits", out, self.path("filler"), 0, size, retrieve)
        driver("close")
        return numpy.fromfile(out, numpy.float32).reshape(size, VOCABULARY).astype(float)

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
        self.filler()
        exact = self.logits(size, ("plain", 2048, flash), 0, model)
        ours = self.logits(size, ("open", f"window{flash}{model}", 8, 64, flash), 1, model)
        hot = abs(exact[:256] - ours[:256]).max()
        self.assertLess(hot, 0.1 if flash else 1e-4)  # flash attention in f16 sums cells in another order
        divergences = divergence(exact, ours)[256:]
        same = (exact.argmax(1) == ours.argmax(1))[256:].mean()
        print(f"{model}, flash {flash}, {size} tokens: all hot, largest difference of logits {hot:.2g}; past that "
              f"median KL {numpy.median(divergences):.6f}, mean {divergences.mean():.5f}, same top token {same:.4f}")
        self.assertLess(numpy.median(divergences), 0.0005)
        self.assertGreaterEqual(same, 0.975)

    def test_llama(self):
        self.check(0, "tiny", 1900 if self.long else 896)

    def test_flash_attention_and_half_split_rope(self):
        self.check(1, "tinyhalf", 1900 if self.long else 640)

    def test_yarn(self):
        self.check(0, "tinyyarn", 1900 if self.long else 640)

    def same_as_operator(self, size, most):
        """Slots at the right places: the last tokens' logits are those of coldkv's own attention in f32."""
        self.filler()
        count, out, driver = 32, self.path("logits", b""), self.driver("tinyhalf")
        driver("open", "ours", 8, 64, 0)
        driver("feed", self.path("filler"), 0, size - count, 1)
        driver("logits", out, self.path("filler"), size - count, count, 1)
        ours = numpy.fromfile(out, numpy.float32).reshape(count, VOCABULARY).astype(float)
        subprocess.run([os.path.join(self.build, "tests", "engines", "demo_logits"),
                        os.path.join(ROOT, "tools", "demo", "model"), self.daemon.socket,
                        os.path.join(self.build, "tinyhalf.gguf"), self.path("filler"), str(size), str(count), out],
                       check=True)
        operator = numpy.fromfile(out, numpy.float32).reshape(count, VOCABULARY).astype(float)
        divergences = divergence(operator, ours)
        print(f"{size} tokens, against coldkv's operator: mean KL {divergences.mean():.2g}, "
              f"largest {divergences.max():.2g}")
        self.assertLess(divergences.mean(), most)

    def test_slots_inside_the_window(self):
        self.same_as_operator(1408, 2e-5)

    def test_slots_past_the_window(self):
        self.same_as_operator(3008, 5e-4)

    def test_rows_have_slots_of_their_own(self):
        """Blocks of eight tokens give what single tokens give."""
        self.filler()
        one, eight = (self.logits(640, ("open", f"rows{rows}", rows, 64, 0), 1)[384:] for rows in (1, 8))
        print(f"rows: median KL {numpy.median(divergence(one, eight)):.3g}, mean {divergence(one, eight).mean():.3g}")
        self.assertLess(numpy.median(divergence(one, eight)), 1e-5)
        self.assertGreaterEqual((one.argmax(1) == eight.argmax(1)).mean(), 0.99)


class TestFacts(WithLlama):
    def test_facts(self):
        """Facts far past the window are answered, and not without retrieval."""
        documents, size, count = (100, 16384, 1) if self.long else (1, 6144, 4)
        filler, right, cut = self.filler(), 0, 0
        for i in range(documents):
            path, facts = self.document(size, count, filler)
            driver = self.driver()
            driver("open", f"facts{i}", 8, 64, i % 2)
            self.read(driver, path, size)
            for question, digits in facts:
                right += self.ask(driver, question, 1) == digits
                cut += self.ask(driver, question, 0) == digits
            driver.kill()
        print(f"{size} tokens, facts {count}: {right} of {documents * count} right, {cut} without retrieval")
        self.assertGreaterEqual(right / (documents * count), 0.95)
        self.assertEqual(cut, 0)

    def test_killed(self):
        """A conversation goes on after both processes were killed."""
        path, facts = self.document(4096, 3, self.filler())
        driver = self.driver()
        driver("open", "killed", 8, 64, 0)
        self.read(driver, path, 4096)
        before = [self.ask(driver, question, 1) for question, _ in facts]
        driver("sync")
        driver.kill()
        self.daemon.kill()
        self.daemon.start()
        driver = self.driver()
        self.assertEqual(driver("open", "killed", 3, 64, 0), "4096")  # fewer rows than sinks
        after = [self.ask(driver, question, 1) for question, _ in facts]
        self.assertEqual(after, before)
        self.assertEqual(after, [digits for _, digits in facts])
        self.assertNotEqual([self.ask(driver, question, 0) for question, _ in facts], before)

    def test_program(self):
        """coldkv-llama, twice: the second time it only remembers."""
        path, facts = self.document(4096, 2, self.filler())
        command = [os.path.join(self.build, "tools", "llama", "coldkv-llama"), "-m",
                   os.path.join(self.build, "tiny.gguf"), "-c", "chat", "--socket", self.daemon.socket, "--temperature",
                   "0", "--threads", "1", "--predict", "12"]
        questions = b"".join(question[1:] + b"\n" for question, _ in facts)
        for more in (["--read", path], []):
            answer = subprocess.run(command + more, input=questions, stdout=subprocess.PIPE, check=True).stdout
            self.assertEqual(answer.decode().split(), [digits for _, digits in facts])
            self.daemon.kill()
            self.daemon.start()


class TestGoingBack(WithLlama):
    def logits_of(self, driver, retrieve, first=2048, size=8):
        out = self.path("logits", b"")
        driver("logits", out, self.path("filler"), first, size, retrieve)
        return numpy.fromfile(out, numpy.float32)

    def test_rewind(self):
        """What is fed again gives the same; a moved hot window is not brought back."""
        self.filler()
        driver = self.driver()
        driver("open", "rewind", 8, 64, 0)
        driver("feed", self.path("filler"), 0, 2048, 0)
        first = self.logits_of(driver, 1)
        driver("feed", self.path("filler"), 3000, 40, 1)
        driver("rewind", 2048)
        self.assertLess(abs(first - self.logits_of(driver, 1)).max(), 1e-4)
        driver("feed", self.path("filler"), 3000, 100, 1)
        with self.assertRaises(RuntimeError) as caught:
            driver("rewind", 2048)
        self.assertIn("2112 is possible", str(caught.exception))

    def test_daemon_away(self):
        """Slots that nothing fills have no part in attention: it is that to sinks and hot window."""
        self.filler()
        logits = []
        for retrieve in (0, 1):
            driver = self.driver()
            driver("open", f"away{retrieve}", 8, 64, 0)
            driver("feed", self.path("filler"), 0, 2048, 0)
            driver("sync")
            self.daemon.kill()
            logits.append(self.logits_of(driver, retrieve))
            driver.kill()
            self.daemon.start()
        self.assertLess(abs(logits[0] - logits[1]).max(), 1e-3)


class TestMemory(WithLlama):
    def test_flat(self):
        """The engine's memory does not grow with the conversation."""
        end = 65536 if self.long else 6144
        self.filler(end)
        driver = self.driver()
        driver("open", "long", 8, 64, 0)
        sizes = []
        for first, last in ((0, 2048), (2048, end)):
            driver("feed", self.path("filler"), first, last - first - BLOCK, 0)
            driver("feed", self.path("filler"), last - BLOCK, BLOCK, 1)
            sizes.append(int(driver("memory")))
        print(f"resident KiB at 2048 and {end} tokens: {sizes}")
        self.assertLess(sizes[1], 1.05 * sizes[0])


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
from coldkv_protocol import Daemon  # noqa: E402  pylint: disable=wrong-import-position
from engine_documents import document  # noqa: E402  pylint: disable=wrong-import-position

WithLlama.coldkvd, WithLlama.build = map(os.path.abspath, sys.argv[1:3])
del sys.argv[1:3]
if sys.argv[1:2] == ["long"]:
    WithLlama.long = True
    del sys.argv[1]
prepare(WithLlama.build)
unittest.main(verbosity=2)
