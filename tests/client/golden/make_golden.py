#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Writes the golden vectors codec-<d>.txt from proto/RECORD.md alone, in numpy float32.

    make_golden.py           write the files beside this script
    make_golden.py --check   compare them with what is there; exit status 1 if they differ
"""

import os
import re
import struct
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
RECORD_MD = os.path.join(HERE, "..", "..", "..", "proto", "RECORD.md")
F32 = np.float32
MASK64 = (1 << 64) - 1
EXTRA = 0xD1B54A32D192ED03


def codebooks():
    """The tables of RECORD.md: {bits: {"levels": array, "thresholds": array}}."""
    books, current = {}, None
    for line in open(RECORD_MD, encoding="utf-8"):
        title = re.fullmatch(r"    ([2-5]) bits, (levels|thresholds)\n", line)
        if title:
            current = books.setdefault(int(title.group(1)), {}).setdefault(title.group(2), [])
        elif current is not None and re.fullmatch(r"        [0-9. ]+\n", line):
            current.extend(line.split())
        else:
            current = None
    return {bits: {kind: np.array(values, dtype=np.float64).astype(F32) for kind, values in book.items()}
            for bits, book in books.items()}


class SplitMix64:
    def __init__(self, state):
        self.state = state

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK64
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
        return z ^ (z >> 31)


def signs(word):
    return np.array([-1 if word >> i & 1 else 1 for i in range(64)], dtype=F32)


def wht(x):
    n, h = len(x), 1
    while h < n:
        pairs = x.reshape(n // (2 * h), 2, h)
        x = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(n)
        h *= 2
    return x * (F32(0.125) if n == 64 else F32(0.088388346))


def rotate(seed, x):
    d, words = len(x), SplitMix64(seed)
    if d in (64, 128):
        return wht(x * np.concatenate([signs(words.next()) for _ in range(d // 64)]))
    y = x.copy()
    for start in (0, d - 64, 0):
        y[start:start + 64] = wht(y[start:start + 64] * signs(words.next()))
    return y


def lane_sum(terms):
    lanes = np.zeros(16, dtype=F32)
    for i, t in enumerate(terms):
        lanes[i % 16] = lanes[i % 16] + t
    for half in (8, 4, 2, 1):
        lanes = lanes[:half] + lanes[half:]
    return lanes[0]


def quantize(x, bits, books):
    m = lane_sum(x * x) / F32(len(x))
    assert np.isfinite(m)
    if m == 0:
        return [0] * len(x), np.float16(0)
    r = F32(1) / np.sqrt(m)
    a = np.abs(x) * r
    index = [int(np.sum(a[i] > books[bits[i]]["thresholds"])) for i in range(len(x))]
    level = np.array([books[bits[i]]["levels"][index[i]] for i in range(len(x))], dtype=F32)
    scale = np.float16(lane_sum(np.abs(x) * level) / lane_sum(level * level))
    assert np.isfinite(scale)
    return index, scale


def bits_of(total, d):
    return [total // d + (i < total % d) for i in range(d)]


def plane(flags):
    return np.packbits(np.array(flags, dtype=bool), bitorder="little").tobytes()


def planes(index, bits):
    return b"".join(plane([index[i] >> b & 1 for i in range(len(bits)) if b < bits[i]]) for b in range(max(bits)))


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def encode(seed, k, v, mean_k, mean_v, place, books):
    d = len(k)
    y, w = rotate(seed, k - mean_k), rotate(seed, v - mean_v)
    extra = rotate(seed ^ EXTRA, y)[:128 - d]
    key_bits, value_bits = bits_of(256, d), [b - 1 for b in bits_of(384, d)]
    k_index, k_scale = quantize(y, key_bits, books)
    v_index, v_scale = quantize(w, value_bits, books)
    body = plane(list(y < 0) + list(extra < 0)) + k_scale.tobytes() + planes(k_index, key_bits)
    body += plane(w < 0) + planes(v_index, value_bits) + v_scale.tobytes()
    assert len(body) == 100
    return body + struct.pack("<I", crc32c(body + struct.pack("<HHQ", *place)))


def draw(words, d, exponent):
    n = [sum(struct.unpack("<4H", struct.pack("<Q", words.next()))) - 131070 for _ in range(d)]
    return np.array(n, dtype=F32) * F32(0 if exponent == "zero" else 2.0 ** exponent)


CASES = (
    # mean, k and v exponents; -16 gives a spread of about 0.58
    (-16, -16, -16), (-14, -16, -17), (-13, -15, -16), (-14, -14, -14), ("zero", -16, -16), (-10, -15, -20),
    (-14, "zero", "zero"), ("zero", "zero", -16), (-14, -16, "zero"),  # zero vectors
    ("zero", 0, -1),       # scales near the largest fp16
    ("zero", -38, -40), ("zero", -42, -45),  # scales that are subnormal in fp16, or 0
    ("zero", -80, -85), ("zero", -100, -140),  # squares that are subnormal in f32, or 0
)


def lines(d, books):
    words = SplitMix64(d)
    for number, (mean_exponent, k_exponent, v_exponent) in enumerate(CASES):
        seed, state, place = words.next(), words.next(), words.next()
        layer, head, token = place & 0xFFFF, place >> 16 & 0xFFFF, place >> 32 if number % 2 else place >> 16
        source = SplitMix64(state)
        mean_k, mean_v = draw(source, d, mean_exponent), draw(source, d, mean_exponent)
        k = mean_k + draw(source, d, k_exponent)
        v = mean_v + draw(source, d, v_exponent)
        record = encode(seed, k, v, mean_k, mean_v, (layer, head, token), books)
        yield "%016x %016x %s %s %s %d %d %d %s\n" % (
            seed, state, mean_exponent, k_exponent, v_exponent, layer, head, token, record.hex())


def main():
    books, differs = codebooks(), False
    np.seterr(under="ignore")
    for d in (64, 72, 96, 120, 128):
        path = os.path.join(HERE, "codec-%d.txt" % d)
        text = "# Golden records of head_dim %d; proto/RECORD.md tells how to read them.\n" % d
        text += "# seed input mean_exponent k_exponent v_exponent layer head token record\n" + "".join(lines(d, books))
        if "--check" in sys.argv[1:]:
            differs |= open(path, encoding="ascii").read() != text
        else:
            open(path, "w", encoding="ascii").write(text)
    sys.exit(1 if differs else 0)


main()
