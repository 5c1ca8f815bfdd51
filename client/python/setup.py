# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Where no libcoldkv is installed, builds the one of this source tree into the package."""
import ctypes
import os
import re
import shutil
import subprocess
import tempfile

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution

HERE = os.path.dirname(os.path.abspath(__file__))
TREE = os.path.normpath(os.path.join(HERE, "..", ".."))
NAME = "libcoldkv.so.0"


def version():
    with open(os.path.join(TREE, "client", "coldkv.h"), encoding="utf-8") as header:
        return re.search(r'#define COLDKV_VERSION "([^"]+)"', header.read()).group(1)


def installed():
    if os.environ.get("COLDKV_LIBRARY"):
        return True
    if subprocess.call(["sh", "-c", "pkg-config --exists coldkv 2>/dev/null"]) == 0:
        return True
    try:
        ctypes.CDLL(NAME)
    except OSError:
        return False
    return True


class BuildLibrary(build_py):
    """Adds the library to the package's files."""

    def run(self):
        super().run()
        if not installed():
            self.build_library(os.path.join(self.build_lib, "coldkv", NAME))

    def build_library(self, target):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["meson", "setup", folder, TREE, "--buildtype=release", "-Dtests=disabled",
                            "-Ddemo=disabled", "-Dpython=disabled"], check=True)
            library = "client/libcoldkv.so." + version()
            subprocess.run(["ninja", "-C", folder, library], check=True)
            self.mkpath(os.path.dirname(target))
            shutil.copyfile(os.path.join(folder, library), target)


class BinaryDistribution(Distribution):
    """The wheel holds machine code, so it is of one platform."""

    def has_ext_modules(self):
        return not installed()


setup(version=version(), cmdclass={"build_py": BuildLibrary}, distclass=BinaryDistribution)
