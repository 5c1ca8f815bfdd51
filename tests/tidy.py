#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""The house rules, for tidy.sh: prints what is wrong and one line per rule. --compiled lists the compiled C files."""
import ast
import json
import os
import re
import subprocess
import sys
import tempfile

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
COLUMNS_MAX = 120

# Who may include whom; every folder may include itself.
MAY_INCLUDE = {
    "proto": set(),
    "store": {"proto"},
    "retrieval": {"proto"},
    "client": {"proto"},
    "daemon": {"store", "retrieval", "proto"},
    "tools": {"client", "store", "retrieval", "proto"},
    "tests": {"client", "store", "retrieval", "proto", "daemon", "tools"},
}
# Headers that need the CUDA Toolkit's, which not every machine has.
NEED_CUDA = {"retrieval/cuda/launch.h", "retrieval/cuda/memory.h", "tools/bench/gpu_read.h",
             "tools/bench/gpu_nothing.h", "client/cuda/launch.h", "client/cuda/memory.h", "proto/cuda/gpu.h"}
# Programs whose man page must name every option of their --help.
PROGRAMS = {
    "build/tools/coldkv/coldkv": "tools/man/coldkv.1",
    "build/daemon/coldkvd": "tools/man/coldkvd.8",
    "build/tools/demo/coldkv-demo": "tools/man/coldkv-demo.1",
    "build/tools/bench/coldkv-bench": "tools/man/coldkv-bench.1",
    "build/tests/engines/llama/tools/llama/coldkv-llama": "tools/man/coldkv-llama.1",
}


def all_files():
    """Files of the tree, by git where there is one, else by walking."""
    if os.path.exists(".git"):
        try:
            listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                                    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout
            return sorted(p for p in set(os.fsdecode(listed).split("\0")) if p and os.path.isfile(p))
        except (OSError, subprocess.CalledProcessError):
            pass
    found = []
    for folder, folders, names in os.walk("."):
        folders[:] = [f for f in folders if not f.startswith((".git", "build", "__pycache__"))]
        found += [os.path.relpath(os.path.join(folder, name)) for name in names if not name.endswith(".pyc")]
    return sorted(found)


FILES = all_files()
C_FILES = [p for p in FILES if p.endswith((".c", ".h", ".cu", ".cuh"))]
CODE = C_FILES + [p for p in FILES if p.endswith((".py", ".sh", "meson.build", "meson_options.txt")) or p == ".ci/run"]
TEXT = CODE + [p for p in FILES if p.endswith((".md", ".1", ".3", ".8"))]


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return file.read()


def lines_of(path):
    return read(path).split("\n")


def rule_files_are_short():
    for path in CODE:
        count = read(path).count("\n")
        if count > FILE_LINES_MAX:
            yield f"{path}: {count} lines, at most {FILE_LINES_MAX}"


def c_functions(path):
    """(first line, name, length) of what begins in column 0 with a parenthesis and ends with '}' there."""
    start, head, inside = 0, "", False
    for number, line in enumerate(lines_of(path), 1):
        if inside:
            if line.startswith("}"):
                yield start, head, number - start + 1
                inside, head = False, ""
            continue
        if not line or line.startswith(("#", "//", "/*", " *", "}")):
            head = ""
            continue
        if not line[0].isspace():
            start, head = number, line
        else:
            head += " " + line.strip()
        if line.endswith(";"):
            head = ""
        elif line.endswith("{") and head:
            inside = bool(re.search(r"\w\s*\(.*\)\s*\{$", head))
            if not inside:
                head = ""


def rule_functions_are_short():
    for path in C_FILES:
        for start, head, length in c_functions(path):
            if length > FUNCTION_LINES_MAX:
                yield f"{path}:{start}: {length} lines, at most {FUNCTION_LINES_MAX}: {head}"
    for path in FILES:
        if path.endswith(".py"):
            for node in ast.walk(ast.parse(read(path), path)):
                if isinstance(node, ast.FunctionDef):
                    length = node.end_lineno - node.lineno + 1
                    if length > FUNCTION_LINES_MAX:
                        yield f"{path}:{node.lineno}: {length} lines, at most {FUNCTION_LINES_MAX}: {node.name}"


def rule_licence_headers():
    for path in CODE:
        if path.endswith(("meson.build", "meson_options.txt")):
            continue
        head = "\n".join(lines_of(path)[:3])
        if "SPDX-License-Identifier: Apache-2.0" not in head or "SPDX-FileCopyrightText: " not in head:
            yield f"{path}: no SPDX licence and copyright lines at its top"


def rule_nothing_left_undone():
    words = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
    for path in TEXT:
        for number, line in enumerate(lines_of(path), 1):
            if words.search(line):
                yield f"{path}:{number}: {line.strip()}"


def rule_white_space():
    for path in TEXT:
        text = read(path)
        if text and not text.endswith("\n"):
            yield f"{path}: no newline at its end"
        for number, line in enumerate(text.split("\n"), 1):
            if "\t" in line:
                yield f"{path}:{number}: tab"
            if line != line.rstrip():
                yield f"{path}:{number}: blanks at the end of the line"
            if path in CODE and len(line) > COLUMNS_MAX:
                yield f"{path}:{number}: {len(line)} columns, at most {COLUMNS_MAX}"


def rule_includes_follow_the_design():
    include = re.compile(r'^\s*#\s*include\s+"([^"]+)"')
    for path in C_FILES:
        folder = path.split("/")[0]
        if folder not in MAY_INCLUDE:
            yield f"{path}: in no known folder"
            continue
        for number, line in enumerate(lines_of(path), 1):
            match = include.match(line)
            if not match:
                continue
            target = match.group(1)
            if target.split("/")[0] not in MAY_INCLUDE[folder] | {folder}:
                yield f"{path}:{number}: {folder}/ may not include {target}"
            elif not os.path.isfile(target):
                yield f"{path}:{number}: {target} does not exist (paths begin at the root)"


def compiles(command, folder):
    result = subprocess.run(command + ["-o", os.path.join(folder, "out.o")], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, check=False)
    return result.returncode == 0, result.stdout.decode(errors="replace")


def rule_headers_compile_alone():
    base = ["-c", "-I.", "-D_GNU_SOURCE", "-DCOLDKV_VERSION_STRING=\"0\"", "-Wall", "-Wextra", "-Werror"]
    guard = re.compile(r"^#ifndef (\w+)\n#define \1$", re.M)
    with tempfile.TemporaryDirectory() as folder:
        unit = os.path.join(folder, "unit.c")
        for path in C_FILES:
            if not path.endswith(".h") or path.endswith("_body.h"):  # bodies are included once for each variant
                continue
            if not guard.search(read(path)):
                yield f"{path}: no include guard"
            if path in NEED_CUDA:
                continue
            with open(unit, "w", encoding="utf-8") as file:
                file.write(f'#include "{path}"\n#include "{path}"\nextern int unused;\n')
            good, output = compiles(["cc", "-std=gnu11", "-x", "c", *base, unit], folder)
            if not good:
                yield f"{path} does not compile alone:\n{output}"
            if path == "client/coldkv.h":
                good, output = compiles(["cc", "-std=c99", "-pedantic", "-x", "c", *base, unit], folder)
                if not good:
                    yield f"{path} is no plain C99:\n{output}"


def anchors(path):
    """Anchors of the headings of a Markdown file, as its readers make them."""
    for line in lines_of(path):
        if line.startswith("#"):
            title = re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower())
            yield title.replace(" ", "-")


def rule_links_lead_somewhere():
    link = re.compile(r"\]\(([^)\s]+)\)")
    quoted = re.compile(r"`((?:client|daemon|proto|retrieval|store|tools|tests)/[\w./-]+\.(?:md|c|h|py|sh))`")
    for path in FILES:
        if not path.endswith(".md"):
            continue
        text = read(path)
        for target in link.findall(text):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            full = os.path.normpath(os.path.join(os.path.dirname(path), name)) if name else path
            if not os.path.exists(full):
                yield f"{path}: link to {target}, which does not exist"
            elif anchor and full.endswith(".md") and anchor not in anchors(full):
                yield f"{path}: link to {target}, but {full} has no such heading"
        for target in quoted.findall(text):
            if not os.path.exists(target):
                yield f"{path}: names {target}, which does not exist"


def rule_man_pages_name_every_option():
    missing = [program for program in PROGRAMS if not os.access(program, os.X_OK)]
    if len(missing) == len(PROGRAMS):
        return "skip", "no program is built in build/"
    problems = []
    for program, page in PROGRAMS.items():
        if program in missing:
            continue
        if not os.path.isfile(page):
            problems.append(f"{program} has no man page {page}")
            continue
        answer = subprocess.run([program, "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if answer.returncode:
            problems.append(f"{program} --help answers with status {answer.returncode}")
        page_text = read(page).replace("\\-", "-")
        for option in sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", answer.stdout.decode()))):
            if not re.search(re.escape(option) + r"(?![a-z0-9-])", page_text):
                problems.append(f"{page} does not name {option}")
    return problems


def rule_shell_is_posix():
    bashisms = re.compile(r"(^|\s)\[\[ |<<<|&>|\$'|\bfunction \w+|^\s*source |\bpipefail\b|\becho -[en]\b|\[ [^]]* == |"
                          r"^\s*(local|declare|typeset) |\$\{\w+(\[|,,|\^\^|//|:\d)|^\s*\w+\+?=\(")
    for path in FILES:
        if not path.endswith(".sh") and path != ".ci/run":
            continue
        answer = subprocess.run(["sh", "-n", path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if answer.returncode:
            yield f"{path}: {answer.stdout.decode(errors='replace').strip()}"
        lines = lines_of(path)
        if lines[0] != "#!/bin/sh":
            yield f"{path}: does not begin with #!/bin/sh"
        for number, line in enumerate(lines, 1):
            if bashisms.search(line) and not line.lstrip().startswith("#"):
                yield f"{path}:{number}: not POSIX: {line.strip()}"


def compiled():
    with open("build/compile_commands.json", encoding="utf-8") as file:
        commands = json.load(file)
    paths = {os.path.relpath(os.path.join(c["directory"], c["file"])) for c in commands}
    return sorted(p for p in paths if p.endswith(".c") and not p.startswith(".."))


def main():
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
    if sys.argv[1:] == ["--compiled"]:
        print("\n".join(compiled()))
        return 0
    status = 0
    for name, rule in [(n, r) for n, r in globals().items() if n.startswith("rule_")]:
        title = name[len("rule_"):].replace("_", " ")
        found = rule()
        if isinstance(found, tuple):
            print(f"skip - {title}: {found[1]}")
            continue
        problems = list(found)
        for problem in problems:
            print(problem)
        print(f"not ok - {title}" if problems else f"ok - {title}", flush=True)
        status |= bool(problems)
    return status


sys.exit(main())
