#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""What coldkv does for an engine and what it costs: answers from beyond the window, divergence inside, speed, memory.

    quality.py run --coldkvd build/daemon/coldkvd --receipt FILE     measures, prints a table, writes a receipt
    quality.py check FILE --coldkvd build/daemon/coldkvd             does the same again and compares
    quality.py show FILE...                                          one table of several receipts

A figure that misses its goal is marked with "!"; status 1 means that one does, or that a receipt was not confirmed.
"""
import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import shlex
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.normpath(os.path.join(HERE, "..", ".."))
sys.path[:0] = [HERE, os.path.join(ROOT, "client", "python")]

import llama_build  # noqa: E402
import receipt as receipts  # noqa: E402
from engine_lines import Driver, Lines  # noqa: E402
from measure import Meter, examine  # noqa: E402
from service import Service  # noqa: E402

# Settings of a run: cells are sizes x facts, each with its number of questions.
SMALL = {"cells": [[2048, 1, 3], [8192, 12, 8]], "window_documents": 1, "speed_size": 4096, "memory": [2048, 4096]}
FULL = {"cells": [[2048, 1, 100], [2048, 12, 100], [8192, 1, 100], [8192, 40, 100], [16384, 1, 100], [16384, 40, 100],
                  [65536, 1, 24], [65536, 40, 24]],
        "window_documents": 4, "speed_size": 16384, "memory": [2048, 4096, 8192, 16384, 32768, 65536]}
ENGINES = ("transformers", "llama.cpp", "demo")
GOALS = {"16384 tokens, 1 fact": 0.95, "16384 tokens, 40 facts": 0.85}
TOP1_GOAL, KL_GOAL, SPEED_GOAL, GROWTH_GOAL = 0.975, 0.0005, 0.7, 1.05


def name_of(size, facts):
    return f"{size} tokens, {facts} fact{'s' if facts > 1 else ''}"


@dataclasses.dataclass(frozen=True)
class Places:
    """Where things are: the daemon, the folder it was built in, that for llama.cpp, and the model's folder."""

    coldkvd: str
    build: str
    llama: str
    model: str

    def gguf(self):
        return os.path.join(self.llama, "tiny.gguf")


def make_engine(name, settings, places, socket):
    if name == "transformers":
        from engine_transformers import Transformers
        return Transformers(places.model, socket, settings["device"], settings["dtype"], settings["threads"],
                            settings.get("spin_us", 0))
    folder, model = (places.llama, places.gguf()) if name == "llama.cpp" else (places.build, places.model)
    program = os.path.join(folder, "tools", "quality", "quality-" + name.partition(".")[0])
    return Lines(name, Driver(program, model, socket, settings["threads"]), settings["threads"])


class Examiners:
    """Examines books with the engine at hand, or with as many more as there are jobs, each in a process of its own."""

    def __init__(self, name, settings, places, socket, engine):
        self.engine, self.begin = engine, (name, settings, places, socket)
        self.slots, self.jobs, self.name, self.number = settings["slots"], settings["jobs"], name, 0

    def __call__(self, books):
        names = [f"{self.name}-book-{self.number + i}" for i in range(len(books))]
        self.number += len(books)
        jobs = min(self.jobs, len(books))
        if jobs == 1:
            return [examine(self.engine, book, self.slots, name) for book, name in zip(books, names)]
        with concurrent.futures.ProcessPoolExecutor(
                jobs, multiprocessing.get_context("spawn"), begin_job, self.begin) as pool:
            return list(pool.map(do_job, books, names))


def begin_job(name, settings, places, socket):
    global job_engine, job_slots
    job_engine, job_slots = make_engine(name, settings, places, socket), settings["slots"]


def do_job(book, name):
    return examine(job_engine, book, job_slots, name)


def measure(name, settings, places):
    """The figures of one engine, what it is, and a hash of the texts."""
    start, figures = time.time(), {"passkey": {}}
    with Service(places.coldkvd, "--spin-us", str(settings.get("spin_us", 0))) as service:
        engine = make_engine(name, settings, places, service.socket)
        meter = Meter(engine, settings["slots"], Examiners(name, settings, places, service.socket, engine))
        if settings["memory"]:  # first: memory that something else has freed would hide what grows
            say(f"{name}: memory")
            figures["memory"] = meter.memory(settings["memory"])
        if settings["window_documents"]:
            say(f"{name}: inside the window")
            figures["window"] = meter.inside_window(settings["window_documents"])
        for size, facts, questions in settings["cells"]:
            say(f"{name}: {name_of(size, facts)}")
            figures["passkey"][name_of(size, facts)] = meter.passkey(size, facts, questions)
        if settings["speed_size"]:
            say(f"{name}: speed")
            figures["speed"] = meter.decode_speed(settings["speed_size"])
        about = {"versions": engine.versions(), "device": engine.device(), "seconds": round(time.time() - start, 1)}
    return figures, about, meter.texts.hexdigest()


def say(what):
    print(f"quality: {what}", file=sys.stderr, flush=True)


def rows(name, figures):
    """(what, goal, figure, whether the goal is met or None) of everything of an engine."""
    for cell, found in figures["passkey"].items():
        goal = GOALS.get(cell)
        yield (f"{cell}: right", f">= {goal}" if goal else "", f"{found['accuracy']:.3f} of {found['questions']}",
               found["accuracy"] >= goal if goal else None)
        yield (f"{cell}: with retrieval cut", "0" if goal else "", f"{found['cut']:.3f} of {found['cut_questions']}",
               found["cut"] == 0 if goal else None)
    if window := figures.get("window"):
        yield ("inside the window: median KL, nats", f"<= {KL_GOAL}", f"{window['kl_median']:.6f}",
               window["kl_median"] <= KL_GOAL)
        yield "inside the window: mean KL, nats", "", f"{window['kl_mean']:.5f}", None
        yield ("inside the window: same likeliest token", f">= {TOP1_GOAL}",
               f"{window['top1']:.4f} of {window['positions']}", window["top1"] >= TOP1_GOAL)
    if speed := figures.get("speed"):
        yield "tokens per second with coldkv", "", f"{speed['tokens_per_second']:.1f}", None
        yield "tokens per second without, in a full window", "", f"{speed['plain_tokens_per_second']:.1f}", None
        yield ("their ratio", f">= {SPEED_GOAL} (transformers)", f"{speed['ratio']:.2f}",
               speed["ratio"] >= SPEED_GOAL if name == "transformers" else None)
        yield "their ratio, by medians", "", f"{speed['median_ratio']:.2f}", None
    if memory := figures.get("memory"):
        first, last = memory["sizes"][0], memory["sizes"][-1]
        for kind, growth in memory["growth"].items():
            yield (f"{kind} memory at {last['tokens']} over that at {first['tokens']} tokens", f"<= {GROWTH_GOAL}",
                   f"{growth:.3f} of {first[kind] / 2**20:.0f} MiB", growth <= GROWTH_GOAL)


def show(figures):
    """Prints the table of all engines, as Markdown; returns whether every goal is met."""
    columns, order, good = {}, {}, True
    for name, found in figures.items():
        columns[name] = {}
        for what, goal, figure, met in rows(name, found):
            order[what] = goal
            columns[name][what] = figure + (" !" if met is False else "")
            good &= met is not False
    table = [["", "goal", *columns]]
    table += [[what, goal, *(column.get(what, "") for column in columns.values())] for what, goal in order.items()]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    table.insert(1, ["-" * width for width in widths])
    for row in table:
        print("| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)) + " |")
    return good


def run(settings, places):
    """Measures and returns the receipt."""
    start = time.time()
    library = os.path.join(places.build, "client", "libcoldkv.so.0")
    os.environ.setdefault("COLDKV_LIBRARY", library)
    import coldkv
    weights = receipts.sha256_model(places.model)
    if "llama.cpp" in settings["engines"]:
        llama_build.build(places.llama)
        weights |= receipts.sha256_model(places.gguf())
    measured = {name: measure(name, settings, places) for name in settings["engines"]}
    return {"format": receipts.FORMAT, "settings": settings,
            "command": shlex.join(["python3", os.path.relpath(__file__, ROOT), *sys.argv[1:]]),
            "project": {"version": coldkv.__version__, "commit": receipts.commit(ROOT)},
            "engines": {name: about for name, (_, about, _) in measured.items()}, "machine": receipts.machine(),
            "hashes": {"weights": weights, "texts": {name: texts for name, (_, _, texts) in measured.items()},
                       "coldkvd": receipts.sha256_file(places.coldkvd),
                       "libcoldkv": receipts.sha256_file(os.environ["COLDKV_LIBRARY"])},
            "began": int(start), "seconds": round(time.time() - start, 1),
            "figures": {name: figures for name, (figures, _, _) in measured.items()}}


def settings_of(arguments):
    settings = dict(FULL if arguments.full else SMALL)
    if arguments.cells:
        settings["cells"] = [[int(part) for part in cell.split(":")] for cell in arguments.cells]
    elif arguments.questions:
        settings["cells"] = [[size, facts, arguments.questions] for size, facts, _ in settings["cells"]]
    for name in arguments.leave_out:
        settings[{"passkey": "cells", "window": "window_documents", "speed": "speed_size"}.get(name, name)] = []
    settings.update(engines=arguments.engines, device=arguments.device, dtype=arguments.dtype,
                    spin_us=arguments.spin_us, threads=arguments.threads, slots=arguments.slots, jobs=arguments.jobs)
    return settings


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="measure")
    checking = commands.add_parser("check", help="measure again what a receipt says")
    checking.add_argument("file", help="the receipt")
    showing = commands.add_parser("show", help="print one table of several receipts")
    showing.add_argument("files", nargs="+", help="receipts; later ones add to earlier ones")
    for command in (running, checking):
        command.add_argument("--coldkvd", required=True, help="the daemon, in the folder that it was built in")
        command.add_argument("--model", default=llama_build.MODEL, help="the model's folder")
        command.add_argument("--llama", help="folder to build for llama.cpp in (beside the tests)")
        command.add_argument("--receipt", help="where to write the receipt")
    running.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    running.add_argument("--full", action="store_true", help="the numbers of questions that figures are given with")
    running.add_argument("--cells", nargs="+", metavar="TOKENS:FACTS:QUESTIONS", help="these cells only")
    running.add_argument("--questions", type=int, help="questions in every cell")
    running.add_argument("--leave-out", nargs="+", default=[], choices=["passkey", "window", "speed", "memory"])
    running.add_argument("--device", default="cpu", help="of the model: cpu, cuda")
    running.add_argument("--dtype", default="float32", help="of the model: float32, bfloat16, float16")
    running.add_argument("--threads", type=int, default=1, help="of the engine on the processor")
    running.add_argument("--jobs", type=int, default=1, help="processes that read documents at the same time")
    running.add_argument("--spin-us", type=int, default=0,
                         help="of the daemon and of transformers: shorter waits where processors idle")
    running.add_argument("--slots", type=int, default=64, help="retrieved tokens per query, layer and kv head")
    return parser.parse_args()


def load(path):
    with open(path, encoding="utf-8") as file:
        found = json.load(file)
    if found.get("format") != receipts.FORMAT:
        sys.exit(f"{path}: not a receipt of format {receipts.FORMAT}")
    return found


def merged(paths):
    """The figures of several receipts."""
    figures = {}
    for path in paths:
        for name, found in load(path)["figures"].items():
            mine = figures.setdefault(name, {"passkey": {}})
            passkey = {**mine["passkey"], **found["passkey"]}
            mine.update(found, passkey=passkey)
    return figures


def main():
    arguments = parse()
    if arguments.command == "show":
        return 0 if show(merged(arguments.files)) else 1
    old = load(arguments.file) if arguments.command == "check" else None
    settings = old["settings"] if old else settings_of(arguments)
    coldkvd = os.path.abspath(arguments.coldkvd)
    build = os.path.dirname(os.path.dirname(coldkvd))
    llama = os.path.abspath(arguments.llama or os.path.join(build, "tests", "engines", "llama"))
    made = run(settings, Places(coldkvd, build, llama, os.path.abspath(arguments.model)))
    good = show(made["figures"])
    if arguments.receipt:
        with open(arguments.receipt, "w", encoding="utf-8") as file:
            json.dump(made, file, indent=1)
            file.write("\n")
    if old:
        different = list(receipts.differences(old, made))
        print("\n".join(different) or "confirmed")
        good = not different
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
