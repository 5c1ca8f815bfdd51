# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Documents that state facts, in the sentences that the tiny model was trained on."""
FIRST = "red blue iron gold oak fox sky sea elm owl".split()
SECOND = "gate vault door safe lamp tower ship mill field stone".split()
KINDS = [("The pass key for {n} is {d}. ", "\nQ: what is the pass key for {n}? A: "),
         ("Remember: the code of {n} is {d}. ", "\nQ: what is the code of {n}? A: "),
         ("Note that {n} has secret number {d}. ", "\nQ: what secret number has {n}? A: ")]
LAST = 2048  # bytes at the end that state no fact: more than the model's window holds of the rest


def document(rng, filler, size, count):
    """`size` bytes that end in a newline, and (question, digits) of each fact, before the last 2048 bytes."""
    start = rng.randrange(len(filler) - size)
    text = bytearray(filler[start:start + size])
    facts = []
    for i, name in enumerate(rng.sample([a + b for a in FIRST for b in SECOND], count)):
        sentence, question = rng.choice(KINDS)
        digits = "".join(rng.choice("0123456789") for _ in range(5))
        at = text.rfind(b"\n", 0, int((size - LAST - 100 * count) * (i + rng.random()) / count) + 1) + 1
        text[at:at] = sentence.format(n=name, d=digits).encode() + b"\n"
        facts.append((question.format(n=name).encode(), digits))
    return bytes(text[:size - 1]) + b"\n", facts
