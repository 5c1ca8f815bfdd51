# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""A cold memory for language models: the past of a conversation outside the model's window, kept by coldkvd.

    with coldkv.Client() as client:
        model = coldkv.Model(client, layers=32, kv_heads=8, group=4, head_dim=128, window=8192, rope_theta=500000.0,
                             fingerprint=hash_of_weights)
        with coldkv.Conversation(model, "diary") as conversation:
            with conversation.block(ids):  # up to 64 tokens
                for layer in range(32):
                    out = conversation.attend(layer, q, k, v)  # float32: [n, 32, 128], [n, 8, 128] twice
            conversation.sync()

coldkv.transformers attaches a conversation to a model of Hugging Face transformers.
"""
from ._library import BLOCK_MAX, HOT, NO_SLOT, REWIND_EXACT, SINKS, library
from .client import Client, Fingerprint, Model, Rope
from .conversation import Conversation, Slots, Status
from .errors import (ArgumentError, BacklogError, BusyError, ConflictError, CorruptError, DeniedError, Error,
                     InputOutputError, LimitError, ModelMismatchError, NoConversationError, NoModelError,
                     NoSpaceError, NotFiniteError, NotSupportedError, OutOfMemoryError, OutOfRangeError,
                     ReadOnlyError, StateError, TimedOutError, UnreachableError, VersionError)

__version__ = library.coldkv_version().decode()

__all__ = [
    "BLOCK_MAX", "HOT", "NO_SLOT", "REWIND_EXACT", "SINKS", "ArgumentError", "BacklogError", "BusyError", "Client",
    "ConflictError", "Conversation", "CorruptError", "DeniedError", "Error", "Fingerprint", "InputOutputError",
    "LimitError", "Model", "ModelMismatchError", "NoConversationError", "NoModelError", "NoSpaceError",
    "NotFiniteError", "NotSupportedError", "OutOfMemoryError", "OutOfRangeError", "ReadOnlyError", "Rope", "Slots",
    "StateError", "Status", "TimedOutError", "UnreachableError", "VersionError",
]
