# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""The calls of coldkv.h as three classes. coldkv.h says what each of them does in full; here is what differs.

Every call holds its client's lock, so that threads may share a client; they then wait for each other.
"""
from __future__ import annotations

import ctypes
import enum
import os
import threading
import weakref
from types import TracebackType
from typing import Any, Optional, Type, TypeVar

import numpy as np

from . import _library as c
from ._arrays import address
from ._library import library
from .errors import Error, StateError, error_of

_Self = TypeVar("_Self", bound="_Handle")


class Rope(enum.IntEnum):
    """How RoPE pairs the coordinates of a head."""

    NONE = 0
    HALF = 1  # i with i + dims/2: Llama in transformers
    INTERLEAVED = 2  # 2i with 2i + 1


def check(result: int) -> int:
    """Raises what the library said about a negative result."""
    if result < 0:
        raise error_of(result, (library.coldkv_error() or b"").decode(errors="replace"))
    return result


class _Handle:
    """An object of the library, destroyed once: by close(), at the end of a with block, or with its last reference.

    It is counted in the one that it was made from, which is not destroyed before it: the garbage collector may come to
    both in any order, when references to them run in a circle."""

    def __init__(self, parent: "Optional[_Handle]" = None) -> None:
        self._pointer: Optional[int] = None
        self._closed = False
        self._parent = parent
        self._count = 0  # of what was made from it and is not destroyed
        self._children: "weakref.WeakSet[_Handle]" = weakref.WeakSet()

    def _destroy(self, pointer: int) -> None:
        raise NotImplementedError

    def _lock_of(self) -> "threading.RLock":
        raise NotImplementedError

    def _made(self, pointer: ctypes.c_void_p) -> None:
        """Takes over what the library made."""
        self._pointer = pointer.value
        if self._parent is not None:
            self._parent._count += 1
            self._parent._children.add(self)

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def _open_pointer(self) -> int:
        if self._closed or self._pointer is None:
            raise StateError(f"this {type(self).__name__.lower()} is closed")
        return self._pointer

    def close(self) -> None:
        """Destroys it, and before it what was made from it. May be called twice."""
        with self._lock_of():
            self._closed = True
            for child in list(self._children):
                child.close()
            self._destroy_if_last()

    def _destroy_if_last(self) -> None:
        if self._closed and not self._count and self._pointer is not None:
            pointer, self._pointer = self._pointer, None
            self._destroy(pointer)
            if self._parent is not None:
                self._parent._count -= 1
                self._parent._destroy_if_last()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except (AttributeError, TypeError):  # half made, or at the interpreter's end, when half of all is gone
            pass


class Client(_Handle):
    """A connection to coldkvd; a daemon that is away is no error, the client connects when it is there.

    socket: path of the daemon's socket; None: $COLDKV_SOCKET, else the default of coldkv.h
    timeout_ms, sync_timeout_ms, block_timeout_ms: longest waits for the daemon; 0: 2000, 30000, 10000
    backlog_bytes: per conversation, records held until the daemon has them on disk; 0: 256 MiB
    spin_us: looks for answers for so long before it sleeps: quicker, and takes a processor
    """

    def __init__(self, socket: "str | os.PathLike[str] | None" = None, *, timeout_ms: int = 0,
                 sync_timeout_ms: int = 0, backlog_bytes: int = 0, block_timeout_ms: int = 0,
                 spin_us: int = 0) -> None:
        super().__init__()
        self._lock = threading.RLock()
        options = c.ClientOptions(timeout_ms, sync_timeout_ms, backlog_bytes, block_timeout_ms, spin_us)
        pointer = ctypes.c_void_p()
        check(library.coldkv_client_create(ctypes.byref(pointer), os.fsencode(socket) if socket else None,
                                           ctypes.byref(options)))
        self._made(pointer)

    def _lock_of(self) -> "threading.RLock":
        return self._lock

    def _destroy(self, pointer: int) -> None:
        library.coldkv_client_destroy(pointer)


class Model(_Handle):
    """A model as coldkv sees it. Keyword arguments are those of struct coldkv_model_description.

    layers, kv_heads: numbers of them; group: query heads per kv head
    head_dim: a multiple of 8 from 64 to 128
    window: trained window in tokens
    rope, rope_dims: layout and number of rotated coordinates, the first ones; 0: all
    rope_theta: base of the frequencies; rope_freqs: float64 [rope_dims / 2] radians per position instead
    softmax_scale: 0: 1/sqrt(head_dim)
    fingerprint: 32 bytes, a hash of the weights and of all that changes keys (see coldkv.Fingerprint)
    """

    def __init__(self, client: Client, *, layers: int, kv_heads: int, group: int, head_dim: int, window: int,
                 fingerprint: bytes, rope: Rope = Rope.HALF, rope_dims: int = 0, rope_theta: float = 10000.0,
                 rope_freqs: Any = None, softmax_scale: float = 0.0, name: Optional[str] = None) -> None:
        super().__init__(client)
        self.client = client
        self.layers, self.kv_heads, self.heads, self.head_dim = layers, kv_heads, kv_heads * group, head_dim
        self.window = window
        description = c.ModelDescription(
            name.encode() if name else None, layers, kv_heads, group, head_dim, window, rope, rope_dims, rope_theta,
            None, softmax_scale)
        if rope_freqs is not None:
            dims = rope_dims or head_dim
            description.rope_freqs = address(rope_freqs, "rope_freqs", np.float64, (dims // 2,))
        if len(fingerprint) != 32:
            raise ValueError(f"a fingerprint of {len(fingerprint)} bytes, wanted 32")
        ctypes.memmove(description.fingerprint, fingerprint, 32)
        pointer = ctypes.c_void_p()
        with client._lock:
            check(library.coldkv_model_create(ctypes.byref(pointer), client._open_pointer, ctypes.byref(description)))
            self._made(pointer)

    def _lock_of(self) -> "threading.RLock":
        return self.client._lock

    def _destroy(self, pointer: int) -> None:
        library.coldkv_model_destroy(pointer)


class Fingerprint:
    """A hash of weights and settings that tells one model from another; it is no cryptographic hash.

    How the bytes are cut into update calls matters.
    """

    def __init__(self) -> None:
        self._state = (ctypes.c_uint8 * 32)()

    def update(self, data: Any) -> None:
        """data: bytes, or a C-contiguous numpy array or processor tensor of any type and shape."""
        if hasattr(data, "data_ptr"):
            if data.device.type != "cpu" or not data.is_contiguous():
                raise ValueError("a fingerprint takes contiguous tensors in the processor's memory")
            place, size = data.data_ptr(), data.numel() * data.element_size()
        else:
            view = np.frombuffer(data, np.uint8)
            place, size = view.ctypes.data, view.size
        library.coldkv_fingerprint(self._state, place, size)

    def digest(self) -> bytes:
        """The 32 bytes so far."""
        return bytes(self._state)


__all__ = ["Client", "Error", "Fingerprint", "Model", "Rope", "check"]
