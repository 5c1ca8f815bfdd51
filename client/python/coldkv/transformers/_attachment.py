# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""A conversation attached to a model: what the model's forward and generate do meanwhile."""
from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from array import array
from types import TracebackType
from typing import Any, Dict, List, Optional, Type

import numpy as np
import torch

from .. import (BLOCK_MAX, HOT, SINKS, Client, Conversation, Error, Model, NotSupportedError, OutOfRangeError,
                Status)
from .._library import TYPES
from . import _attention
from ._cache import ColdCache
from ._shape import NotSupported, fingerprint_of, shape_of

PROMPTS = ("auto", "new", "whole")


class Attachment:
    """A conversation that a model continues. Made by attach(); ended by detach(), or as a context manager.

    conversation: the coldkv.Conversation; shape: what was found out about the model; cache: what generate() gets
    """

    def __init__(self, model: Any, name: str, *, k: int, candidates: int, socket: Any, window: Optional[int],
                 fingerprint: Optional[bytes], prompt: str, must_exist: bool, gpu: Optional[bool],
                 spin_us: int) -> None:
        self.model, self.prompt = model, prompt
        self._forward, self._generate = model.forward, model.generate
        self._parameters = list(inspect.signature(model.forward).parameters)
        self._zeros: Optional[torch.Tensor] = None
        with contextlib.ExitStack() as undo:
            self._implementation = model.config._attn_implementation
            model.set_attn_implementation(_attention.NAME)
            undo.callback(model.set_attn_implementation, self._implementation)
            if model.config.get_text_config(decoder=True)._attn_implementation != _attention.NAME:
                raise NotSupported(f"{type(model).__name__} does not take an attention function from outside")
            self.shape = shape_of(model, model.forward, window)
            made = fingerprint or fingerprint_of(model, self.shape)
            self.client = undo.enter_context(Client(socket, spin_us=spin_us))
            described = Model(self.client, layers=self.shape.layers, kv_heads=self.shape.kv_heads,
                              group=self.shape.group, head_dim=self.shape.head_dim, window=self.shape.window,
                              rope=self.shape.rope, rope_dims=2 * len(self.shape.rope_freqs),
                              rope_freqs=self.shape.rope_freqs if len(self.shape.rope_freqs) else None,
                              softmax_scale=self.shape.softmax_scale, fingerprint=made,
                              name=getattr(model.config, "model_type", None))
            self.conversation = self._open(described, name, gpu, k=k, candidates=candidates, must_exist=must_exist)
            self.cache = ColdCache(self.shape.layers, lambda: self.tokens, self.rewind)
            self._sinks: List[int] = []
            self._known, self._known_first = array("I"), 0  # ids from that index on
            self._resume()
            self._put("forward", self._wrap(self._forward, self.forward), undo)
            self._put("generate", self._wrap(self._generate, self.generate), undo)
            self._undo = undo.pop_all()

    def _open(self, described: Model, name: str, gpu: Optional[bool], **options: Any) -> Conversation:
        """On the model's own GPU if there is one and the library can."""
        device = self.model.get_input_embeddings().weight.device
        devices = {parameter.device for parameter in self.model.parameters()}
        kind = str(self.model.dtype).rpartition(".")[2]
        possible = device.type == "cuda" and len(devices) == 1 and kind in TYPES
        if gpu and not possible:
            raise NotSupported(f"gpu=True with a model of {kind} on {', '.join(map(str, devices))}")
        if possible and gpu is not False:
            try:
                return Conversation(described, name, device=device.index, hot_type=kind, **options)
            except NotSupportedError:
                if gpu:
                    raise
        return Conversation(described, name, **options)

    # --- life ---------------------------------------------------------------------------------------------------------

    @staticmethod
    def _wrap(original: Any, replacement: Any) -> Any:
        """A plain function with the original's signature, which generate() looks at."""
        @functools.wraps(original)
        def call(*positional: Any, **named: Any) -> Any:
            return replacement(*positional, **named)
        return call

    def _put(self, name: str, function: Any, undo: contextlib.ExitStack) -> None:
        """Sets an attribute of this very object, in place of its class's or of one that was there."""
        before = self.model.__dict__.get(name)
        self.model.__dict__[name] = function
        if before is None:
            undo.callback(self.model.__dict__.pop, name, None)
        else:
            undo.callback(self.model.__dict__.__setitem__, name, before)

    def detach(self) -> None:
        """Stores what is not stored yet and gives the model back as it was. May be called twice."""
        if self.conversation.closed:
            return
        try:
            self._sync()
        finally:
            self._undo.close()

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        from . import detach
        detach(self.model)

    # --- the conversation ---------------------------------------------------------------------------------------------

    @property
    def tokens(self) -> int:
        """Number of tokens in the conversation."""
        return self._known_first + len(self._known)

    @property
    def status(self) -> Status:
        return self.conversation.status

    def rewind(self, end: int) -> None:
        """Forgets tokens from index `end` on. OutOfRangeError when that is too far back."""
        if end < self._known_first:
            raise OutOfRangeError(f"cannot go back to token {end}: those before {self._known_first} are not known here")
        self.conversation.rewind(end)
        del self._known[end - self._known_first:]

    def set_slots(self, k: int) -> None:
        """Retrieved tokens per query, layer and kv head from now on; 0: none, as for a text that is only stored."""
        self.conversation.set_slots(k)

    def sync(self) -> None:
        """Waits until everything is on the daemon's disk."""
        self.conversation.sync()

    def _sync(self) -> None:
        try:
            self.conversation.sync()
        except Error as error:  # an answer is not thrown away for it; the tokens are held until they can be stored
            warnings.warn(f"coldkv: not everything is stored yet: {error}", RuntimeWarning, stacklevel=3)

    def _resume(self) -> None:
        """Feeds what a conversation with a past needs again: sinks and the newest tokens."""
        total, fed = self.conversation.status.tokens, 0
        left = self.conversation.status.resume_left
        self._known_first = total - left
        while (ids := self.conversation.resume()).size:
            if not fed and self._known_first:  # the sinks come alone, then a gap
                self._sinks = ids.tolist()
                self._known_first += ids.size
            else:
                self._known.extend(ids.tolist())
            fed += ids.size
            self._block(torch.from_numpy(ids.astype(np.int64))[None], ids, 1, {})
        if not self._known_first:
            self._sinks = list(self._known[:SINKS])

    # --- forward ------------------------------------------------------------------------------------------------------

    def attend(self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
               scaling: Optional[float], options: Dict[str, Any]) -> torch.Tensor:
        """One layer's attention of the open block: where the conversation's hot window is, else on the processor."""
        conversation = self.conversation
        parts = [x[0].transpose(0, 1) for x in (query, key, value)]  # [n, heads, head_dim]
        if conversation.device is not None or (query.is_cpu and query.dtype is torch.float32):
            direct: torch.Tensor = conversation.attend(module.layer_idx, *[part.contiguous() for part in parts])
            return direct[None]
        if not query.is_cpu:  # across in one piece
            flat = torch.cat([part.reshape(-1) for part in parts]).to("cpu", torch.float32)
            pieces = torch.split(flat, [part.numel() for part in parts])
            parts = [piece.view(part.shape) for piece, part in zip(pieces, parts)]
        q, k, v = (part.to(torch.float32).contiguous() for part in parts)
        out: torch.Tensor = conversation.attend(module.layer_idx, q, k, v)
        return out.to(query.device, query.dtype)[None]

    def _block(self, ids: torch.Tensor, plain: np.ndarray, keep: int, options: Dict[str, Any]) -> Any:
        """At most BLOCK_MAX tokens through the model, [1, n]. Every one of them at position 0: there RoPE is the
        identity, exactly and in every type, so queries and keys arrive as if before RoPE. At any other position cosines
        and sines would have been rounded to the model's type, bf16 say, and undoing that in float32 would leave the
        error in what is stored for good."""
        device = self.model.get_input_embeddings().weight.device
        if self._zeros is None or self._zeros.device != device:
            self._zeros = torch.zeros((1, BLOCK_MAX), dtype=torch.long, device=device)
        if keep_name := ("logits_to_keep" if "logits_to_keep" in self._parameters else None):
            options = {**options, keep_name: keep}
        with torch.no_grad(), _attention.receiving(self), self.conversation.block(plain):
            return self._forward(input_ids=ids.to(device), position_ids=self._zeros[:, :ids.shape[1]],
                                 past_key_values=self.cache, use_cache=True, return_dict=True, **options)

    def forward(self, *positional: Any, **named: Any) -> Any:
        """What model(...) does: adds the tokens to the conversation, in blocks. Logits are those of the last
        logits_to_keep tokens, 0: of all."""
        options = {**dict(zip(self._parameters, positional)), **named}
        ids = self._checked(options)
        keep = options.pop("logits_to_keep", None) or ids.shape[1]
        if not isinstance(keep, int):
            raise NotSupported("logits_to_keep has to be a number")
        as_tuple = options.pop("return_dict", None) is False
        plain = ids[0].cpu().numpy()
        count, logits = ids.shape[1], []
        out: Any = None
        for first in range(0, count, BLOCK_MAX):
            end = min(first + BLOCK_MAX, count)
            kept = max(0, end - max(first, count - keep))
            out = self._block(ids[:, first:end], plain[first:end], max(kept, 1), options)
            self._known.extend(plain[first:end].tolist())
            if len(self._sinks) < SINKS and not self._known_first:
                self._sinks = list(self._known[:SINKS])
            if kept:
                logits.append(out.logits[:, -kept:])
        out.logits = logits[0] if len(logits) == 1 else torch.cat(logits, dim=1)
        return out.to_tuple() if as_tuple else out

    def _checked(self, options: Dict[str, Any]) -> torch.Tensor:
        """Takes the ids out of a call's options, and what coldkv decides itself; refuses what it cannot do."""
        ids: Optional[torch.Tensor] = options.pop("input_ids", None)
        if ids is None or options.pop("inputs_embeds", None) is not None:
            raise NotSupported("coldkv stores token ids: call the model with input_ids, not with inputs_embeds")
        if ids.ndim != 2 or ids.shape[0] != 1 or not ids.shape[1]:
            raise NotSupported(f"input_ids of shape {tuple(ids.shape)}: coldkv continues one conversation, so [1, n]")
        if self.model.training:
            raise NotSupported("the model is in training mode: call model.eval()")
        mask = options.pop("attention_mask", None)
        if mask is not None and (mask.ndim != 2 or not bool((mask == 1).all())):
            raise NotSupported("an attention_mask with zeros: a conversation has no padding")
        cache = options.pop("past_key_values", None)
        if cache is not None and cache is not self.cache:
            raise NotSupported("past_key_values of another kind: detach coldkv first")
        for name in ("labels", "output_attentions", "output_hidden_states"):
            value = options.pop(name, None)
            if value is not None and value is not False:
                raise NotSupported(f"{name} with coldkv attached: detach it first")
        for name in ("position_ids", "cache_position", "use_cache", "token_type_ids"):
            options.pop(name, None)
        return ids

    # --- generate -----------------------------------------------------------------------------------------------------

    def generate(self, inputs: Any = None, *positional: Any, **named: Any) -> Any:
        """What model.generate(...) does: continues the conversation. The result begins with the ids given, as ever."""
        ids = inputs if inputs is not None else named.get("input_ids")
        if named.get("inputs_embeds") is not None:
            raise NotSupported("coldkv stores token ids: call generate() with input_ids")
        if named.get("past_key_values") not in (None, self.cache):
            raise NotSupported("past_key_values of another kind: detach coldkv first")
        if named.get("use_cache") is False:
            raise NotSupported("use_cache=False would add everything again for each token")
        if ids is not None and (ids.ndim != 2 or ids.shape[0] != 1):
            raise NotSupported(f"input_ids of shape {tuple(ids.shape)}: coldkv continues one conversation, so [1, n]")
        self.cache.start = self.tokens if ids is None else self._start(ids[0].tolist())
        named["past_key_values"] = self.cache
        result = self._generate(inputs, *positional, **named)
        sequences = result if isinstance(result, torch.Tensor) else result.sequences
        left = sequences[:, self.cache.get_seq_length():]
        if left.shape[1]:  # the last token was chosen, but not read: the conversation has it, too
            self.forward(input_ids=left, logits_to_keep=1)
        self._sync()
        return result

    def _start(self, ids: List[int]) -> int:
        """Index in the conversation at which these inputs begin: 0 when they are the whole of it and more."""
        if self.prompt == "new" or not self.tokens:
            return self.tokens
        same = self._same(ids)
        if same < self.tokens and self.prompt == "auto":
            return self.tokens
        end = min(same, len(ids) - 1)  # one token has to be read to say what follows
        if end < self.tokens:
            self.rewind(end)
        return 0

    def _same(self, ids: List[int]) -> int:
        """How many ids at the beginning are those of the conversation, as far as these are known here."""
        for place, (mine, given) in enumerate(zip(self._sinks, ids)):
            if mine != given:
                return place
        if len(ids) <= self._known_first:
            return 0 if self._known_first else len(ids)
        end = min(len(ids), self.tokens)
        known = np.frombuffer(self._known, np.uint32)[:end - self._known_first]
        different = np.flatnonzero(known != np.asarray(ids[self._known_first:end], np.int64))
        return self._known_first + int(different[0]) if different.size else end


def check_arguments(hot: int, prompt: str) -> None:
    if hot != HOT:
        raise ValueError(f"hot={hot}: this libcoldkv keeps a hot window of {HOT} tokens")
    if prompt not in PROMPTS:
        raise ValueError(f"prompt={prompt!r}: wanted one of {', '.join(PROMPTS)}")
