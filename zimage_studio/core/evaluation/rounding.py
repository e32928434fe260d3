"""The rival of every pruned model: its parent unpruned, with weights rounded until it takes as many bytes.

Weight-only 8 bits by torchao, 4 bits by core.memory.int4, layer by layer. First all layers go to 8 bits, which loses
almost nothing, then from 8 to 4; from the middle of the stack outwards, so that the first and the last blocks keep
their precision longest, as pruning protects them too; feed-forwards before attention. A step is taken only where it
brings the size nearer to the wanted one.
"""

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from zimage_studio.core.memory import int4
from zimage_studio.core.memory.shapes import live_bytes
from zimage_studio.core.memory.switches_precision import KEEP, quantised_as
from zimage_studio.core.weight_headers import TensorInfo

Kind = Literal["int8", "int4"]
ZERO_POINT_BYTES = 1
"""torchao keeps one for each row beside its scale, also where it is 0."""
KINDS: tuple[Kind, ...] = ("int8", "int4")
STACKS = ("layers", "noise_refiner", "context_refiner")
_PLACE = re.compile(r"(?P<stack>layers|noise_refiner|context_refiner)\.(?P<index>\d+)\.(?P<rest>.+)")


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer by name: bytes of its weight as stored, in 8 bits and in 4 (None where its rows do not divide)."""

    name: str
    stored: int
    int8: int
    int4: int | None

    def bytes(self, kind: Kind | None) -> int | None:
        """Its weight's bytes rounded as `kind`."""
        return {None: self.stored, "int8": self.int8, "int4": self.int4}[kind]


def layers_of(header: Mapping[str, TensorInfo], scale_bytes: int) -> list[Layer]:
    """The layers that can be rounded, in the order in which they are: those that core.memory rounds.

    `header` is the transformer's, in diffusers' names; `scale_bytes` is the size of the number that the model computes
    with, as which torchao keeps its scales.
    """
    found = [
        _layer(name.removesuffix(".weight"), info, scale_bytes)
        for name, info in header.items()
        if name.endswith(".weight") and len(info.shape) == 2 and _PLACE.match(name) and not any(k in name for k in KEEP)
    ]
    places = [_place(layer.name) for layer in found]
    counts = {stack: 1 + max((i for s, i, _ in places if s == stack), default=0) for stack in STACKS}
    return sorted(found, key=lambda layer: _turn(layer.name, counts))


def _layer(name: str, info: TensorInfo, scale_bytes: int) -> Layer:
    rows, columns = info.shape
    four = round(rows * columns * int4.BITS / 8) if columns % int4.GROUP == 0 else None
    return Layer(name, info.bytes, rows * columns + rows * (scale_bytes + ZERO_POINT_BYTES), four)


def _place(name: str) -> tuple[str, int, str]:
    match = _PLACE.match(name)
    if match is None:
        raise ValueError(f"{name} is in no block")
    return match["stack"], int(match["index"]), match["rest"]


def _turn(name: str, counts: Mapping[str, int]) -> tuple[int, float, int, str]:
    stack, index, rest = _place(name)
    from_middle = abs(index - (counts[stack] - 1) / 2)
    return STACKS.index(stack), from_middle, 0 if rest.startswith("feed_forward") else 1, name


def choose(layers: Sequence[Layer], total_bytes: int, wanted_bytes: int) -> dict[str, Kind]:
    """How to round each layer, by name, so that `total_bytes` comes nearest to `wanted_bytes`."""
    chosen: dict[str, Kind] = {}
    for kind in KINDS:
        for layer in layers:
            now, then = layer.bytes(chosen.get(layer.name)), layer.bytes(kind)
            if now is None or then is None or then >= now:
                continue
            if abs(total_bytes - (now - then) - wanted_bytes) < abs(total_bytes - wanted_bytes):
                chosen[layer.name] = kind
                total_bytes -= now - then
    return chosen


def forecast(layers: Sequence[Layer], chosen: Mapping[str, Kind], total_bytes: int) -> int:
    """Bytes of the whole model after rounding."""
    return total_bytes - sum(layer.stored - (layer.bytes(chosen.get(layer.name)) or 0) for layer in layers)


def smallest(layers: Sequence[Layer], total_bytes: int) -> int:
    """Bytes of the whole model with every layer as small as it gets."""
    return total_bytes - sum(layer.stored - min(layer.stored, layer.int8, layer.int4 or layer.int8) for layer in layers)


def round_layers(transformer: nn.Module, chosen: Mapping[str, Kind]) -> None:
    """Round the layers in place. Raises ValueError where they are rounded already, ImportError without torchao."""
    if kind := quantised_as(transformer):
        raise ValueError(f"the weights are {kind} already")
    for name, kind in chosen.items():
        if kind == "int4":
            parent, _, leaf = name.rpartition(".")
            setattr(transformer.get_submodule(parent), leaf, int4.Int4Linear(_linear(transformer, name)))
    eight = {id(transformer.get_submodule(name)) for name, kind in chosen.items() if kind == "int8"}
    if eight:
        quantization: Any = importlib.import_module("torchao.quantization")
        config = quantization.Int8WeightOnlyConfig(version=2)
        quantization.quantize_(transformer, config, filter_fn=lambda module, _: id(module) in eight, device=None)


def _linear(transformer: nn.Module, name: str) -> nn.Linear:
    module = transformer.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise ValueError(f"{name} is no linear layer")
    return module


def rounded_bytes(transformer: nn.Module, names: Mapping[str, Kind]) -> int:
    """Bytes that the rounded weights really take, scales and offsets included; biases are not rounded."""
    return sum(live_bytes(tensor) for name in names for tensor in _weights(transformer.get_submodule(name)))


def _weights(module: nn.Module) -> list[Tensor]:
    if isinstance(module, int4.Int4Linear):
        return [module.packed_OI, module.scale_OG1, module.offset_OG1]
    weight = module.weight
    if not isinstance(weight, Tensor):
        raise ValueError("a rounded layer without a weight")
    return [weight.data]
