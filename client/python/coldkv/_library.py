# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Finds libcoldkv.so.0 and declares what coldkv.h declares. ctypes releases the GIL during every call."""
from __future__ import annotations

import ctypes
import os
import subprocess
from ctypes import (POINTER, Structure, c_char_p, c_double, c_float, c_int, c_size_t, c_uint8, c_uint32, c_uint64,
                    c_void_p)
from typing import Iterator

NAME = "libcoldkv.so.0"
BLOCK_MAX, HOT, SINKS, REWIND_EXACT = 64, 256, 4, 128
NO_SLOT = 0xFFFFFFFF
TYPES = {"float32": 0, "float16": 1, "bfloat16": 2}  # enum coldkv_type


class Options(Structure):
    """What a caller chooses. A number that does not fit is refused, where ctypes would take it modulo 2**32."""

    def __init__(self, *values: object, **named: object) -> None:
        super().__init__(*values, **named)
        given = dict(zip((field[0] for field in self._fields_), values)) | named
        for name, value in given.items():
            if isinstance(value, int) and getattr(self, name) != value:
                raise ValueError(f"{name}: {value} is out of range")


class ClientOptions(Options):
    _fields_ = [("timeout_ms", c_uint32), ("sync_timeout_ms", c_uint32), ("backlog_bytes", c_uint64),
                ("block_timeout_ms", c_uint32), ("spin_us", c_uint32)]


class ModelDescription(Options):
    _fields_ = [("name", c_char_p), ("layers", c_uint32), ("kv_heads", c_uint32), ("group", c_uint32),
                ("head_dim", c_uint32), ("window", c_uint32), ("rope", c_uint32), ("rope_dims", c_uint32),
                ("rope_theta", c_double), ("rope_freqs", c_void_p), ("softmax_scale", c_float),
                ("fingerprint", c_uint8 * 32)]


class ConvOptions(Options):
    _fields_ = [("k", c_uint32), ("candidates", c_uint32), ("hamming", c_int), ("must_exist", c_int),
                ("device", c_uint32), ("hot_type", c_uint32)]


class Slots(Structure):
    _fields_ = [("rows", c_uint32), ("kv_heads", c_uint32), ("k", c_uint32), ("hot_first", c_uint64),
                ("packed", c_int), ("count", POINTER(c_uint32)), ("tokens", POINTER(c_void_p)),
                ("keys", POINTER(c_void_p)), ("values", POINTER(c_void_p)), ("index", c_void_p)]


class Status(Structure):
    _fields_ = [("tokens", c_uint64), ("stored", c_uint64), ("durable", c_uint64), ("backlog", c_uint64),
                ("hot_first", c_uint64), ("resume_left", c_uint64), ("connected", c_int), ("lookups", c_uint64),
                ("lookups_missed", c_uint64), ("bad_records", c_uint64), ("reconnects", c_uint64),
                ("record_bytes", c_uint64), ("signature_bytes", c_uint64), ("hot_bytes", c_uint64),
                ("device_bytes", c_uint64), ("pinned_bytes", c_uint64), ("prefetches", c_uint64),
                ("prefetches_used", c_uint64), ("backlog_bytes", c_uint64), ("backlog_bytes_max", c_uint64),
                ("waited_ms_max", c_uint64),
                ("trouble", c_int), ("last_error", c_char_p)]


# Arrays are addresses, so that nothing of ctypes stands between an array's owner and the library.
_FUNCTIONS = {
    "coldkv_error": (c_char_p, []),
    "coldkv_version": (c_char_p, []),
    "coldkv_client_create": (c_int, [POINTER(c_void_p), c_char_p, POINTER(ClientOptions)]),
    "coldkv_client_destroy": (None, [c_void_p]),
    "coldkv_model_create": (c_int, [POINTER(c_void_p), c_void_p, POINTER(ModelDescription)]),
    "coldkv_model_destroy": (None, [c_void_p]),
    "coldkv_fingerprint": (None, [c_void_p, c_void_p, c_size_t]),
    "coldkv_open": (c_int, [POINTER(c_void_p), c_void_p, c_char_p, POINTER(ConvOptions)]),
    "coldkv_close": (None, [c_void_p]),
    "coldkv_resume": (c_int, [c_void_p, c_void_p]),
    "coldkv_begin": (c_int, [c_void_p, c_void_p, c_uint32]),
    "coldkv_begin_rotated": (c_int, [c_void_p, c_void_p, c_uint32, c_void_p]),
    "coldkv_attend": (c_int, [c_void_p, c_uint32, c_void_p, c_void_p, c_void_p, c_void_p]),
    "coldkv_push": (c_int, [c_void_p, c_uint32, c_void_p, c_void_p]),
    "coldkv_retrieve": (c_int, [c_void_p, c_uint32, c_void_p, POINTER(Slots)]),
    "coldkv_prefetch": (c_int, [c_void_p, c_uint32, c_void_p]),
    "coldkv_attend_device": (c_int, [c_void_p, c_uint32, c_void_p, c_void_p, c_void_p, c_void_p, c_int, c_void_p]),
    "coldkv_push_device": (c_int, [c_void_p, c_uint32, c_void_p, c_void_p, c_int, c_void_p]),
    "coldkv_retrieve_device": (c_int, [c_void_p, c_uint32, c_void_p, c_int, c_void_p, POINTER(Slots)]),
    "coldkv_prefetch_device": (c_int, [c_void_p, c_uint32, c_void_p, c_int, c_void_p]),
    "coldkv_end": (c_int, [c_void_p]),
    "coldkv_abort": (c_int, [c_void_p]),
    "coldkv_set_slots": (c_int, [c_void_p, c_uint32]),
    "coldkv_sync": (c_int, [c_void_p]),
    "coldkv_rewind": (c_int, [c_void_p, c_uint64]),
    "coldkv_get_status": (c_int, [c_void_p, POINTER(Status)]),
}


def _pkg_config_folder() -> str | None:
    try:
        answer = subprocess.run(["pkg-config", "--variable=libdir", "coldkv"], stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.decode().strip() or None


def _places() -> Iterator[str]:
    """Where the library may be, best first: what COLDKV_LIBRARY names is taken or nothing."""
    if os.environ.get("COLDKV_LIBRARY"):
        yield os.environ["COLDKV_LIBRARY"]
        return
    here = os.path.dirname(os.path.abspath(__file__))
    bundled = os.path.join(here, NAME)  # built by pip install
    if os.path.exists(bundled):
        yield bundled
    yield NAME  # the dynamic loader's path
    folder = _pkg_config_folder()
    if folder:
        yield os.path.join(folder, NAME)
    built = os.path.normpath(os.path.join(here, "..", "..", "..", "build", "client", NAME))  # in the source tree
    if os.path.exists(built):
        yield built


def _load() -> ctypes.CDLL:
    failures = []
    for place in _places():
        try:
            library = ctypes.CDLL(place)
            for name, (result, arguments) in _FUNCTIONS.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
            return library
        except (OSError, AttributeError) as error:
            failures.append(f"{place}: {error}")
    raise ImportError("coldkv's library cannot be loaded: install it, or name the file in COLDKV_LIBRARY. Tried "
                      + "; ".join(failures))


library = _load()
