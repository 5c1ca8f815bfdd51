# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""What coldkv has to know of a model, found by watching it: one token goes through at a few positions, and the queries,
keys and values of every layer are looked at. What coldkv cannot do shows there, whatever the architecture's name is."""
from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, Dict, List, Optional

import numpy as np
import torch

from .. import Fingerprint, Rope
from ._attention import receiving
from ._cache import ColdCache

HEAD_DIM_MIN, HEAD_DIM_MAX, HEAD_DIM_STEP = 64, 128, 8
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
POSITIONS = (0, 1, 37)  # high frequencies show in the second, lower ones in the third
# Relative error of a rotation in the model's own arithmetic; one in another layout is off by about 1.
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}
# Arguments of attention functions that change nothing here. Any other that is set may, so it is refused.
HARMLESS = {"is_causal", "position_ids", "position_embeddings", "use_cache", "output_attentions", "cache_position",
            "num_items_in_batch", "deterministic", "target_dtype"}


class NotSupported(ValueError):
    """coldkv cannot be attached to this model; the message says why."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """Arguments of coldkv.Model."""

    layers: int
    kv_heads: int
    group: int
    head_dim: int
    window: int
    rope: Rope
    rope_freqs: np.ndarray
    softmax_scale: float


@dataclasses.dataclass
class _Seen:
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: Optional[float]
    options: Dict[str, Any]


class _Watcher:
    """A single token sees itself alone, so its attention is its value: what follows is the same at every position."""

    def __init__(self) -> None:
        self.layers: List[Dict[int, _Seen]] = []

    def attend(self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
               scaling: Optional[float], options: Dict[str, Any]) -> torch.Tensor:
        layer = getattr(module, "layer_idx", None)
        if layer is None or layer in self.layers[-1]:
            raise NotSupported(f"{type(module).__name__} has no layer_idx of its own")
        if query.shape[1] % key.shape[1] or value.shape[1] != key.shape[1]:
            raise NotSupported(f"layer {layer} has {query.shape[1]} query, {key.shape[1]} key and {value.shape[1]} "
                               "value heads")
        if value.shape[-1] != key.shape[-1]:
            raise NotSupported(f"layer {layer} has keys of {key.shape[-1]} and values of {value.shape[-1]} "
                               "coordinates, as in MLA; coldkv wants them to be equal")
        one = [x[0, :, 0].double().cpu() for x in (query, key, value)]
        self.layers[-1][layer] = _Seen(one[0], one[1], one[2], scaling, options)
        return value.repeat_interleave(query.shape[1] // key.shape[1], dim=1).transpose(1, 2)


def _watch(model: Any, forward: Any, config: Any) -> List[Dict[int, _Seen]]:
    """What every layer computes for one token at each of POSITIONS."""
    watcher = _Watcher()
    token = config.vocab_size // 2
    if token == getattr(config, "pad_token_id", None):
        token += 1  # a padding token's embedding may be zero
    device = model.get_input_embeddings().weight.device
    cache = ColdCache(config.num_hidden_layers, lambda: 0, lambda _: None)
    with torch.no_grad(), receiving(watcher):
        for position in POSITIONS:
            watcher.layers.append({})
            forward(input_ids=torch.tensor([[token]], device=device), past_key_values=cache, use_cache=True,
                    position_ids=torch.tensor([[position]], device=device), return_dict=True)
    return watcher.layers


def _frequencies(model: Any) -> np.ndarray:
    """Radians per position of every rotated pair, as the model's rotary module has them."""
    rotary = [module for module in model.modules() if isinstance(getattr(module, "inv_freq", None), torch.Tensor)]
    if not rotary:
        return np.zeros(0)
    if len(rotary) > 1:
        raise NotSupported(f"{len(rotary)} rotary embeddings: coldkv wants one for all layers")
    kind = getattr(rotary[0], "rope_type", "default")
    if kind not in ROPE_TYPES:
        raise NotSupported(f"RoPE of type '{kind}', whose frequencies depend on the length; supported are "
                           + ", ".join(ROPE_TYPES))
    frequencies: np.ndarray = rotary[0].inv_freq.detach().double().cpu().numpy()
    return frequencies


def _rotate(x: torch.Tensor, frequencies: np.ndarray, position: int, rope: Rope) -> torch.Tensor:
    pairs = len(frequencies)
    angles = torch.from_numpy(frequencies * position)
    cosine, sine = torch.cos(angles), torch.sin(angles)
    out = x.clone()
    if rope == Rope.HALF:
        real, imaginary = slice(0, pairs), slice(pairs, 2 * pairs)
    else:
        real, imaginary = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    out[:, real] = x[:, real] * cosine - x[:, imaginary] * sine
    out[:, imaginary] = x[:, real] * sine + x[:, imaginary] * cosine
    return out


def _rotates(seen: List[Dict[int, _Seen]], layer: int, frequencies: np.ndarray, rope: Rope, tolerance: float) -> bool:
    first = seen[0][layer]
    for position, layers in zip(POSITIONS[1:], seen[1:]):
        for base, there in ((first.query, layers[layer].query), (first.key, layers[layer].key)):
            wanted = _rotate(base, frequencies, position, rope)
            if not torch.linalg.norm(there - wanted) <= tolerance * torch.linalg.norm(wanted):
                return False
    return True


def _layout(seen: List[Dict[int, _Seen]], frequencies: np.ndarray, tolerance: float) -> Rope:
    """The layout in which every layer rotates its queries and keys."""
    layouts = (Rope.HALF, Rope.INTERLEAVED) if len(frequencies) else (Rope.NONE,)
    best: List[int] = []
    for rope in layouts:
        wrong = [layer for layer in seen[0]
                 if not _rotates(seen, layer, frequencies, Rope.HALF if rope == Rope.NONE else rope, tolerance)]
        if not wrong:
            return rope
        best = wrong if not best or len(wrong) < len(best) else best
    raise NotSupported(f"layer {best[0]} does not rotate its queries and keys as RoPE with the model's "
                       f"{len(frequencies)} frequencies does")


def _check_layer(layer: int, seen: _Seen, first: _Seen) -> None:
    if seen.key.shape != first.key.shape or seen.query.shape != first.query.shape or seen.scaling != first.scaling:
        raise NotSupported(f"layer {layer} has other heads or another scale than layer 0")
    window = seen.options.get("sliding_window")
    if window is not None:
        raise NotSupported(f"layer {layer} attends to a sliding window of {window} tokens; coldkv wants full attention")
    for name, value in seen.options.items():
        if name not in HARMLESS and value is not None and value is not False:
            raise NotSupported(f"layer {layer} gives its attention '{name}', which coldkv does not know")


def shape_of(model: Any, forward: Any, window: Optional[int]) -> Shape:
    """The shape of a model whose attention implementation is ours. Raises NotSupported."""
    config = model.config.get_text_config(decoder=True)
    seen = _watch(model, forward, config)
    layers = config.num_hidden_layers
    if sorted(seen[0]) != list(range(layers)):
        raise NotSupported(f"{len(seen[0])} of {layers} layers have an attention that coldkv can take over")
    first = seen[0][0]
    head_dim = first.key.shape[-1]
    if not HEAD_DIM_MIN <= head_dim <= HEAD_DIM_MAX or head_dim % HEAD_DIM_STEP:
        raise NotSupported(f"head_dim {head_dim}: coldkv wants a multiple of {HEAD_DIM_STEP} from {HEAD_DIM_MIN} to "
                           f"{HEAD_DIM_MAX}")
    for layer in range(layers):
        _check_layer(layer, seen[0][layer], first)
    frequencies = _frequencies(model)
    tolerance = TOLERANCE.get(model.dtype, max(TOLERANCE.values()))
    return Shape(layers=layers, kv_heads=first.key.shape[0], group=first.query.shape[0] // first.key.shape[0],
                 head_dim=head_dim, window=window or config.max_position_embeddings,
                 rope=_layout(seen, frequencies, tolerance), rope_freqs=frequencies,
                 softmax_scale=float(first.scaling if first.scaling is not None else head_dim ** -0.5))


def fingerprint_of(model: Any, shape: Shape) -> bytes:
    """A hash of every tensor of the model, its name and type, and of how it rotates."""
    made = Fingerprint()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.device.type == "meta":
            raise ValueError(f"the weights of {name} are not in memory: give attach() a fingerprint")
        made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        made.update(tensor.detach().cpu().contiguous())
    made.update(f"{shape.rope.name} {shape.softmax_scale}".encode())
    made.update(shape.rope_freqs.tobytes())
    return made.digest()


def hash_of_weights(model: Any) -> str:
    """SHA-256 over every tensor of the model, as hexadecimal digits; equal before, during and after an attachment."""
    made = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        made.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return made.hexdigest()
