# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Every kind of failure has its exception, and the package says of structures and codes what coldkv.h says."""
import os
import re

import numpy as np
import pytest

import coldkv
import toy
from coldkv import _library, errors
from conftest import ROOT

with open(os.path.join(ROOT, "client", "coldkv.h"), encoding="utf-8") as file:
    HEADER = file.read()


def test_every_code_of_the_header_has_a_class():
    codes = {int(value) for value in re.findall(r"COLDKV_E[A-Z]+ = (-\d+)", HEADER)}
    assert codes == set(errors._BY_CODE) and len(codes) > 15
    for code, kind in errors._BY_CODE.items():
        raised = errors.error_of(code, "why")
        assert type(raised) is kind and raised.code == code and str(raised) == "why"
        assert kind.__name__ in coldkv.__all__


@pytest.mark.parametrize("name, mirror", [
    ("coldkv_client_options", _library.ClientOptions), ("coldkv_model_description", _library.ModelDescription),
    ("coldkv_conv_options", _library.ConvOptions), ("coldkv_slots", _library.Slots),
    ("coldkv_status", _library.Status)])
def test_structures_have_the_fields_of_the_header(name, mirror):
    body = re.search(r"struct %s \{(.*?)\n\};" % name, HEADER, re.S).group(1)
    body = re.sub(r"/\*.*?\*/", "", body, flags=re.S)
    fields = []
    for line in body.split(";"):
        for part in line.split(","):
            names = re.findall(r"(\w+)\s*(?:\[\d+\])?\s*$", part.strip())
            fields += names
    assert fields == [field[0] for field in mirror._fields_]


def test_functions_and_constants_are_those_of_the_header():
    declared = set(re.findall(r"COLDKV_API [\w *]+?\*?(coldkv_\w+)\(", HEADER))
    assert set(_library._FUNCTIONS) == declared
    for name, value in (("BLOCK_MAX", coldkv.BLOCK_MAX), ("HOT", coldkv.HOT), ("SINKS", coldkv.SINKS),
                        ("REWIND_EXACT", coldkv.REWIND_EXACT)):
        assert re.search(r"COLDKV_%s = %d\b" % (name, value), HEADER)
    for name, value in _library.TYPES.items():
        short = name.replace("float", "f").replace("bf", "BF").upper()
        assert re.search(r"COLDKV_%s = %d\b" % (short, value), HEADER)
    assert coldkv.__version__ == re.search(r'COLDKV_VERSION "([\d.]+)"', HEADER).group(1)


def test_what_goes_wrong_when_opening(service, client):
    with toy.model(client) as model:
        with pytest.raises(coldkv.NoConversationError, match="none"):
            coldkv.Conversation(model, "none", must_exist=True)
        with coldkv.Conversation(model, "mine") as conversation:
            with coldkv.Client(service.socket) as second, toy.model(second) as same:
                with pytest.raises(coldkv.BusyError):
                    coldkv.Conversation(same, "mine")
            toy.feed(conversation, 0, 400)
            conversation.sync()
        with toy.model(client, fingerprint=bytes(32)) as other:
            with pytest.raises(coldkv.ModelMismatchError):
                coldkv.Conversation(other, "mine")
    with coldkv.Client(service.socket + "-none") as nobody, toy.model(nobody) as model:
        with pytest.raises(coldkv.UnreachableError, match="-none"):
            coldkv.Conversation(model, "mine")


def test_what_goes_wrong_when_describing(client):
    with pytest.raises(coldkv.ArgumentError, match="layers"):
        toy.model(client, layers=0)
    with pytest.raises(coldkv.Error):
        toy.model(client, head_dim=100)
    with pytest.raises(ValueError, match="31 bytes"):
        toy.model(client, fingerprint=bytes(31))
    with pytest.raises(ValueError, match="rope_freqs"):
        toy.model(client, rope_freqs=np.ones(3))


def test_numbers_that_do_not_fit(client):
    for name in ("timeout_ms", "block_timeout_ms", "backlog_bytes", "spin_us"):
        with pytest.raises(ValueError, match=f"{name}: -1"):
            coldkv.Client("nowhere", **{name: -1})
    with pytest.raises(ValueError, match="window"):
        toy.model(client, window=1 << 32)
    with toy.model(client) as model:
        with pytest.raises(ValueError, match="k: -64"):
            coldkv.Conversation(model, "fits", k=-64)


def test_a_gpu_that_is_not_there(client):
    with toy.model(client) as model:
        with pytest.raises(coldkv.NotSupportedError):
            coldkv.Conversation(model, "gpu", device=63)
        with pytest.raises(ValueError, match="hot_type"):
            coldkv.Conversation(model, "gpu", hot_type="int8")


def test_what_goes_wrong_in_a_block(client):
    with toy.model(client) as model, coldkv.Conversation(model, "block") as conversation:
        q, k, v = toy.vectors(0, 0, 1)
        with pytest.raises(coldkv.StateError):
            conversation.attend(0, q, k, v)
        with pytest.raises(coldkv.StateError):
            conversation.end()
        with pytest.raises(coldkv.ArgumentError):
            conversation.begin(range(65))
        with pytest.raises(ValueError, match="positions"):
            conversation.begin([1, 2], [1])
        conversation.begin([1])
        with pytest.raises(coldkv.StateError):
            conversation.begin([1])
        with pytest.raises(coldkv.OutOfRangeError):
            conversation.attend(toy.LAYERS, q, k, v)
        with pytest.raises(coldkv.NotFiniteError):
            conversation.attend(0, q * np.float32("nan"), k, v)
        with pytest.raises(coldkv.StateError, match="layer"):
            conversation.end()


def test_generation_goes_on_without_a_daemon(service):
    with coldkv.Client(service.socket, timeout_ms=200, backlog_bytes=1 << 20) as client, toy.model(client) as model:
        with coldkv.Conversation(model, "away") as conversation:
            toy.feed(conversation, 0, 400)
            conversation.sync()
            service.kill()
            toy.feed(conversation, 400, 300)
            status = conversation.status
            assert not status.connected and status.tokens == 700 and status.lookups_missed and status.last_error
            with pytest.raises(coldkv.BacklogError):
                toy.feed(conversation, 700, 4000)
            service.start()
            conversation.sync()
            assert conversation.status.connected and conversation.status.backlog == 0
