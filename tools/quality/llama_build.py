# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Builds what needs llama.cpp, against the library in a Python environment, and writes the demo's model as GGUF."""
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.normpath(os.path.join(HERE, "..", ".."))
MODEL = os.path.join(ROOT, "tools", "demo", "model")
TARGETS = ["tools/quality/quality-llama", "tools/quality/quality-demo", "tools/llama/coldkv-llama"]


def build(folder, python=sys.executable, variants=("",)):
    """The programs TARGETS in `folder` and, for each variant of tiny_gguf.py, tinyVARIANT.gguf. python: the interpreter
    of an environment with the packages llama-cpp-python and gguf."""
    site = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                          stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    setup = ["meson", "setup", folder, ROOT, "--buildtype=release", "-Dtests=disabled", "-Dcuda=disabled",
             "-Ddemo=enabled", "-Dpython=disabled", "-Dllama=" + site]
    if os.path.exists(os.path.join(folder, "build.ninja")):
        setup.insert(2, "--reconfigure")
    for command in (setup, ["ninja", "-C", folder, *TARGETS]):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            sys.exit(done.stdout)
    for variant in variants:
        path = os.path.join(folder, f"tiny{variant}.gguf")
        subprocess.run([python, os.path.join(HERE, "tiny_gguf.py"), MODEL, path + ".new", variant], check=True)
        os.replace(path + ".new", path)  # llama.cpp maps the file, and another run may be under way
