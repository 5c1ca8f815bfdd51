# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""coldkv for Hugging Face transformers: a model continues a conversation past its trained window.

    model = AutoModelForCausalLM.from_pretrained(...)
    coldkv.transformers.attach(model, "diary")
    model.generate(**tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True,
                                                   return_tensors="pt"))
    coldkv.transformers.detach(model)

While attached, the model keeps sinks and a hot window of 256 tokens; older ones are in coldkvd, which also answers what
of them matters. Weights are not touched. What does not work is refused by attach(): see NotSupported.
"""
from __future__ import annotations

import os
from typing import Any, Optional, Union

from ._attachment import Attachment, check_arguments
from ._cache import ColdCache
from ._shape import NotSupported, Shape, hash_of_weights

__all__ = ["Attachment", "ColdCache", "NotSupported", "Shape", "attach", "attached", "detach", "hash_of_weights"]

_PLACE = "_coldkv_attachment"  # in the model's __dict__: it lives as long as the model does


def attach(model: Any, conversation: str, *, hot: int = 256, k: int = 64, candidates: int = 0,
           socket: Union[str, "os.PathLike[str]", None] = None, window: Optional[int] = None,
           fingerprint: Optional[bytes] = None, prompt: str = "auto", must_exist: bool = False,
           gpu: Optional[bool] = None, spin_us: int = 0) -> Attachment:
    """Makes model(...) and model.generate(...) continue a conversation, until detach(model).

    model: a causal language model in evaluation mode, on any device
    conversation: its name; one that exists is picked up where it was, its last 256 tokens are read again
    hot: tokens kept exact; this version has 256 and takes nothing else
    k: older tokens that are retrieved for a query, per layer and kv head; candidates: rescored for that, 0: the default
    socket: of coldkvd; None: $COLDKV_SOCKET, else the default
    window: trained window in tokens; None: max_position_embeddings of the model's configuration
    fingerprint: 32 bytes that stand for the weights; None: all of them are hashed
    prompt: what generate() is given. "new": only what is new. "whole": the conversation from its beginning, as chat
        templates make it; what is there already is not read again, and where the inputs differ from it, it is rewound
        if that is not too far back. "auto": the whole if it begins with everything there is, otherwise new
    must_exist: NoConversationError rather than a new conversation
    gpu: hot window and attention on the model's own CUDA device: True or NotSupportedError; False: on the processor;
        None: where the library can
    spin_us: looks for the daemon's answers for so long before it sleeps: quicker, and takes a processor

    Raises NotSupported for a model that coldkv cannot serve, saying why, and coldkv.Error for what the daemon refuses.
    The model is then as it was.
    """
    check_arguments(hot, prompt)
    before = attached(model)
    if before is not None:
        raise ValueError(f"a conversation is attached already: '{before.conversation.name}'")
    made = Attachment(model, conversation, k=k, candidates=candidates, socket=socket, window=window,
                      fingerprint=fingerprint, prompt=prompt, must_exist=must_exist, gpu=gpu, spin_us=spin_us)
    model.__dict__[_PLACE] = made
    return made


def attached(model: Any) -> Optional[Attachment]:
    """The attachment of a model, or None."""
    found: Optional[Attachment] = model.__dict__.get(_PLACE)
    return found


def detach(model: Any) -> None:
    """Stores what is not stored yet and gives the model back as it was. Nothing happens if nothing is attached."""
    made = model.__dict__.pop(_PLACE, None)
    if made is not None:
        made.detach()
