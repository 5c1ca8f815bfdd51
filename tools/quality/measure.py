# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""The measurements, of any engine: each returns figures as a dictionary."""
import hashlib
import itertools
import statistics

import numpy as np

import documents
from documents import DIGITS, LAST

FIRST_COLD = 320  # of the first block that does not see everything exactly
CUT_QUESTIONS = 20  # of a cell are asked again with retrieval cut
CHUNK = 4096  # tokens that are read at a time
DECODED = 128  # tokens of one timing
TIMINGS = 3


class Texts:
    """Makes documents and hashes them, so that a receipt says which were used."""

    def __init__(self):
        self.hash = hashlib.sha256()

    def document(self, seed, size, count, at=None):
        text, facts = documents.document(seed, size, count, at)
        self.hash.update(text.encode())
        return list(text.encode()), facts


class Meter:
    """Measures one engine. Conversations get names of their own."""

    def __init__(self, engine, slots, texts):
        self.engine, self.slots, self.texts = engine, slots, texts
        self.number = itertools.count(1)

    def _open(self):
        self.engine.open(f"quality-{next(self.number)}")

    def _read(self, ids):
        """Reads a document without retrieval, which is as good as with it and takes less time."""
        for first in range(0, len(ids), CHUNK):
            self.engine.feed(ids[first:first + CHUNK], 0)

    def _ask(self, fact, slots):
        answer = self.engine.answer(list(fact.question.encode()), DIGITS, slots)
        return bytes(min(byte, 255) for byte in answer).decode("latin-1") == fact.digits

    def passkey(self, size, count, questions):
        """Share of right answers about facts that are older than the hot window, with coldkv and with retrieval cut.
        Documents of `count` facts are made until `questions` are asked; what a document states once is asked once."""
        right = asked = cut = cut_asked = number = 0
        while asked < questions:
            number += 1
            at = number * 0.6180339887 % 1 if count == 1 else None  # anywhere, evenly
            ids, facts = self.texts.document(1000 * count + number, size, count, at)
            self._open()
            self._read(ids)
            for fact in facts[::max(1, len(facts) // (questions - asked))][:questions - asked]:
                right += self._ask(fact, self.slots)
                asked += 1
                if cut_asked < CUT_QUESTIONS:
                    cut += self._ask(fact, 0)
                    cut_asked += 1
            if self.engine.missed():
                raise RuntimeError("the daemon did not answer all lookups: the figures would be of something else")
            self.engine.close()
        return {"accuracy": right / asked, "questions": asked, "documents": number, "cut": cut / cut_asked,
                "cut_questions": cut_asked}

    def inside_window(self, count):
        """What coldkv changes inside the trained window: KL(unmodified || coldkv) of the next token in nats, and the
        share of positions with the same likeliest one."""
        divergences, agreed, window = [], [], self.engine.window()
        for number in range(1, count + 1):
            ids = self.texts.document(number, 2 * window + LAST, 12)[0][:window]
            full = log_softmax(self.engine.plain_logits(ids)[FIRST_COLD:])
            self._open()
            cold = log_softmax(self.engine.logits(ids, self.slots)[FIRST_COLD:])
            self.engine.close()
            divergences.append((np.exp(full) * (full - cold)).sum(-1))
            agreed.append(full.argmax(-1) == cold.argmax(-1))
        divergences, agreed = np.concatenate(divergences), np.concatenate(agreed)
        return {"kl_median": float(np.median(divergences)), "kl_mean": float(divergences.mean()),
                "top1": float(agreed.mean()), "positions": len(agreed), "documents": count}

    def decode_speed(self, size):
        """Tokens per second, one by one: with coldkv after `size` tokens, and without after a full trained window. The
        two take turns, so that whatever else the machine does happens to both."""
        ids, cold, plain = self.texts.document(7, size, 12)[0], [], []
        window = self.engine.window()
        self._open()
        self._read(ids)
        self.engine.close()
        name = f"quality-{next(self.number) - 1}"
        for _ in range(TIMINGS):
            plain.append(DECODED / self.engine.decode_seconds(ids[:window], DECODED, 0))
            self.engine.open(name)
            cold.append(DECODED / self.engine.decode_seconds(ids[-64:], DECODED, self.slots))
            self.engine.close()
        with_coldkv, without = statistics.median(cold), statistics.median(plain)
        return {"tokens_per_second": with_coldkv, "plain_tokens_per_second": without, "ratio": with_coldkv / without}

    def memory(self, sizes):
        """Memory of the engine's process as one conversation grows, after each of the sizes."""
        ids = self.texts.document(8, sizes[-1], 12)[0]
        found, done = [], 0
        self._open()
        for size in sizes:
            self._read(ids[done:size])
            self.engine.answer(list(b"def "), 4, self.slots)
            done = size
            found.append({"tokens": size, **self.engine.memory_bytes()})
        self.engine.close()
        growth = {kind: found[-1][kind] / found[0][kind] for kind in found[0] if kind != "tokens"}
        return {"sizes": found, "growth": growth}


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))
