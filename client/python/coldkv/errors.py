# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""One exception class for each kind of failure that coldkv.h names."""
from __future__ import annotations


class Error(Exception):
    """What every failure of coldkv is; `code` is the negative code of coldkv.h."""

    code: int = 0


class NotSupportedError(Error):
    """A GPU that is not there, or not built for; a codec of a later version."""

    code = -4


class VersionError(Error):
    """Daemon and library do not understand each other."""

    code = -5


class NoModelError(Error):
    """The daemon has no such model."""

    code = -6


class NoConversationError(Error, LookupError):
    """Opened with must_exist, and there is no conversation of that name."""

    code = -7


class BusyError(Error):
    """Another process writes this conversation."""

    code = -9


class ModelMismatchError(Error):
    """Fingerprint or geometry is not that of the stored conversation."""

    code = -10


class ConflictError(Error):
    """The daemon holds other bytes for these tokens."""

    code = -12


class OutOfRangeError(Error, IndexError):
    """Token, layer or head outside the conversation."""

    code = -14


class LimitError(Error):
    """A limit of the daemon or of the format is reached."""

    code = -15


class CorruptError(Error):
    """What is stored is damaged."""

    code = -16


class NoSpaceError(Error):
    """The daemon's disk is full, or its user's share of it."""

    code = -17


class InputOutputError(Error):
    """The daemon's disk fails."""

    code = -18


class ReadOnlyError(Error):
    """The daemon takes no writes."""

    code = -19


class OutOfMemoryError(Error, MemoryError):
    """Out of memory, here or in the daemon."""

    code = -20


class DeniedError(Error):
    """The daemon does not let this user do that."""

    code = -23


class UnreachableError(Error):
    """No daemon answers."""

    code = -24


class TimedOutError(Error):
    """The daemon is there, and did not answer in time."""

    code = -25


class ArgumentError(Error, ValueError):
    """An argument that makes no sense."""

    code = -26


class StateError(Error, RuntimeError):
    """A call out of order."""

    code = -27


class NotFiniteError(Error, ValueError):
    """NaN or infinity in q, k or v, or a length that fp16 cannot hold."""

    code = -28


class BacklogError(Error):
    """Too many unacknowledged tokens are held here; nothing was dropped."""

    code = -29


_BY_CODE = {kind.code: kind for kind in Error.__subclasses__()}


def error_of(code: int, sentence: str) -> Error:
    """The exception for a negative code of the library; one without a class of its own becomes a plain Error."""
    error = _BY_CODE.get(code, Error)(sentence)
    error.code = code
    return error
