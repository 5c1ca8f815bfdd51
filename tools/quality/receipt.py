# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Receipts: what was measured, with what, and whether measuring again gives the same."""
import hashlib
import os
import platform
import subprocess

FORMAT = 2
# What a second run may differ by: in answers, by chance on another machine; in divergence, as a share.
ACCURACY_SLACK, TOP1_SLACK, KL_SHARE, GROWTH_SLACK = 0.05, 0.005, 0.25, 0.05


def sha256_file(path):
    made = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            made.update(piece)
    return made.hexdigest()


def sha256_model(path):
    """Of a model's file, or of every file in its folder, by name."""
    if os.path.isfile(path):
        return {os.path.basename(path): sha256_file(path)}
    return {name: sha256_file(os.path.join(path, name)) for name in sorted(os.listdir(path))
            if os.path.isfile(os.path.join(path, name)) and name.endswith((".safetensors", ".json", ".gguf"))}


def said_by(*command):
    try:
        answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.decode(errors="replace").strip()


def line_of(path, key):
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return None


def machine():
    found = {"system": platform.platform(), "python": platform.python_version(),
             "processor": line_of("/proc/cpuinfo", "model name") or platform.machine(),
             "cores": len(os.sched_getaffinity(0)), "memory": line_of("/proc/meminfo", "MemTotal")}
    gpu = said_by("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    if gpu:
        found["gpu"] = gpu.splitlines()
    return found


def commit(root):
    return said_by("git", "-C", root, "describe", "--always", "--dirty", "--abbrev=12")


def differences(old, new):
    """What of a receipt a second run did not confirm, as sentences. Speeds are of the machine and the moment: they are
    not compared."""
    for name in ("weights", "texts"):
        if old["hashes"][name] != new["hashes"][name]:
            yield f"{name}: the hashes differ, so this is another measurement"
    for name, figures in old["figures"].items():
        for difference in engine_differences(figures, new["figures"].get(name, {"passkey": {}})):
            yield f"{name}: {difference}"


def engine_differences(old, new):
    for cell, figures in old["passkey"].items():
        again = new["passkey"].get(cell)
        for kind in ("accuracy", "cut"):
            if again is None or abs(again[kind] - figures[kind]) > ACCURACY_SLACK:
                yield f"passkey {cell}: {kind} {figures[kind]:.3f}, again {again and round(again[kind], 3)}"
    before, again = old.get("window"), new.get("window")
    if before and not again:
        yield "inside the window: not measured again"
    elif before:
        if abs(before["top1"] - again["top1"]) > TOP1_SLACK:
            yield f"same likeliest token: {before['top1']:.4f}, again {again['top1']:.4f}"
        if abs(before["kl_median"] - again["kl_median"]) > KL_SHARE * before["kl_median"]:
            yield f"median KL: {before['kl_median']:.6f}, again {again['kl_median']:.6f}"
    before, again = old.get("memory"), new.get("memory")
    if before:
        for kind, growth in before["growth"].items():
            found = again["growth"].get(kind) if again else None
            if found is None or abs(growth - found) > GROWTH_SLACK:
                yield f"memory ({kind}): grew by {growth:.3f}, again by {found}"
