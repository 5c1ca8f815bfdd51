#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Reads an archive with nothing but what FORMAT.md says. Argument: the make_archive program."""
import math
import os
import struct
import subprocess
import sys
import tempfile

try:
    import msgpack
except ImportError:
    print("python3-msgpack is not installed")
    sys.exit(77)

SALT = 77
FIELDS = (("signature", 16), ("k_scale", 2), ("k_mag", 32), ("v_code", 48), ("v_scale", 2), ("crc", 4))
MASK = (1 << 64) - 1


def make_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


TABLE = make_table()


def crc(*parts):
    value = 0xFFFFFFFF
    for part in parts:
        for byte in part:
            value = value >> 8 ^ TABLE[(value ^ byte) & 255]
    return value ^ 0xFFFFFFFF


def u32(data, at):
    return struct.unpack_from("<I", data, at)[0]


def u64(data, at):
    return struct.unpack_from("<Q", data, at)[0]


def check(condition, what):
    if not condition:
        raise AssertionError(what)


def read(*path):
    with open(os.path.join(*path), "rb") as file:
        return file.read()


# What fixture.c makes of a token's index.

def mix(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK
    return x ^ x >> 31


def wanted_id(token):
    return mix(SALT * 31 + token) & 0xFFFFFFFF


def wanted_record(layer, head, token):
    state = mix(SALT ^ mix(token << 20 | layer << 10 | head))
    record = bytearray()
    for _ in range(25):
        state = mix(state)
        record += struct.pack("<I", state & 0xFFFFFFFF)
    for at in (16, 98):
        struct.pack_into("<H", record, at, struct.unpack_from("<H", record, at)[0] % 0x7C00)
    return bytes(record)


def check_record(record, layer, head, token):
    check(u32(record, 100) == crc(record[:100], struct.pack("<HHQ", layer, head, token)), f"CRC of record {token}")
    if token % 16 == 0:
        check(record[:100] == wanted_record(layer, head, token), f"bytes of record {token}")


def map_file(data, magic):
    length = u32(data, 12)
    check(data[:8] == magic and u32(data, 8) == 1 and len(data) == length + 20, "envelope")
    check(u32(data, 16 + length) == crc(data[:16 + length]), "CRC of a map file")
    return msgpack.unpackb(data[16:16 + length], raw=False)


def read_segment(data, extent, meta):
    """Token ids of the extent; every page and record is checked."""
    geometry = meta["geometry"]
    layers, heads = geometry["layers"], geometry["kv_heads"]
    blocks = layers * heads
    table_pages = math.ceil(4 * (4 + 104 * blocks) / 4096)
    check(data[:8] == b"CKV-SEGM" and u32(data, 8) == 1 and u32(data, 16) == 0 and u32(data, 20) == 4096, "header")
    check(u32(data, 4092) == crc(data[:4092]), "CRC of the header")
    check(data[24:40] == extent["id"] and data[40:56] == meta["model"] and data[56:72] == meta["id"], "ids")
    check((u32(data, 72), u32(data, 76), u32(data, 80), u32(data, 84)) == (layers, heads, geometry["head_dim"], 1),
          "geometry")
    first, count, pages = u64(data, 88), u32(data, 96), u32(data, 116)
    check(first == extent["origin"] and u32(data, 100) == 4096 and u32(data, 112) == table_pages, "place")
    check(pages == 5 + table_pages + 104 * blocks and len(data) == pages * 4096, "size")
    check(not any(data[124:4092]), "zeros")
    table = data[4096:4096 * (1 + table_pages)]
    check(u32(data, 120) == crc(table), "CRC of the table")
    for page in range(1 + table_pages, pages):
        check(u32(table, 4 * (page - 1 - table_pages)) ==
              crc(data[24:40], struct.pack("<I", page), data[4096 * page:4096 * (page + 1)]), f"CRC of page {page}")
    ids = 1 + table_pages
    scan = ids + 4
    places = (("signature", scan, 18, 0), ("k_scale", scan, 18, 16), ("k_mag", scan + 18 * blocks, 32, 0),
              ("v_code", scan + 50 * blocks, 54, 0), ("v_scale", scan + 50 * blocks, 54, 48),
              ("crc", scan + 50 * blocks, 54, 50))
    widths = dict(FIELDS)
    skip = extent["first"] - first
    check(skip + extent["count"] <= count, "extent")
    for layer in range(layers):
        for head in range(heads):
            for i in range(skip, skip + extent["count"]):
                record = b""
                for name, region, step, page in places:
                    at = 4096 * (region + step * (layer * heads + head) + page) + widths[name] * i
                    record += data[at:at + widths[name]]
                check_record(record, layer, head, first + i)
    return list(struct.unpack_from(f"<{extent['count']}I", data, 4096 * ids + 4 * skip))


def read_log(data, first, meta):
    """Token ids, and ids ahead of the newest frame."""
    check(data[:8] == b"CKV-LOGS" and u32(data, 8) == 1 and u32(data, 12) == 0, "header of a log")
    check(u32(data, 60) == crc(data[:60]) and data[16:32] == meta["id"] and u64(data, 40) == first, "log's place")
    salt, at, ids, ahead, synced = data[32:40], 64, [], [], 0
    while at < len(data):
        seed = salt + struct.pack("<Q", at)
        size, count, more, layers, heads = u64(data, at + 8), *struct.unpack_from("<4I", data, at + 32)
        check(u32(data, at) == 0x46564B43 and u32(data, at + 4) == 0 and data[at + 48:at + 56] == salt, "frame")
        check(u32(data, at + 60) == crc(seed, data[at:at + 60]), "CRC of a frame's header")
        check(size == 64 + 4 * count + 4 * more + count * layers * heads * 104 + 4, "size of a frame")
        check(u32(data, at + size - 4) == crc(seed, data[at:at + size - 4]), "CRC of a frame")
        check(u64(data, at + 16) == first + len(ids) and synced <= u64(data, at + 24) <= at, "frame's place")
        synced = u64(data, at + 24)
        ids += struct.unpack_from(f"<{count}I", data, at + 64)
        ahead = list(struct.unpack_from(f"<{more}I", data, at + 64 + 4 * count))
        records = at + 64 + 4 * count + 4 * more
        for i in range(count):
            for block in range(layers * heads):
                place = records + 104 * (i * layers * heads + block)
                check_record(data[place:place + 104], block // heads, block % heads, u64(data, at + 16) + i)
        at += size
    return ids, ahead


def read_conversation(root, name):
    folder = os.path.join(root, "conversations", name)
    meta = map_file(read(folder, "meta"), b"CKV-META")
    check(meta["id"].hex() == name and meta["uid"] == 1000, "meta")
    ids, ahead = [], []
    for extent in meta["extents"]:
        check(extent["kind"] == 0 and extent["first"] == len(ids), "extent's place")
        segment = extent["id"].hex()
        ids += read_segment(read(root, "segments", segment[:2], segment + ".seg"), extent, meta)
    logs = sorted(int(n[4:]) for n in os.listdir(folder) if n.startswith("log-") and len(n) == 24)
    for i, first in enumerate(logs):
        if i + 1 < len(logs) and logs[i + 1] <= len(ids):
            continue
        check(first == len(ids), "log's place")
        more, ahead = read_log(read(folder, f"log-{first:020}"), first, meta)
        ids += more
    for token, value in enumerate(ids + ahead):
        check(value == wanted_id(token), f"id of token {token}")
    return meta, ids, ahead, logs


def main():
    with tempfile.TemporaryDirectory() as folder:
        root = os.path.join(folder, "archive")
        subprocess.run([sys.argv[1], root], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        models = os.listdir(os.path.join(root, "models"))
        check(len(models) == 1, "one model")
        model = map_file(read(root, "models", models[0]), b"CKV-MODL")
        check(model["id"].hex() == models[0] and model["basis"] == "hadamard" and model["seed"] == 42, "model")
        check(struct.unpack("<128f", model["mean_k"]) == tuple(i / 8 for i in range(128)), "means")
        found = {}
        for name in os.listdir(os.path.join(root, "conversations")):
            meta, ids, ahead, logs = read_conversation(root, name)
            found[meta["name"]] = (len(ids), len(ahead), len(meta["extents"]), logs, "model" in meta)
        check(found == {"x": (8500, 20, 1, [4096, 8192], True), "young": (0, 7, 0, [0], False)}, found)
    print("read 8500 tokens in one segment and two logs")


if __name__ == "__main__":
    main()
