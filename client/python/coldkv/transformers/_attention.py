# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""The attention function and the mask function that transformers calls for the implementation "coldkv".

Both are registered once for the process. Which conversation a call is for is in `active`, which is set while a model's
forward runs in this thread.
"""
from __future__ import annotations

import contextlib
import threading
from typing import Any, Dict, Iterator, Optional, Protocol, Tuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "coldkv"


class Receiver(Protocol):
    """What takes the attention of a running forward."""

    def attend(self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
               scaling: Optional[float], options: Dict[str, Any]) -> torch.Tensor:
        """query [1, heads, n, d], key and value [1, kv heads, n, d]; returns [1, n, heads, d]."""


_thread = threading.local()


@contextlib.contextmanager
def receiving(receiver: Receiver) -> Iterator[None]:
    """Attention of this thread goes to the receiver."""
    before = getattr(_thread, "receiver", None)
    _thread.receiver = receiver
    try:
        yield
    finally:
        _thread.receiver = before


def _attention(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any,
               scaling: Optional[float] = None, dropout: float = 0.0, **options: Any) -> Tuple[torch.Tensor, None]:
    receiver = getattr(_thread, "receiver", None)
    if receiver is None:
        raise RuntimeError("coldkv is attached to this model: call it or its generate(), not a part of it")
    return receiver.attend(module, query, key, value, scaling, options), None


def _mask(*_: Any, **__: Any) -> None:
    """No mask: coldkv is causal by itself, and a padded batch is refused before it gets here."""
    return None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
