#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""What coldkv does for an engine and what it costs: answers from beyond the window, divergence inside, speed, memory.

    quality.py run --coldkvd build/daemon/coldkvd --receipt FILE     measures, prints a table, writes a receipt
    quality.py check FILE --coldkvd build/daemon/coldkvd             does the same again and compares

The table's last column says whether a goal is met; status 1 means that one is not, or that a receipt was not confirmed.
"""
import argparse
import concurrent.futures
import json
import multiprocessing
import os
import shlex
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.normpath(os.path.join(HERE, "..", ".."))
sys.path[:0] = [HERE, os.path.join(ROOT, "client", "python")]

import receipt as receipts  # noqa: E402
from measure import Meter, examine  # noqa: E402
from service import Service  # noqa: E402

# Settings of a run: cells are sizes x facts, each with its number of questions.
SMALL = {"cells": [[2048, 1, 3], [8192, 12, 8]], "window_documents": 1, "speed_size": 4096, "memory": [2048, 4096]}
FULL = {"cells": [[2048, 1, 100], [2048, 12, 100], [8192, 1, 100], [8192, 40, 100], [16384, 1, 100], [16384, 40, 100],
                  [65536, 1, 24], [65536, 40, 24]],
        "window_documents": 4, "speed_size": 16384, "memory": [2048, 4096, 8192, 16384, 32768, 65536]}
GOALS = {"16384 tokens, 1 fact": 0.95, "16384 tokens, 40 facts": 0.85}
TOP1_GOAL, KL_GOAL, SPEED_GOAL, GROWTH_GOAL = 0.975, 0.0005, 0.7, 1.05


def name_of(size, facts):
    return f"{size} tokens, {facts} fact{'s' if facts > 1 else ''}"


def make_engine(settings, model, socket):
    if settings["engine"] == "transformers":
        from engine_transformers import Transformers
        return Transformers(model, socket, settings["device"], settings["dtype"], settings["threads"])
    sys.exit(f"quality: no engine {settings['engine']}")


class Examiners:
    """Examines books with the engine at hand, or with as many more as there are jobs, each in a process of its own."""

    def __init__(self, settings, model, socket, engine):
        self.settings, self.model, self.socket, self.engine = settings, model, socket, engine
        self.number = 0

    def __call__(self, books):
        names = [f"book-{self.number + i}" for i in range(len(books))]
        self.number += len(books)
        slots, jobs = self.settings["slots"], min(self.settings["jobs"], len(books))
        if jobs == 1:
            return [examine(self.engine, book, slots, name) for book, name in zip(books, names)]
        with concurrent.futures.ProcessPoolExecutor(
                jobs, multiprocessing.get_context("spawn"), begin_job,
                (self.settings, self.model, self.socket)) as pool:
            return list(pool.map(do_job, books, names))


def begin_job(settings, model, socket):
    global job_engine, job_slots
    job_engine, job_slots = make_engine(settings, model, socket), settings["slots"]


def do_job(book, name):
    return examine(job_engine, book, job_slots, name)


def measure(settings, coldkvd, model):
    """The figures of a run, and hashes of what they are of."""
    figures = {"passkey": {}}
    with Service(coldkvd) as service:
        engine = make_engine(settings, model, service.socket)
        meter = Meter(engine, settings["slots"], Examiners(settings, model, service.socket, engine))
        if settings["memory"]:  # first: memory that something else has freed would hide what grows
            say("memory")
            figures["memory"] = meter.memory(settings["memory"])
        if settings["window_documents"]:
            say("inside the window")
            figures["window"] = meter.inside_window(settings["window_documents"])
        for size, facts, questions in settings["cells"]:
            say(name_of(size, facts))
            figures["passkey"][name_of(size, facts)] = meter.passkey(size, facts, questions)
        if settings["speed_size"]:
            say("speed")
            figures["speed"] = meter.decode_speed(settings["speed_size"])
        versions, device = engine.versions(), engine.device()
    return figures, {"versions": versions, "device": device}, meter.texts.hexdigest()


def say(what):
    print(f"quality: {what}", file=sys.stderr, flush=True)


def rows(figures):
    """(what, figure, goal, met or None) of everything."""
    for cell, found in figures["passkey"].items():
        goal = GOALS.get(cell)
        yield (f"{cell}: right, of {found['questions']}", f"{found['accuracy']:.3f}", f">= {goal}" if goal else "",
               found["accuracy"] >= goal if goal else None)
        yield (f"{cell}: with retrieval cut, of {found['cut_questions']}", f"{found['cut']:.3f}", "0" if goal else "",
               found["cut"] == 0 if goal else None)
    if window := figures.get("window"):
        yield ("inside the window: median KL, nats", f"{window['kl_median']:.6f}", f"<= {KL_GOAL}",
               window["kl_median"] <= KL_GOAL)
        yield "inside the window: mean KL, nats", f"{window['kl_mean']:.5f}", "", None
        yield ("inside the window: same likeliest token", f"{window['top1']:.4f}", f">= {TOP1_GOAL}",
               window["top1"] >= TOP1_GOAL)
    if speed := figures.get("speed"):
        yield "tokens per second with coldkv", f"{speed['tokens_per_second']:.1f}", "", None
        yield "tokens per second without, in a full window", f"{speed['plain_tokens_per_second']:.1f}", "", None
        yield "their ratio", f"{speed['ratio']:.2f}", f">= {SPEED_GOAL}", speed["ratio"] >= SPEED_GOAL
    if memory := figures.get("memory"):
        first, last = memory["sizes"][0], memory["sizes"][-1]
        for kind, growth in memory["growth"].items():
            yield (f"{kind} memory at {last['tokens']} over that at {first['tokens']} tokens "
                   f"({first[kind] / 2**20:.0f} MiB)", f"{growth:.3f}", f"<= {GROWTH_GOAL}", growth <= GROWTH_GOAL)


def show(figures):
    """Prints the table; returns whether every goal is met."""
    table = list(rows(figures))
    width = max(len(row[0]) for row in table)
    good = True
    for what, figure, goal, met in table:
        mark = "" if met is None else "met" if met else "MISSED"
        print(f"{what:<{width}}  {figure:>9}  {goal:<9} {mark}".rstrip())
        good &= met is not False
    return good


def run(settings, coldkvd, model):
    """Measures and returns the receipt."""
    start = time.time()
    figures, engine, texts = measure(settings, coldkvd, model)
    library = os.environ.get("COLDKV_LIBRARY")
    import coldkv
    return {"format": receipts.FORMAT, "settings": settings,
            "command": shlex.join(["python3", os.path.relpath(__file__, ROOT), *sys.argv[1:]]),
            "project": {"version": coldkv.__version__, "commit": receipts.commit(ROOT)},
            "engine": engine, "machine": receipts.machine(),
            "hashes": {"weights": receipts.sha256_model(model), "texts": texts,
                       "coldkvd": receipts.sha256_file(coldkvd),
                       "libcoldkv": receipts.sha256_file(library) if library else None},
            "began": int(start), "seconds": round(time.time() - start, 1), "figures": figures}


def settings_of(arguments):
    settings = dict(FULL if arguments.full else SMALL)
    if arguments.cells:
        settings["cells"] = [[int(part) for part in cell.split(":")] for cell in arguments.cells]
    elif arguments.questions:
        settings["cells"] = [[size, facts, arguments.questions] for size, facts, _ in settings["cells"]]
    for name in arguments.leave_out:
        settings[{"passkey": "cells", "window": "window_documents", "speed": "speed_size"}.get(name, name)] = []
    settings.update(engine=arguments.engine, device=arguments.device, dtype=arguments.dtype,
                    threads=arguments.threads, slots=arguments.slots, jobs=arguments.jobs)
    return settings


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="measure")
    checking = commands.add_parser("check", help="measure again what a receipt says")
    checking.add_argument("file", help="the receipt")
    for command in (running, checking):
        command.add_argument("--coldkvd", required=True, help="the daemon")
        command.add_argument("--model", default=os.path.join(ROOT, "tools", "demo", "model"), help="folder or file")
        command.add_argument("--receipt", help="where to write the receipt")
    running.add_argument("--engine", default="transformers", choices=["transformers"])
    running.add_argument("--full", action="store_true", help="the numbers of questions that figures are given with")
    running.add_argument("--cells", nargs="+", metavar="TOKENS:FACTS:QUESTIONS", help="these cells only")
    running.add_argument("--questions", type=int, help="questions in every cell")
    running.add_argument("--leave-out", nargs="+", default=[], choices=["passkey", "window", "speed", "memory"])
    running.add_argument("--device", default="cpu", help="of the model: cpu, cuda")
    running.add_argument("--dtype", default="float32", help="of the model: float32, bfloat16, float16")
    running.add_argument("--threads", type=int, default=1, help="of the engine on the processor")
    running.add_argument("--jobs", type=int, default=1, help="processes that read documents at the same time")
    running.add_argument("--slots", type=int, default=64, help="retrieved tokens per query, layer and kv head")
    return parser.parse_args()


def main():
    arguments = parse()
    if arguments.command == "check":
        with open(arguments.file, encoding="utf-8") as file:
            old = json.load(file)
        if old.get("format") != receipts.FORMAT:
            sys.exit(f"{arguments.file}: not a receipt of format {receipts.FORMAT}")
        settings = old["settings"]
    else:
        settings = settings_of(arguments)
    made = run(settings, os.path.abspath(arguments.coldkvd), arguments.model)
    good = show(made["figures"])
    if arguments.receipt:
        with open(arguments.receipt, "w", encoding="utf-8") as file:
            json.dump(made, file, indent=1)
            file.write("\n")
    if arguments.command == "check":
        different = list(receipts.differences(old, made))
        print("\n".join(different) or "confirmed")
        good = not different
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
