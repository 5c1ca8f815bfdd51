# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""A made-up model: random vectors of token index and layer, and attention over all of them in float64."""
import numpy as np

import coldkv

LAYERS, KV_HEADS, GROUP, DIM, WINDOW = 2, 2, 2, 64, 4096
HEADS = KV_HEADS * GROUP
THETA = 10000.0


def model(client, fingerprint=bytes(range(32)), **changes):
    description = {"layers": LAYERS, "kv_heads": KV_HEADS, "group": GROUP, "head_dim": DIM, "window": WINDOW,
                   "rope_theta": THETA, "fingerprint": fingerprint, "name": "toy", **changes}
    return coldkv.Model(client, **description)


def vectors(layer, first, count):
    """q [count, HEADS, DIM], k and v [count, KV_HEADS, DIM] before RoPE, the same for a token whenever asked."""
    made = []
    for token in range(first, first + count):
        random = np.random.default_rng((layer, token))
        made.append(random.standard_normal((HEADS + 2 * KV_HEADS, DIM), np.float32))
    all_of = np.stack(made)
    parts = all_of[:, :HEADS], all_of[:, HEADS:HEADS + KV_HEADS], all_of[:, HEADS + KV_HEADS:]
    return tuple(np.ascontiguousarray(part) for part in parts)


def rotate(x, positions, interleaved=False):
    """RoPE of x [n, heads, DIM] in float64."""
    x = np.asarray(x, np.float64)
    angles = np.asarray(positions, np.float64)[:, None, None] * THETA ** (-np.arange(0, DIM, 2) / DIM)
    out = np.empty_like(x)
    real, imaginary = slice(0, DIM // 2), slice(DIM // 2, None)
    if interleaved:
        real, imaginary = slice(0, None, 2), slice(1, None, 2)
    a, b = x[..., real], x[..., imaginary]
    out[..., real] = a * np.cos(angles) - b * np.sin(angles)
    out[..., imaginary] = a * np.sin(angles) + b * np.cos(angles)
    return out


def attention(layer, first, count, interleaved=False):
    """What rows first .. first + count - 1 see of all tokens up to themselves: [count, HEADS, DIM] float64."""
    q = rotate(vectors(layer, first, count)[0], np.arange(first, first + count), interleaved)
    _, k, v = vectors(layer, 0, first + count)
    k, v = rotate(k, np.arange(first + count), interleaved), v.astype(np.float64)
    out = np.empty((count, HEADS, DIM))
    for row in range(count):
        end = first + row + 1
        for head in range(HEADS):
            scores = k[:end, head // GROUP] @ q[row, head] / np.sqrt(DIM)
            weights = np.exp(scores - scores.max())
            out[row, head] = weights @ v[:end, head // GROUP] / weights.sum()
    return out


def ids(first, count):
    return np.arange(first, first + count, dtype=np.uint32) % 1000


def feed(conversation, first, count, block=64):
    """Feeds made-up tokens; returns the attention of all of them, one array [count, HEADS, DIM] per layer."""
    outs = [[] for _ in range(LAYERS)]
    for at in range(first, first + count, block):
        size = min(block, first + count - at)
        with conversation.block(ids(at, size)):
            for layer in range(LAYERS):
                outs[layer].append(conversation.attend(layer, *vectors(layer, at, size)))
    return [np.concatenate(out) for out in outs]
