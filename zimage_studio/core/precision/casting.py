"""Change the dtype of weights in memory, and put back the same bits."""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from diffusers.quantizers.gguf.utils import GGUFLinear
from torch import Tensor, nn

PLAIN = (torch.float16, torch.bfloat16, torch.float32)


def cast(module: nn.Module, dtype: torch.dtype, undo: ExitStack, *, but: Iterable[nn.Module] = ()) -> None:
    """Turn the plain floating weights of `module`, `but` those parts, into `dtype`; `undo` gives back every bit.

    Quantised and float8 weights stay as they are; GGUF layers expand into `dtype` from now on. Where `dtype` holds
    less than the weights do, the originals are kept in the memory of the computer until `undo`, and then win over any
    change made in between. Raises ValueError while `module` is group-offloaded: its weights have copies that this
    would miss.
    """
    _refuse_offloaded(module)
    spared = {id(inner) for part in but for inner in part.modules()}
    for layer in module.modules():
        if id(layer) in spared:
            continue
        for tensor in _own_tensors(layer):
            if tensor.dtype != dtype:
                _cast_one(tensor, dtype, undo)
        if isinstance(layer, GGUFLinear) and layer.compute_dtype != dtype:
            undo.callback(setattr, layer, "compute_dtype", layer.compute_dtype)
            layer.compute_dtype = dtype


def holds_all(narrow: torch.dtype, wide: torch.dtype) -> bool:
    """Whether every number of `narrow` is a number of `wide`."""
    return narrow is wide or wide is torch.float32


def _own_tensors(layer: nn.Module) -> list[Tensor]:
    """Parameters and buffers of `layer` itself that are ordinary floating tensors."""
    tensors = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
    return [tensor for tensor in tensors if tensor.dtype in PLAIN and type(tensor.data) is Tensor]


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


def _refuse_offloaded(module: nn.Module) -> None:
    for part in module.modules():
        registry: Any = getattr(part, "_diffusers_hook", None)
        if registry is not None and registry.get_hook("group_offloading") is not None:
            raise ValueError("the weights are group-offloaded: end that before changing their precision")
