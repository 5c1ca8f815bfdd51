#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Times in plain PyTorch what a scan does: cuda_compare.py HEADS TOKENS CANDIDATES.

One query row for each kv head: scores of all 128-bit signatures, and the best CANDIDATES of each head. The ways there
are with signatures as they are stored are tried, and that with signs unpacked to fp16, sixteen times the memory. Prints
"name microseconds what" lines; "torch_weighted_us" and "torch_hamming_us" are the fastest of stored signatures. Prints
nothing where there is no PyTorch that sees a GPU."""
import sys

try:
    import torch
except ImportError:
    sys.exit()
if not torch.cuda.is_available():
    sys.exit()

HEADS, TOKENS, BEST = map(int, sys.argv[1:4])
SETS = 4  # that take turns, so that no cache holds them
DEVICE = torch.device("cuda")
WEIGHTS = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8, device=DEVICE)
BYTE_BITS = torch.tensor([[1 - 2 * (b >> i & 1) for i in range(8)] for b in range(256)], dtype=torch.float16,
                         device=DEVICE)
POPCOUNTS = torch.tensor([bin(i).count("1") for i in range(65536)], dtype=torch.uint8, device=DEVICE)


def popcount(x):
    """Of int64, by bit tricks, in place."""
    x -= (x >> 1) & 0x5555555555555555
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (x * 0x0101010101010101) >> 56


def hamming_tricks(words, q):
    distance = popcount(words ^ q["sign"]).sum(-1, dtype=torch.int32)
    return torch.topk(distance, BEST, largest=False, sorted=False)


def hamming_table(words, q):
    index = (words ^ q["sign"]).view(torch.int16).to(torch.int32) & 0xFFFF
    distance = POPCOUNTS[index].sum(-1, dtype=torch.int32)
    return torch.topk(distance, BEST, largest=False, sorted=False)


def weighted_tricks(words, scales, q):
    differs = words ^ q["sign"]
    opposed = sum(popcount(differs & q["planes"][p]) << p for p in range(3)).sum(-1)
    score = (q["sum"] - 2 * opposed).to(torch.float32) * scales
    return torch.topk(score, BEST, sorted=False)


def weighted_table(words, scales, q):
    """For each byte of a query a table of what its 256 values add."""
    codes = words.view(torch.uint8)
    total = torch.zeros(HEADS, TOKENS, dtype=torch.float16, device=DEVICE)
    for byte in range(16):
        total += torch.gather(q["table"][:, byte], 1, codes[:, :, byte].to(torch.int64))
    return torch.topk(total.to(torch.float32) * scales, BEST, sorted=False)


def weighted_unpacked(signs, scales, q):
    score = torch.bmm(signs, q["q4"].to(torch.float16).unsqueeze(-1)).squeeze(-1)
    return torch.topk(score.to(torch.float32) * scales, BEST, sorted=False)


def make_query():
    q4 = torch.randint(-7, 8, (HEADS, 128), device=DEVICE)

    def words(bits):
        packed = (bits.view(HEADS, 16, 8).to(torch.uint8) * WEIGHTS).sum(-1, dtype=torch.uint8)
        return packed.view(torch.int64).view(HEADS, 1, 2)

    return {"q4": q4, "sign": words(q4 < 0), "planes": [words(q4.abs() >> p & 1) for p in range(3)],
            "sum": q4.abs().sum(-1, keepdim=True),
            "table": torch.einsum("hbi,vi->hbv", q4.view(HEADS, 16, 8).to(torch.float16), BYTE_BITS).contiguous()}


def unpack(words):
    codes = words.view(torch.uint8).to(torch.int64)
    return BYTE_BITS[codes].view(HEADS, TOKENS, 128)


def microseconds(function, inputs, queries):
    for i in range(3):
        function(*inputs[i % len(inputs)], queries[i])
    times = []
    for i in range(24):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        function(*inputs[i % len(inputs)], queries[i % len(queries)])
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return sorted(times)[len(times) // 2]


def try_all(name, ways, inputs, queries):
    """The fastest way; all have to find the same scores."""
    found, times = [], []
    for way, what in ways:
        times.append((microseconds(way, inputs, queries), what))
        values = way(*inputs[0], queries[0]).values
        found.append(values.to(torch.float64).sort(-1).values)
        print(f"torch_{name}_{what.split()[-1]}_us", times[-1][0], what, flush=True)
    assert all(torch.equal(found[0], other) for other in found), name
    best = min(times)
    print(f"torch_{name}_us", best[0], f"PyTorch {torch.__version__}, {best[1]}, topk", flush=True)
    return found[0]


def main():
    torch.manual_seed(1)
    words = [torch.randint(-2 ** 63, 2 ** 63 - 1, (HEADS, TOKENS, 2), device=DEVICE) for _ in range(SETS)]
    scales = [(torch.rand(HEADS, TOKENS, device=DEVICE) + 0.5).to(torch.float16) for _ in range(SETS)]
    queries = [make_query() for _ in range(6)]
    stored = list(zip(words, scales))
    found = try_all("weighted", [(weighted_tricks, "XOR and popcount by bit tricks"),
                                 (weighted_table, "a lookup in byte tables")], stored, queries)
    try_all("hamming", [(hamming_tricks, "XOR and popcount by bit tricks"), (hamming_table, "XOR and 16-bit tables")],
            [(w,) for w in words], queries)
    unpacked = [(unpack(words[i]), scales[i]) for i in range(2)]
    values = weighted_unpacked(*unpacked[0], queries[0]).values.to(torch.float64).sort(-1).values
    assert torch.equal(values, found)
    print("torch_weighted_unpacked_us", microseconds(weighted_unpacked, unpacked, queries),
          "the same with signs unpacked to fp16 (16 times the memory): matrix product, topk", flush=True)


main()
