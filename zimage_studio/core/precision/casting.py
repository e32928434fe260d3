"""Change the dtype of weights in memory, and put back the same bits."""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (torch.float16, torch.bfloat16, torch.float32)
EXPANDED_AS = ("compute_dtype", "dtype")
"""Where a layer of packed weights (GGUF, 4 bits) says into which dtype it expands them."""


def cast(module: nn.Module, dtype: torch.dtype, undo: ExitStack, *, but: Iterable[nn.Module] = ()) -> None:
    """Turn the plain floating weights of `module`, `but` those parts, into `dtype`; `undo` gives back every bit.

    Packed and float8 weights stay as they are and are expanded into `dtype` from now on. Where `dtype` holds less than
    the weights do, the originals are kept in the memory of the computer until `undo`, and then win over any change
    made in between. Raises ValueError, before anything changes, where this cannot be done in memory: while `module` is
    group-offloaded (its weights have copies that this would miss), and for weights of a tensor class of their own
    (torchao) that were made for another dtype.
    """
    spared = {id(inner) for part in but for inner in part.modules()}
    layers = [layer for layer in module.modules() if id(layer) not in spared]
    for layer in layers:
        _refuse(layer, dtype)
    for layer in layers:
        places = _places(layer, dtype)
        for tensor in _plain_tensors(layer, packed=bool(places)):
            if tensor.dtype != dtype:
                _cast_one(tensor, dtype, undo)
        for holder, name in places:
            undo.callback(setattr, holder, name, getattr(holder, name))
            setattr(holder, name, dtype)


def holds_all(narrow: torch.dtype, wide: torch.dtype) -> bool:
    """Whether every number of `narrow` is a number of `wide`."""
    return narrow is wide or wide is torch.float32


def _places(layer: nn.Module, dtype: torch.dtype) -> list[tuple[Any, str]]:
    """(object, attribute) wherever `layer` says what its weights are expanded into."""
    hook = _hook(layer, "layerwise_casting")
    found: list[tuple[Any, str]] = [] if hook is None else [(hook, "compute_dtype")]
    return found + [(layer, name) for name in EXPANDED_AS if isinstance(layer.__dict__.get(name), torch.dtype)]


def _hook(layer: nn.Module, name: str) -> Any:
    registry: Any = getattr(layer, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook(name)


def _plain_tensors(layer: nn.Module, *, packed: bool) -> list[Tensor]:
    """Ordinary floating parameters and buffers of `layer` itself; of one with packed weights only the bias."""
    named = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    return [tensor for name, tensor in named if _is_plain(tensor) and (name == "bias" or not packed)]


def _is_plain(tensor: Tensor) -> bool:
    return tensor.dtype in PLAIN and type(tensor.data) is Tensor


def _cast_one(tensor: Tensor, dtype: torch.dtype, undo: ExitStack) -> None:
    before = tensor.dtype
    if holds_all(before, dtype):
        undo.callback(_set, tensor, before)
    else:
        undo.callback(_put_back, tensor, tensor.data.to("cpu"))
    _set(tensor, dtype)


def _set(tensor: Tensor, dtype: torch.dtype) -> None:
    tensor.data = tensor.data.to(dtype)


def _put_back(tensor: Tensor, kept: Tensor) -> None:
    tensor.data = kept.to(tensor.device)


def _refuse(layer: nn.Module, dtype: torch.dtype) -> None:
    if _hook(layer, "group_offloading") is not None:
        raise ValueError("the weights are group-offloaded: end that before changing their precision")
    for tensor in layer.parameters(recurse=False):
        if tensor.dtype in PLAIN and tensor.dtype != dtype and not _is_plain(tensor):
            raise ValueError(f"{type(tensor.data).__name__} was made for {tensor.dtype}: load it again for {dtype}")
