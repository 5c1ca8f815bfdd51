# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""The quality harness in its smallest form: it measures, writes a receipt, confirms it, and confirms no other."""
import json
import os
import subprocess
import sys

import documents
import receipt
from conftest import ROOT

HARNESS = os.path.join(ROOT, "tools", "quality", "quality.py")


def run(*arguments):
    answer = subprocess.run([sys.executable, HARNESS, *arguments, "--coldkvd", os.environ["COLDKVD"]],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return answer.returncode, answer.stdout


def test_a_receipt_is_written_and_confirmed(tmp_path):
    first, second, forged = (str(tmp_path / name) for name in ("first", "second", "forged"))
    status, output = run("run", "--cells", "4096:1:1", "4096:4:4", "--receipt", first, "--leave-out", "speed")
    assert status == 0, output
    with open(first, encoding="utf-8") as file:
        written = json.load(file)
    cells = written["figures"]["passkey"]
    assert cells["4096 tokens, 1 fact"]["accuracy"] == 1 and cells["4096 tokens, 4 facts"]["accuracy"] >= 0.75
    assert all(cell["cut"] == 0 for cell in cells.values())
    assert written["figures"]["window"]["top1"] >= 0.975 and written["figures"]["memory"]["growth"]["resident"] < 1.05
    for name in ("weights", "texts", "coldkvd", "libcoldkv"):
        assert written["hashes"][name]
    assert written["engine"]["versions"]["transformers"] and written["machine"]["processor"] and written["command"]

    written["settings"].update(window_documents=0, memory=[], cells=[[4096, 4, 4]])
    cells.pop("4096 tokens, 1 fact")
    written["figures"] = {"passkey": cells}
    cells["4096 tokens, 4 facts"]["accuracy"] = 0.0
    with open(forged, "w", encoding="utf-8") as file:
        json.dump(written, file)
    status, output = run("check", forged, "--receipt", second)
    assert status == 1 and "accuracy 0.000" in output and "texts: the hashes differ" in output
    status, output = run("check", second)
    assert status == 0 and "confirmed" in output, output


def test_what_is_compared():
    def made(**changes):
        figures = {"passkey": {"a": {"accuracy": 0.9, "cut": 0.0}}, "memory": {"growth": {"resident": 1.0}},
                   "window": {"top1": 0.98, "kl_median": 0.0002}}
        for name, value in changes.items():
            part, _, key = name.partition("__")
            (figures[part]["a"] if part == "passkey" else figures[part])[key] = value
        return {"hashes": {"weights": 1, "texts": 2}, "figures": figures}

    assert not list(receipt.differences(made(), made(passkey__accuracy=0.92)))
    for change in ({"passkey__accuracy": 0.8}, {"passkey__cut": 0.2}, {"window__top1": 0.9},
                   {"window__kl_median": 0.0004}, {"memory__growth": {"resident": 1.2}}):
        assert len(list(receipt.differences(made(), made(**change)))) == 1, change


def test_texts_state_every_fact_before_the_end():
    for size, count in ((2048, 12), (8192, 40), (65536, 100)):
        text, facts = documents.document(9, size, count)
        assert len(text) == size and len({fact.name for fact in facts}) == count
        for fact in facts:
            assert 0 < text.index(fact.sentence) + len(fact.sentence) < size - 320 and text.count(fact.digits) >= 1
    text, facts = documents.document(9, 16384, 1, at=0.9)
    assert 0.7 < text.index(facts[0].sentence) / 16384 < 0.88
