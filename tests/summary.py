#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Counts test results for run.sh.

--meson DIR      reads DIR/meson-logs/testlog.json
--lines FILE     reads lines "ok - NAME", "not ok - NAME" and "skip - NAME: REASON"; others belong to the next of them
--failed NAME    counts one failure
Each of these prints "passed failed skipped" as numbers, and tells people on stderr what failed, with the end of its
output, and what was skipped and why.
--total FILE     adds up such lines, prints the last line of run.sh, and fails if anything failed or nothing passed
"""
import json
import sys

TAIL_LINES = 40


def tell(text):
    print(text, file=sys.stderr)


def tell_failed(name, output):
    tell(f"FAILED {name}")
    for line in output.rstrip().splitlines()[-TAIL_LINES:]:
        tell(f"    {line}")


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def count_meson(directory):
    passed = failed = skipped = 0
    with open(f"{directory}/meson-logs/testlog.json", encoding="utf-8", errors="replace") as file:
        for line in file:
            test = json.loads(line)
            output = (test.get("stdout") or "") + (test.get("stderr") or "")
            name = f"{directory}: {test['name']}"
            if test["result"] in ("OK", "EXPECTEDFAIL"):
                passed += 1
            elif test["result"] == "SKIP":
                skipped += 1
                tell(f"skipped {name}: {last_line(output)}")
            else:
                failed += 1
                tell_failed(f"{name} ({test['result']}, status {test.get('returncode')})", output)
    return passed, failed, skipped


def count_lines(path):
    passed = failed = skipped = 0
    before = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file.read().splitlines():
            if line.startswith("ok - "):
                passed += 1
            elif line.startswith("not ok - "):
                failed += 1
                tell_failed(line[len("not ok - "):], "\n".join(before))
            elif line.startswith("skip - "):
                skipped += 1
                tell("skipped " + line[len("skip - "):])
            else:
                before.append(line)
                continue
            before = []
    if before:
        failed += 1
        tell_failed("ended in the middle", "\n".join(before))
    return passed, failed, skipped


def total(path):
    sums = [0, 0, 0]
    with open(path, encoding="utf-8") as file:
        for line in file:
            sums = [a + int(b) for a, b in zip(sums, line.split())]
    sys.stderr.flush()
    print(f"{sums[0]} passed, {sums[1]} failed, {sums[2]} skipped")
    return 1 if sums[1] or not sums[0] else 0


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    what, argument = sys.argv[1:]
    if what == "--total":
        sys.exit(total(argument))
    if what == "--meson":
        counts = count_meson(argument)
    elif what == "--lines":
        counts = count_lines(argument)
    elif what == "--failed":
        tell_failed(argument, "")
        counts = 0, 1, 0
    else:
        sys.exit(__doc__)
    print(*counts)


main()
