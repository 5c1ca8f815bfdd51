# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""The Cache that generate() sees: it says how many of the tokens at hand are in the conversation, and holds nothing."""
from __future__ import annotations

from typing import Any, Callable, List, Tuple

import torch
from transformers import Cache


class ColdCache(Cache):
    """Stands for the conversation's tokens from index `start` on: those that the inputs of a generate() begin with.

    Keys and values pass through update() on their way to the attention function, which gives them to coldkv."""

    is_compileable = False
    is_croppable = True
    is_initialized = True

    def __init__(self, layers: int, tokens: Callable[[], int], rewind: Callable[[int], None]) -> None:
        self.layers: List[Any] = []
        self.offloading = False
        self.layer_class_to_replicate = None
        self.start = 0
        self._count, self._tokens, self._rewind = layers, tokens, rewind

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"ColdCache(tokens={self.get_seq_length()})"

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any,
               **__: Any) -> Tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._tokens() - self.start

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> Tuple[int, int]:
        return self.get_seq_length() + int(getattr(query_length, "shape", [query_length])[0]), 0

    def get_max_length(self, layer_idx: Any = None) -> int:
        return -1

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        return -1

    def crop(self, tokens: int) -> None:
        """Takes back tokens that a guess had added (assisted generation): -n removes n; n, as version 4 has it, leaves
        n."""
        if tokens < 0:
            self._rewind(self._tokens() + tokens)
        elif 0 < tokens < self.get_seq_length():
            self._rewind(self.start + tokens)

    def reset(self) -> None:
        raise NotImplementedError("a conversation is not reset: attach another one")

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        raise NotImplementedError("beam search needs several sequences; coldkv keeps one")

    def batch_repeat_interleave(self, repeats: int) -> None:
        raise NotImplementedError("coldkv keeps one sequence")

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        raise NotImplementedError("coldkv keeps one sequence")

    @property
    def batch_size(self) -> int:
        return 1

    @property
    def max_batch_size(self) -> int:
        return 1
