# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""A conversation: blocks of tokens in, attention over its whole past out."""
from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import threading
from typing import Any, Iterator, List, Optional, Tuple

import numpy as np

from . import _library as c
from ._arrays import ArrayLike, Ids, address, empty_like, gpu_addresses, integers, on_gpu
from ._library import BLOCK_MAX, library
from .client import Model, _Handle, check
from .errors import StateError


@dataclasses.dataclass(frozen=True)
class Status:
    """What struct coldkv_status holds; see there."""

    tokens: int
    stored: int
    durable: int
    backlog: int
    hot_first: int
    resume_left: int
    connected: bool
    lookups: int
    lookups_missed: int
    bad_records: int
    reconnects: int
    record_bytes: int
    signature_bytes: int
    hot_bytes: int
    device_bytes: int
    pinned_bytes: int
    prefetches: int
    prefetches_used: int
    backlog_bytes: int
    backlog_bytes_max: int
    waited_ms_max: int
    trouble: int
    last_error: str


@dataclasses.dataclass(frozen=True)
class Slots:
    """What retrieve() found for one layer.

    tokens, keys, values: one array per kv head: [count] uint64 ascending, [count, head_dim] float32 (keys before RoPE)
    index: [rows, kv_heads, k] uint32, places in these arrays, ascending; coldkv.NO_SLOT: no more
    hot_first: tokens from here on are in the hot window
    packed: the block lies past the trained window, so rotate for packed positions (see coldkv.h)
    """

    tokens: List[np.ndarray]
    keys: List[np.ndarray]
    values: List[np.ndarray]
    index: np.ndarray
    hot_first: int
    packed: bool


def _view(place: Optional[int], dtype: Any, shape: Tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not size or not place:
        return np.zeros(shape, dtype)
    view: np.ndarray = np.frombuffer(memoryview((ctypes.c_char * size).from_address(place)), dtype).reshape(shape)
    return view


class Conversation(_Handle):
    """A conversation, made if need be; its one writer's lease is held until close().

    name: 1 to 255 bytes of UTF-8
    k: retrieved tokens per row, layer and kv head; candidates: rescored per lookup, 0: the daemon's default
    hamming: scan by Hamming distance only; must_exist: NoConversationError rather than a new one
    device: number of a CUDA device that is to hold the hot window, encode, decode and attend; None: the processor
    hot_type: type of the hot window there: "float32", "float16", "bfloat16"

    One that has a past wants it fed first: `while (ids := conversation.resume()).size: forward(ids)`. In shapes below,
    n is the number of tokens of the open block, heads that of query heads.
    """

    def __init__(self, model: Model, name: str, *, k: int = 64, candidates: int = 0, hamming: bool = False,
                 must_exist: bool = False, device: Optional[int] = None, hot_type: str = "float32") -> None:
        super().__init__(model)
        self.model, self.name, self.device = model, name, device
        if hot_type not in c.TYPES:
            raise ValueError(f"hot_type={hot_type!r}: wanted one of {', '.join(c.TYPES)}")
        self._rows = 0
        options = c.ConvOptions(k, candidates, hamming, must_exist, 0 if device is None else device + 1,
                                c.TYPES[hot_type])
        pointer = ctypes.c_void_p()
        with self._lock_of():
            check(library.coldkv_open(ctypes.byref(pointer), model._open_pointer, name.encode(),
                                      ctypes.byref(options)))
            self._made(pointer)
        if k == 0:  # in the options 0 stands for the default
            self.set_slots(0)

    def _lock_of(self) -> "threading.RLock":
        return self.model.client._lock

    def _destroy(self, pointer: int) -> None:
        library.coldkv_close(pointer)

    def resume(self) -> np.ndarray:
        """The ids of the next block to feed again, uint32 [n]; of size 0 when nothing is left."""
        ids = np.empty(BLOCK_MAX, np.uint32)
        with self._lock_of():
            count = check(library.coldkv_resume(self._open_pointer, ids.ctypes.data))
        return ids[:count]

    def begin(self, ids: Ids, positions: Optional[Ids] = None) -> None:
        """Opens a block of n new tokens, 1 to 64. positions [n]: those that q and k were rotated for; None: q and k
        come before RoPE."""
        ids = integers(ids, "ids", np.uint32)
        with self._lock_of():
            if positions is None:
                check(library.coldkv_begin(self._open_pointer, ids.ctypes.data, ids.size))
            else:
                places = integers(positions, "positions", np.int64)
                if places.size != ids.size:
                    raise ValueError(f"{places.size} positions for {ids.size} ids")
                check(library.coldkv_begin_rotated(self._open_pointer, ids.ctypes.data, ids.size, places.ctypes.data))
            self._rows = ids.size

    def attend(self, layer: int, q: ArrayLike, k: ArrayLike, v: ArrayLike,
               out: Optional[ArrayLike] = None) -> ArrayLike:
        """Attention of the block's rows in one layer, once per layer. float32, contiguous, never copied:
        q [n, heads, head_dim]; k, v [n, kv_heads, head_dim]; out [n, heads, head_dim], made if None. Returns out.

        In a conversation on a CUDA device all four may be tensors there, of one type, float32, float16 or bfloat16: the
        work is enqueued on PyTorch's current stream."""
        if out is None:
            out = empty_like(q)
        queries, keys = self._shapes()
        if self.device is not None and on_gpu(q):
            places, kind, stream = gpu_addresses(self.device, (q, "q", queries), (k, "k", keys), (v, "v", keys),
                                                 (out, "out", queries))
            with self._lock_of():
                check(library.coldkv_attend_device(self._open_pointer, layer, *places, kind, stream))
            return out
        places = (address(q, "q", np.float32, queries), address(k, "k", np.float32, keys),
                  address(v, "v", np.float32, keys), address(out, "out", np.float32, queries, writable=True))
        with self._lock_of():
            check(library.coldkv_attend(self._open_pointer, layer, *places))
        return out

    def push(self, layer: int, k: ArrayLike, v: ArrayLike) -> None:
        """Gives keys and values of one layer, float32 [n, kv_heads, head_dim], without computing attention.
        CUDA tensors as in attend()."""
        keys = self._shapes()[1]
        if self.device is not None and on_gpu(k):
            places, kind, stream = gpu_addresses(self.device, (k, "k", keys), (v, "v", keys))
            with self._lock_of():
                check(library.coldkv_push_device(self._open_pointer, layer, *places, kind, stream))
            return
        places = address(k, "k", np.float32, keys), address(v, "v", np.float32, keys)
        with self._lock_of():
            check(library.coldkv_push(self._open_pointer, layer, *places))

    def retrieve(self, layer: int, q: ArrayLike, *, copy: bool = True) -> Slots:
        """Finds the slots of one layer for q, float32 [n, heads, head_dim], or a CUDA tensor as in attend().

        copy=False: the arrays are the library's own. They must not be touched after the next call on this conversation,
        which frees them."""
        found, queries = c.Slots(), self._shapes()[0]
        with self._lock_of():
            if self.device is not None and on_gpu(q):
                places, kind, stream = gpu_addresses(self.device, (q, "q", queries))
                check(library.coldkv_retrieve_device(self._open_pointer, layer, *places, kind, stream,
                                                     ctypes.byref(found)))
            else:
                place = address(q, "q", np.float32, queries)
                check(library.coldkv_retrieve(self._open_pointer, layer, place, ctypes.byref(found)))
            heads, dim = found.kv_heads, self.model.head_dim
            counts = [found.count[head] for head in range(heads)]
            slots = Slots([_view(found.tokens[h], np.uint64, (counts[h],)) for h in range(heads)],
                          [_view(found.keys[h], np.float32, (counts[h], dim)) for h in range(heads)],
                          [_view(found.values[h], np.float32, (counts[h], dim)) for h in range(heads)],
                          _view(found.index, np.uint32, (found.rows, heads, found.k)),
                          found.hot_first, bool(found.packed))
            if copy:
                slots = dataclasses.replace(
                    slots, tokens=[a.copy() for a in slots.tokens], keys=[a.copy() for a in slots.keys],
                    values=[a.copy() for a in slots.values], index=slots.index.copy())
        return slots

    def prefetch(self, layer: int, q: ArrayLike) -> None:
        """Has the daemon look up one layer ahead of time, for an estimate [heads, head_dim] of a query to come, float32
        or a CUDA tensor as in attend()."""
        shape = self._shapes()[0][1:]
        with self._lock_of():
            if self.device is not None and on_gpu(q):
                places, kind, stream = gpu_addresses(self.device, (q, "q", shape))
                check(library.coldkv_prefetch_device(self._open_pointer, layer, *places, kind, stream))
            else:
                check(library.coldkv_prefetch(self._open_pointer, layer, address(q, "q", np.float32, shape)))

    def end(self) -> None:
        """Closes the block; every layer must have been attended or pushed."""
        with self._lock_of():
            check(library.coldkv_end(self._open_pointer))
            self._rows = 0

    def abort(self) -> None:
        """Gives up the open block: the conversation is as it was before begin()."""
        with self._lock_of():
            check(library.coldkv_abort(self._open_pointer))
            self._rows = 0

    @contextlib.contextmanager
    def block(self, ids: Ids, positions: Optional[Ids] = None) -> Iterator["Conversation"]:
        """begin() and end() around a with block; abort() when it raises."""
        self.begin(ids, positions)
        try:
            yield self
        except BaseException:
            self.abort()
            raise
        self.end()

    def set_slots(self, k: int) -> None:
        """Sets the number of retrieved tokens; 0 switches retrieval off."""
        with self._lock_of():
            check(library.coldkv_set_slots(self._open_pointer, k))

    def sync(self) -> None:
        """Waits until everything is on the daemon's disk, the ids of the hot window included."""
        with self._lock_of():
            check(library.coldkv_sync(self._open_pointer))

    def rewind(self, end: int) -> None:
        """Forgets tokens from index `end` on; OutOfRangeError names the first index that is possible."""
        with self._lock_of():
            check(library.coldkv_rewind(self._open_pointer, end))

    @property
    def status(self) -> Status:
        """What is going on, as of now."""
        raw = c.Status()
        with self._lock_of():
            check(library.coldkv_get_status(self._open_pointer, ctypes.byref(raw)))
            values = {field.name: getattr(raw, field.name) for field in dataclasses.fields(Status)}
        values["connected"] = bool(values["connected"])
        values["last_error"] = (values["last_error"] or b"").decode(errors="replace")
        return Status(**values)

    def _shapes(self) -> Tuple[Tuple[int, int, int], Tuple[int, int, int]]:
        """Of q and out, and of k and v."""
        if not self._rows:
            raise StateError(f"no block of '{self.name}' is open: call begin first")
        model = self.model
        return (self._rows, model.heads, model.head_dim), (self._rows, model.kv_heads, model.head_dim)
