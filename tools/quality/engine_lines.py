# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""llama.cpp and the demo's own forward pass for the harness: programs that are driven by lines of text, see
driver.h."""
import os
import subprocess
import tempfile

import numpy as np

from engine import Engine


class Driver:
    """A program of driver.h: call it with a line's words, and it returns the answer."""

    def __init__(self, program, *arguments, errors=None):
        self.process = subprocess.Popen([program, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=errors, text=True)

    def __call__(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer or answer.startswith("failed"):
            raise RuntimeError(f"{' '.join(map(str, words))}: {answer.strip() or 'the program has ended'}")
        return answer.rstrip("\n")

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Lines(Engine):
    def __init__(self, name, driver, threads):
        self.name, self.driver, self.threads, self.opened = name, driver, threads, False
        window, vocabulary, self.version = driver("about").split(" ", 2)
        self._window, self.vocabulary = int(window), int(vocabulary)
        self.folder = tempfile.TemporaryDirectory(prefix="coldkv-")
        self.text, self.out = (os.path.join(self.folder.name, name) for name in ("text", "logits"))

    def versions(self):
        return {self.name: self.version}

    def device(self):
        return f"cpu, {self.threads} threads"

    def window(self):
        return self._window

    def open(self, conversation):
        self.driver("open", conversation)
        self.opened = True

    def close(self):
        if self.opened:
            self.driver("sync")
        self.driver("close")
        self.opened = False

    def _piece(self, ids, slots):
        with open(self.text, "wb") as file:
            file.write(bytes(ids))
        return self.text, 0, len(ids), slots

    def feed(self, ids, slots):
        self.driver("feed", *self._piece(ids, slots))

    def answer(self, ids, count, slots):
        return [int(word) for word in self.driver("ask", count, *self._piece(ids, slots)).split()]

    def logits(self, ids, slots):
        with open(self.out, "wb"):
            pass
        self.driver("logits", self.out, *self._piece(ids, slots))
        return np.fromfile(self.out, np.float32).reshape(len(ids), self.vocabulary)

    def missed(self):
        return int(self.driver("missed"))

    def plain_logits(self, ids):
        self.driver("plain")
        found = self.logits(ids, 0)
        self.driver("close")
        return found

    def decode_seconds(self, ids, count, slots):
        if self.opened:
            return float(self.driver("decode", count, slots))
        self.driver("plain")
        self.feed(ids, 0)
        seconds = float(self.driver("decode", count, 0))
        self.driver("close")
        return seconds

    def memory_bytes(self):
        """Of the program, which is the engine."""
        return {"resident": int(self.driver("memory"))}
