# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""The quality harness in its smallest form: it measures, writes a receipt, confirms it, and confirms no other. Of the
engines here are transformers and the demo's; llama.cpp is in test_llama.py."""
import copy
import json
import os
import sys

import documents
import quality
import receipt

SETTINGS = {"engines": ["transformers", "demo"], "cells": [[3072, 3, 3]], "window_documents": 0, "speed_size": 0,
            "memory": [], "device": "cpu", "dtype": "float32", "threads": 1, "slots": 64, "jobs": 1}


def harness(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["quality.py", *arguments])
    status = quality.main()
    return status, capsys.readouterr().out


def test_a_receipt_is_written_and_confirmed(monkeypatch, capsys, tmp_path):
    first, second, forged = (str(tmp_path / name) for name in ("first", "second", "forged"))
    daemon = ("--coldkvd", os.environ["COLDKVD"])
    monkeypatch.setattr(quality, "SMALL", {**SETTINGS, "window_documents": 1, "memory": [512, 1024]})
    status, output = harness(monkeypatch, capsys, "run", "--engines", "transformers", "demo", *daemon, "--receipt",
                             first)
    assert status == 0 and "| transformers" in output and "| demo" in output and "1.000 of 3" in output, output
    with open(first, encoding="utf-8") as file:
        written = json.load(file)
    for name in SETTINGS["engines"]:
        figures = written["figures"][name]
        assert figures["passkey"]["3072 tokens, 3 facts"]["accuracy"] == 1
        assert figures["passkey"]["3072 tokens, 3 facts"]["cut"] == 0
        assert figures["window"]["top1"] >= 0.975 and figures["memory"]["growth"]["resident"] < 1.05
        assert written["engines"][name]["versions"] and written["engines"][name]["device"]
    assert written["hashes"]["texts"]["transformers"] == written["hashes"]["texts"]["demo"]
    for name in ("weights", "texts", "coldkvd", "libcoldkv"):
        assert written["hashes"][name]
    assert written["machine"]["processor"] and written["command"] and written["project"]["version"]

    written["settings"] = {**SETTINGS, "engines": ["demo"]}
    written["figures"] = {"demo": {"passkey": written["figures"]["demo"]["passkey"]}}
    written["hashes"]["texts"] = {"demo": written["hashes"]["texts"]["demo"]}
    written["figures"]["demo"]["passkey"]["3072 tokens, 3 facts"]["accuracy"] = 0.0
    with open(forged, "w", encoding="utf-8") as file:
        json.dump(written, file)
    status, output = harness(monkeypatch, capsys, "check", forged, *daemon, "--receipt", second)
    assert status == 1 and "demo: passkey" in output and "accuracy 0.000" in output and "texts: the hashes" in output
    status, output = harness(monkeypatch, capsys, "check", second, *daemon)
    assert status == 0 and "confirmed" in output, output
    status, output = harness(monkeypatch, capsys, "show", first, forged)
    assert "| 0.000 of 3 " in output and "| 1.000 of 3" in output


def test_what_is_compared():
    made = {"hashes": {"weights": 1, "texts": 2},
            "figures": {"llama.cpp": {"passkey": {"a": {"accuracy": 0.9, "cut": 0.0}},
                                      "memory": {"growth": {"resident": 1.0}},
                                      "window": {"top1": 0.98, "kl_median": 0.0002}}}}

    def changed(*path, to):
        other = copy.deepcopy(made)
        place = other
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to
        return len(list(receipt.differences(made, other)))

    mine = ("figures", "llama.cpp")
    assert changed(*mine, "passkey", "a", "accuracy", to=0.92) == 0
    assert changed(*mine, "passkey", "a", "accuracy", to=0.8) == changed(*mine, "passkey", "a", "cut", to=0.2) == 1
    assert changed(*mine, "window", "top1", to=0.9) == changed(*mine, "window", "kl_median", to=0.0004) == 1
    assert changed(*mine, "memory", "growth", "resident", to=1.2) == changed(*mine, "memory", to=None) == 1
    assert changed("hashes", "weights", to=3) == 1 and changed("figures", to={}) >= 3


def test_texts_state_every_fact_before_the_end():
    for size, count in ((2048, 12), (8192, 40), (65536, 100)):
        text, facts = documents.document(9, size, count)
        assert len(text) == size and len({fact.name for fact in facts}) == count
        for fact in facts:
            assert 0 < text.index(fact.sentence) + len(fact.sentence) < size - 320 and text.count(fact.digits) >= 1
    text, facts = documents.document(9, 16384, 1, at=0.9)
    assert 0.7 < text.index(facts[0].sentence) / 16384 < 0.88
