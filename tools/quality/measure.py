# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""The measurements, of any engine: each returns figures as a dictionary."""
import dataclasses
import hashlib
import itertools

import numpy as np

import documents
from documents import DIGITS, LAST

FIRST_COLD = 320  # of the first block that does not see everything exactly
CUT_QUESTIONS = 20  # of a cell are asked again with retrieval cut
CHUNK = 4096  # tokens that are read at a time
DECODED = 60  # tokens of one timing: with the one before them they fit a block, and can be taken back
TIMINGS = 12
ATTEMPTS = 3


def read(engine, ids):
    """Reads a document without retrieval, which is as good as with it and takes less time."""
    for first in range(0, len(ids), CHUNK):
        engine.feed(ids[first:first + CHUNK], 0)


def ask(engine, fact, slots):
    answer = engine.answer(list(fact.question.encode()), DIGITS, slots)
    return bytes(min(byte, 255) for byte in answer).decode("latin-1") == fact.digits


@dataclasses.dataclass(frozen=True)
class Book:
    """A document and how many of its facts are asked for, with coldkv and with retrieval cut."""

    number: int
    size: int
    count: int
    asked: int
    cut: int

    def text(self):
        at = self.number * 0.6180339887 % 1 if self.count == 1 else None  # anywhere, evenly
        return documents.document(1000 * self.count + self.number, self.size, self.count, at)


def plan(size, count, questions):
    """Documents of `count` facts that make up that many questions; each fact is asked for once."""
    books, left, cut = [], questions, min(questions, CUT_QUESTIONS)
    while left:
        asked = min(left, count)
        books.append(Book(len(books) + 1, size, count, asked, min(asked, cut)))
        left, cut = left - asked, cut - books[-1].cut
    return books


def examine(engine, book, slots, conversation):
    """Right answers: (with coldkv, with retrieval cut). Answers without all that the daemon should have said, on a busy
    machine, are of something else: the book is examined again."""
    for attempt in range(ATTEMPTS):
        right, cut, missed = examine_once(engine, book, slots, f"{conversation}-{attempt}")
        if not missed:
            return right, cut
    raise RuntimeError(f"the daemon did not answer all lookups, {ATTEMPTS} times: the machine is too busy")


def examine_once(engine, book, slots, conversation):
    text, facts = book.text()
    facts = facts[::len(facts) // book.asked][:book.asked]
    engine.open(conversation)
    read(engine, list(text.encode()))
    right = sum(ask(engine, fact, slots) for fact in facts)
    cut = sum(ask(engine, fact, 0) for fact in facts[:book.cut])
    missed = engine.missed()
    engine.close()
    return right, cut, missed


class Meter:
    """Measures one engine. Conversations get names of their own."""

    def __init__(self, engine, slots, examine_all):
        """examine_all(list of Book): what examine() says of each, with this engine or with several like it."""
        self.engine, self.slots, self.examine_all = engine, slots, examine_all
        self.number = itertools.count(1)
        self.texts = hashlib.sha256()  # of every document, so that a receipt says which were used

    def _text(self, seed, size):
        text = documents.document(seed, size, 12)[0].encode()
        self.texts.update(text)
        return list(text)

    def _open(self):
        self.engine.open(f"quality-{next(self.number)}")

    def passkey(self, size, count, questions):
        """Share of right answers about facts that are older than the hot window, with coldkv and with retrieval cut."""
        books = plan(size, count, questions)
        for book in books:
            self.texts.update(book.text()[0].encode())
        answers = self.examine_all(books)
        cut_questions = sum(book.cut for book in books)
        return {"accuracy": sum(right for right, _ in answers) / questions, "questions": questions,
                "documents": len(books), "cut": sum(cut for _, cut in answers) / cut_questions,
                "cut_questions": cut_questions}

    def inside_window(self, count):
        """What coldkv changes inside the trained window: KL(unmodified || coldkv) of the next token in nats, and the
        share of positions with the same likeliest one."""
        divergences, agreed, window = [], [], self.engine.window()
        for number in range(1, count + 1):
            ids = self._text(number, 2 * window + LAST)[:window]
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
        two take turns, and the best of each counts: whatever else the machine does only slows down. Medians tell what
        it was like."""
        ids, cold, plain = self._text(7, size), [], []
        window = self.engine.window()
        self._open()
        read(self.engine, ids)
        self.engine.close()
        name = f"quality-{next(self.number) - 1}"
        for _ in range(TIMINGS):
            plain.append(DECODED / self.engine.decode_seconds(ids[:window], DECODED, 0))
            self.engine.open(name)
            cold.append(DECODED / self.engine.decode_seconds(ids[-64:], DECODED, self.slots))
            self.engine.close()
        return {"tokens_per_second": max(cold), "plain_tokens_per_second": max(plain), "ratio": max(cold) / max(plain),
                "median_ratio": float(np.median(cold) / np.median(plain)),
                "all": {"tokens_per_second": cold, "plain_tokens_per_second": plain}}

    def memory(self, sizes):
        """Memory of the engine's process as one conversation grows, after each of the sizes."""
        ids = self._text(8, sizes[-1])
        found, done = [], 0
        self._open()
        for size in sizes:
            read(self.engine, ids[done:size])
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
