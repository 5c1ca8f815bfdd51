# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Addresses of arrays, never copies of them: numpy, torch, DLPack, and whatever has the buffer protocol."""
from __future__ import annotations

from typing import Any, Dict, Sequence, Tuple, Union

import numpy as np

from ._library import TYPES

ArrayLike = Any  # numpy array, torch tensor, DLPack or buffer exporter: no common type exists
GPU_ALIGNMENT = 16
Ids = Union[Sequence[int], ArrayLike]


# What is asked of every array of every layer, by type and by torch.dtype: asking costs more than the answer.
_torch_types: Dict[type, bool] = {}
_kinds: Dict[Any, str] = {}


def is_torch(array: Any) -> bool:
    kind = type(array)
    found = _torch_types.get(kind)
    if found is None:
        found = kind.__module__.partition(".")[0] == "torch" or hasattr(kind, "data_ptr")
        _torch_types[kind] = found
    return found


def _kind(dtype: Any) -> str:
    """Name of a torch.dtype."""
    found = _kinds.get(dtype)
    if found is None:
        found = _kinds[dtype] = str(dtype).rpartition(".")[2]
    return found


def _torch_address(array: Any, name: str, dtype: Any, shape: Tuple[int, ...]) -> int:
    if array.device.type != "cpu":
        raise TypeError(f"{name} is on {array.device}: this call takes arrays in the processor's memory, so use .cpu()")
    if _kind(array.dtype) != dtype.__name__:
        raise TypeError(f"{name} is {_kind(array.dtype)}, wanted {dtype.__name__}: convert it with "
                        f".to(torch.{dtype.__name__})")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {tuple(array.shape)}, wanted {shape}")
    if not array.is_contiguous():
        raise ValueError(f"{name} is not contiguous: use .contiguous()")
    if array.is_conj() or array.is_neg():
        raise ValueError(f"{name} is a lazy view: use .resolve_neg()")
    return int(array.data_ptr())


def on_gpu(array: Any) -> bool:
    return is_torch(array) and array.device.type == "cuda"


def gpu_addresses(device: int, *named: Tuple[Any, str, Tuple[int, ...]]) -> Tuple[Tuple[int, ...], int, int]:
    """Addresses of CUDA tensors (tensor, name, shape), all of one type; that type, as the library numbers it; and the
    current stream of their device."""
    import torch
    first = named[0][0]
    kind = _kind(first.dtype)
    if kind not in TYPES:
        raise TypeError(f"{named[0][1]} is {kind}, wanted one of {', '.join(TYPES)}")
    for array, name, shape in named:
        if not on_gpu(array) or array.device.index != device:
            where = array.device if is_torch(array) else "the processor"
            raise TypeError(f"{name} is on {where}, the conversation on cuda:{device}")
        if array.dtype != first.dtype:
            raise TypeError(f"{name} is {array.dtype}, {named[0][1]} is {first.dtype}")
        if array.shape != shape:
            raise ValueError(f"{name} has shape {tuple(array.shape)}, wanted {shape}")
        if not array.is_contiguous() or array.data_ptr() % GPU_ALIGNMENT:
            raise ValueError(f"{name} is not contiguous, or not aligned to {GPU_ALIGNMENT} bytes: use .clone()")
    return tuple(array.data_ptr() for array, _, _ in named), TYPES[kind], torch.cuda.current_stream(device).cuda_stream


def _as_numpy(array: Any, name: str) -> np.ndarray:
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "__dlpack__"):
        return np.from_dlpack(array)
    try:
        return np.asarray(memoryview(array))
    except TypeError:
        raise TypeError(f"{name} is a {type(array).__name__}, wanted numpy, torch, DLPack or a buffer") from None


def address(array: ArrayLike, name: str, dtype: Any, shape: Tuple[int, ...], writable: bool = False) -> int:
    """Address of a C-contiguous array of that type and shape. Raises TypeError or ValueError rather than copying. The
    array has to outlive the use of the address. dtype: a class, such as numpy.float32."""
    if is_torch(array):
        return _torch_address(array, name, dtype, shape)
    view = _as_numpy(array, name)
    if view.dtype != dtype:
        raise TypeError(f"{name} is {view.dtype}, wanted {np.dtype(dtype)}")
    if view.shape != shape:
        raise ValueError(f"{name} has shape {view.shape}, wanted {shape}")
    if not view.flags.c_contiguous:
        raise ValueError(f"{name} is not contiguous: use numpy.ascontiguousarray")
    if writable and not view.flags.writeable:
        raise ValueError(f"{name} cannot be written to")
    return view.ctypes.data


def empty_like(array: ArrayLike) -> ArrayLike:
    """A new array of the same kind, type and shape."""
    if is_torch(array):
        import torch
        return torch.empty_like(array, memory_format=torch.contiguous_format)
    return np.empty_like(_as_numpy(array, "q"))


def integers(values: Ids, name: str, dtype: Any) -> np.ndarray:
    """Ids or positions as a numpy array [n]: these few numbers are copied where their type differs."""
    if is_torch(values):
        values = values.detach().cpu().numpy()  # type: ignore[union-attr]
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}, wanted (n,)")
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{name} is {array.dtype}, wanted integers")
    limits = np.iinfo(dtype)
    if array.size and (int(array.min()) < limits.min or int(array.max()) > limits.max):
        raise ValueError(f"{name} has values outside {limits.min} to {limits.max}")
    return np.ascontiguousarray(array, dtype=dtype)
