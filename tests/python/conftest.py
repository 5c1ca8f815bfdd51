# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""What the tests of the Python package share: a coldkvd (its path is in COLDKVD) and a model that is made up."""
import os
import sys

import pytest

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
sys.path[:0] = [os.path.join(ROOT, "client", "python"), os.path.join(ROOT, "tools", "quality")]

import coldkv  # noqa: E402
from service import Service  # noqa: E402


@pytest.fixture
def service():
    with Service(os.environ["COLDKVD"]) as running:
        yield running


@pytest.fixture
def client(service):
    with coldkv.Client(service.socket) as connected:
        yield connected
