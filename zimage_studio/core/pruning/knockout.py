"""Blocks, halves and heads switched off while they are looked at, exactly, and restored bit for bit.

Both halves of a block end in a normalisation before they are added to the residual stream: with its weight at zero the
half adds exactly nothing. A head ends in its columns of `to_out`. Nothing else is touched, so the same works for any
Z-Image whose weights are plain tensors.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor, nn

from zimage_studio.errors import InvalidInputError, UserError
from zimage_studio.records.checks import whole
from zimage_studio.records.sensitivity import Knock, parse_knock

__all__ = ["Knock", "knocked", "parse_knock", "zeroed"]

HALVES = {"attention": ("attention_norm2",), "feed_forward": ("ffn_norm2",), "block": ("attention_norm2", "ffn_norm2")}


@contextmanager
def knocked(transformer: ZImageTransformer2DModel, knocks: Sequence[Knock | Mapping[str, object]]) -> Iterator[None]:
    """The transformer without `knocks`, as long as the context lasts; afterwards bit for bit as before.

    Raises InvalidInputError for a block or head that is not there, and UserError where a memory profile keeps the
    weights in another form or place; in both cases before anything is changed.
    """
    parsed = [knock if isinstance(knock, Knock) else parse_knock(knock) for knock in knocks]
    places = [place for knock in dict.fromkeys(parsed) for place in _places(transformer, knock)]
    with ExitStack() as undo:
        for weight, columns in places:
            undo.enter_context(zeroed(weight, columns))
        yield


@contextmanager
def zeroed(weight: nn.Parameter, columns: slice | Tensor | None = None) -> Iterator[None]:
    """`weight`, or its `columns` (of the last axis), at zero; restored bit for bit.

    What is restored is what the parameter holds then: a hook may have moved it to another device and back meanwhile.
    """
    where = (..., slice(None) if columns is None else columns)
    with torch.no_grad():
        before = weight.data[where].clone()
        weight.data[where] = 0
    try:
        yield
    finally:
        with torch.no_grad():
            weight.data[where] = before.to(weight.device)


def _places(transformer: ZImageTransformer2DModel, knock: Knock) -> list[tuple[nn.Parameter, slice | None]]:
    blocks = getattr(transformer, knock.stack)
    if knock.index >= len(blocks):
        raise InvalidInputError("plan_unknown_block", field="block", value=f"{knock.stack}.{knock.index}")
    block = blocks[knock.index]
    if knock.part != "head":
        return [(_plain(getattr(block, name), transformer, knock), None) for name in HALVES[knock.part]]
    attention = block.attention
    head = whole("head", knock.head, 0, attention.heads - 1)
    weight = _plain(attention.to_out[0], transformer, knock)
    width = weight.shape[1] // attention.heads
    return [(weight, slice(head * width, (head + 1) * width))]


def _plain(module: nn.Module, transformer: ZImageTransformer2DModel, knock: Knock) -> nn.Parameter:
    """The weight of `module`, if writing zeros into it is all that is needed. Raises UserError."""
    weight = module.weight
    if weight.device.type == "meta" or _streamed(transformer):
        raise UserError("knock_offloaded", value=str(knock))
    if type(weight) is not nn.Parameter or type(weight.data) is not Tensor or not weight.is_floating_point():
        raise UserError("knock_quantised", value=str(knock))
    return weight


def _streamed(transformer: ZImageTransformer2DModel) -> bool:
    """Whether diffusers' group offloading keeps second copies (pinned, or on disk), from which weights come back."""
    for module in transformer.modules():
        registry = getattr(module, "_diffusers_hook", None)
        for hook in getattr(registry, "hooks", {}).values():
            group = getattr(hook, "group", None)
            if group is not None and (group.stream is not None or group.offload_to_disk_path is not None):
                return True
    return False
