# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Many tokens quickly: ids and records that follow from their place, so that whatever comes back can be checked without
remembering what was sent."""
import numpy as np

from coldkv_protocol import HEAD_DIM, RECORD_BYTES


def crc_table():
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table


TABLE = crc_table()


def token_ids(first, count, salt=0):
    """u32 [count]; another salt makes other tokens"""
    token = np.arange(first, first + count, dtype=np.uint64) + np.uint64(salt << 32)
    return ((token * np.uint64(2654435761)) >> np.uint64(7)).astype("<u4")


def records(shape, first, count, salt=0):
    """u8 [count][layers][kv_heads][104]"""
    layers, heads = shape["layers"], shape["kv_heads"]
    token, layer, head = np.meshgrid(np.arange(first, first + count), np.arange(layers), np.arange(heads),
                                     indexing="ij")
    token, layer, head = token.ravel().astype(np.uint64), layer.ravel(), head.ravel()
    state = token * np.uint64(64) + layer.astype(np.uint64) * np.uint64(8) + head.astype(np.uint64)
    state = state + np.uint64(1 + (salt << 40))
    out = np.zeros((len(token), RECORD_BYTES + 12), np.uint8)
    for at in range(0, 96, 8):  # splitmix64
        state = state + np.uint64(0x9E3779B97F4A7C15)
        x = (state ^ state >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        out[:, at:at + 8] = (x ^ x >> np.uint64(31)).astype("<u8").view(np.uint8).reshape(-1, 8)
    scale = (0.5 + (out[:, 0] % 64) / 64.0).astype("<f2").view(np.uint8).reshape(-1, 2)
    out[:, 16:18] = scale
    out[:, 98:100] = scale
    place = out[:, 100:112]
    place[:, 0:2] = layer.astype("<u2").view(np.uint8).reshape(-1, 2)
    place[:, 2:4] = head.astype("<u2").view(np.uint8).reshape(-1, 2)
    place[:, 4:12] = token.astype("<u8").view(np.uint8).reshape(-1, 8)
    crc = np.full(len(token), 0xFFFFFFFF, np.uint32)
    for at in range(112):
        crc = TABLE[(crc ^ out[:, at]) & 0xFF] ^ (crc >> np.uint32(8))
    out[:, 100:104] = (crc ^ np.uint32(0xFFFFFFFF)).astype("<u4").view(np.uint8).reshape(-1, 4)
    return out[:, :RECORD_BYTES].reshape(count, layers, heads, RECORD_BYTES)


def append(client, shape, handle, first, count, ahead=0):
    """Sends tokens first .. first + count - 1; returns the answer."""
    return client.call("conversation.append", conversation=handle, first=first,
                       ids=token_ids(first, count).tobytes(), records=records(shape, first, count).tobytes(),
                       ahead=token_ids(first + count, ahead).tobytes())


def fill(client, shape, handle, end, first=0):
    while first < end:
        count = min(256, end - first)
        append(client, shape, handle, first, count)
        first += count


def queries(shape, seed=1):
    """f32 [1][kv_heads][128]"""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape["kv_heads"] * HEAD_DIM).astype("<f4").tobytes()


def lookup(client, shape, handle, layer=0, k=8, seed=1):
    """Looks up and checks every record that came; returns the token indices of each kv head."""
    answer = client.call("conversation.lookup", conversation=handle, layer=layer, rows=1, queries=queries(shape, seed),
                         k=k)
    found = []
    for head, part in enumerate(answer["heads"]):
        tokens = np.frombuffer(part["tokens"], "<u8").astype(int)
        got = np.frombuffer(part["records"], np.uint8).reshape(-1, RECORD_BYTES)
        assert len(tokens) == len(got)
        for token, record in zip(tokens, got):
            assert np.array_equal(record, records(shape, int(token), 1)[0, layer, head]), f"token {token} is wrong"
        found.append(tokens.tolist())
    return found


def check_all(client, shape, handle, count, salt=0):
    """Reads ids and records of tokens 0 .. count - 1; returns how many are wrong."""
    if not count:
        return 0
    got = np.frombuffer(client.call("conversation.tokens", conversation=handle, first=0, count=count)["ids"], "<u4")
    wrong = int((got != token_ids(0, len(got), salt)).sum()) + count - len(got)
    wanted = records(shape, 0, count, salt)
    for layer in range(shape["layers"]):
        for head in range(shape["kv_heads"]):
            part = client.call("conversation.read", conversation=handle, layer=layer, head=head, first=0, count=count)
            bytes_ = np.frombuffer(part["records"], np.uint8).reshape(-1, RECORD_BYTES)
            wrong += int((bytes_ != wanted[:, layer, head]).any(axis=1).sum())
    return wrong
