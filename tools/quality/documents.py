# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Documents that state facts between lines of made-up source text, as tools/demo/document.c writes them, with any
number of facts. Word lists and templates of the filler are read from tools/demo/filler.c: the text is the same to the
byte."""
import ast
import dataclasses
import os
import re

DIGITS = 5
FIRST_FACT = 160
LAST = 2048  # bytes at the end that state no fact: more than the model's window holds of the rest
FORMS = (("The pass key for %s is %s. ", "\nQ: what is the pass key for %s? A: "),
         ("Remember: the code of %s is %s. ", "\nQ: what is the code of %s? A: "),
         ("Note that %s has secret number %s. ", "\nQ: what secret number has %s? A: "))
COLOURS = "red blue iron gold oak fox sky sea elm owl".split()
THINGS = "gate vault door safe lamp tower ship mill field stone".split()
NAMES = len(COLOURS) * len(THINGS)
MASK = (1 << 64) - 1
NUMBER_BOUNDS = (3, 10, 10, 64, 300)


def read_lists():
    """The arrays of strings in filler.c."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "demo", "filler.c")
    with open(path, encoding="utf-8") as file:
        source = file.read()
    lists = {}
    for name, body in re.findall(r"static const char \*const (\w+)\[\] = \{(.*?)\};\n", source, re.S):
        entries, entry = [], None
        for string, comma in re.findall(r'("(?:[^"\\]|\\.)*")|(,)', body):
            if comma:
                entries, entry = entries + [entry], None
            else:
                entry = (entry or "") + ast.literal_eval(string)
        lists[name] = entries + ([entry] if entry is not None else [])
    return lists


LISTS = read_lists()


class Random:
    """splitmix64."""

    def __init__(self, seed):
        self.state = seed

    def next(self):
        self.state = self.state + 0x9E3779B97F4A7C15 & MASK
        z = self.state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
        return z ^ z >> 31

    def below(self, bound):
        return (self.next() >> 32) * bound >> 32

    def pick(self, entries):
        return entries[self.below(len(entries))]

    def shuffled(self, count):
        order = [0] * count
        for i in range(count):
            j = self.below(i + 1)
            order[i] = order[j]
            order[j] = i
        return order


class Writer:
    """Made-up source text; what filler.c's functions of the same names do."""

    def __init__(self, seed):
        self.random, self.out, self.size = Random(seed), [], 0
        self.names = ["item", "size", "result", "x"]

    def put(self, text):
        self.out.append(text)
        self.size += len(text)

    def place(self, kind):
        random = self.random
        if kind in "nNvV":
            word = random.pick(LISTS["nouns" if kind in "nN" else "verbs"])
            return word[0].upper() + word[1:] if kind.isupper() else word
        if kind == "a":
            return random.pick(LISTS["adjectives"])
        if kind == "d":
            return str(random.below(NUMBER_BOUNDS[random.below(len(NUMBER_BOUNDS))]))
        return self.names[int(kind)]

    def lines(self, name, level):
        template = self.random.pick(LISTS[name])
        indent = "    " * level
        self.put(indent)
        at = 0
        while at < len(template):
            letter = template[at]
            if letter == "$":
                at += 1
                self.put(self.place(template[at]))
            elif letter == "\t":
                self.put("    ")
            else:
                self.put(letter)
            if template[at] == "\n" and template[at + 1:at + 2] != "\n":
                self.put(indent)
            at += 1
        self.put("\n")

    def function(self, heads, level):
        self.names = [self.random.pick(LISTS["nouns"]) for _ in range(4)]
        self.lines(heads, level)
        if self.random.below(3):
            self.lines("docs", level + 1)
        for _ in range(1 + self.random.below(6)):
            self.lines("steps", level + 1)
        self.lines("returns", level + 1)
        self.put("\n")

    def klass(self):
        self.lines("classes", 0)
        self.names = [self.random.pick(LISTS["nouns"])] + ["size"] * 3
        self.lines("docs", 1)
        self.put("\n")
        for _ in range(1 + self.random.below(4)):
            self.function("methods", 1)


def filler(seed, size):
    writer = Writer(seed)
    for _ in range(6):
        writer.lines("imports", 0)
    writer.put("\n")
    while writer.size < size:
        kind = writer.random.below(8)
        if kind == 0:
            writer.lines("globals", 0)
            writer.put("\n")
        elif kind < 5:
            writer.function("signatures", 0)
        else:
            writer.klass()
    return "".join(writer.out)[:size - 1] + "\n"


@dataclasses.dataclass(frozen=True)
class Fact:
    name: str
    digits: str
    sentence: str
    question: str


def invent(random, count):
    """Facts about different names; while there are few, most share no half of a name."""
    first, second = random.shuffled(len(COLOURS)), random.shuffled(len(THINGS))
    facts = []
    for i in range(count):
        name = COLOURS[first[i % 10]] + THINGS[second[(i + i // 10) % 10]]
        digits = "".join(str(random.below(10)) for _ in range(DIGITS))
        sentence, question = FORMS[i % len(FORMS)]
        facts.append(Fact(name, digits, sentence % (name, digits), question % name))
    return facts


def document(seed, size, count, at=None):
    """Text of `size` bytes that states `count` facts, spread evenly from near its beginning to LAST bytes before its
    end, or one fact at the share `at` of that. Returns the text and the facts."""
    random = Random(seed)
    facts = invent(random, count)
    source, used, read, out = filler(random.next(), size), 0, 0, []
    last = size - LAST - 400 if size >= 4096 else size - 900  # room to go on to the end of a line
    for i, fact in enumerate(facts):
        share = at if at is not None else i / max(count - 1, 1)
        goal = FIRST_FACT + int(share * (last - FIRST_FACT))
        end = read + max(goal - used, 0)
        while end == 0 or source[end - 1] != "\n":
            end += 1
        out += [source[read:end], fact.sentence, "\n"]
        used += end - read + len(fact.sentence) + 1
        read = end
    out.append(source[read:read + size - used])
    return "".join(out)[:size - 1] + "\n", facts
