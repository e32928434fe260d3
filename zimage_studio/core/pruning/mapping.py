"""What a plan does to every tensor: its new name, and the rows and columns that stay. Surgery in memory, streaming from
disk to disk, forecasts and LoRAs all ask here, and nowhere else. No torch.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from zimage_studio.core.pruning.shape import tensor_shapes
from zimage_studio.core.weight_headers import Shape
from zimage_studio.errors import ModelError
from zimage_studio.records.plan import BlockCut, BlockShape, PrunePlan
from zimage_studio.records.ranges import units

Axis = Literal["", "dim", "adaln", "modulation", "heads", "ffn"]
Kept = NDArray[np.int64]

MODULATIONS = 4
"""Scale and gate for attention and feed-forward, one below the other in adaLN_modulation.0."""
_PLACE = re.compile(r"(layers|noise_refiner|context_refiner)\.(\d+)\.(.+)")
_OUTER_AXES: Mapping[str, tuple[Axis, ...]] = {
    "all_x_embedder.2-1.weight": ("dim", ""),
    "all_x_embedder.2-1.bias": ("dim",),
    "all_final_layer.2-1.linear.weight": ("", "dim"),
    "all_final_layer.2-1.linear.bias": ("",),
    "all_final_layer.2-1.adaLN_modulation.1.weight": ("dim", "adaln"),
    "all_final_layer.2-1.adaLN_modulation.1.bias": ("dim",),
    "t_embedder.mlp.0.weight": ("", ""),
    "t_embedder.mlp.0.bias": ("",),
    "t_embedder.mlp.2.weight": ("adaln", ""),
    "t_embedder.mlp.2.bias": ("adaln",),
    "cap_embedder.0.weight": ("",),
    "cap_embedder.1.weight": ("dim", ""),
    "cap_embedder.1.bias": ("dim",),
    "x_pad_token": ("", "dim"),
    "cap_pad_token": ("", "dim"),
}
_INNER_AXES: Mapping[str, tuple[Axis, ...]] = {
    "attention.to_q.weight": ("heads", "dim"),
    "attention.to_k.weight": ("heads", "dim"),
    "attention.to_v.weight": ("heads", "dim"),
    "attention.to_out.0.weight": ("dim", "heads"),
    "attention.norm_q.weight": ("",),
    "attention.norm_k.weight": ("",),
    "feed_forward.w1.weight": ("ffn", "dim"),
    "feed_forward.w2.weight": ("dim", "ffn"),
    "feed_forward.w3.weight": ("ffn", "dim"),
    "attention_norm1.weight": ("dim",),
    "attention_norm2.weight": ("dim",),
    "ffn_norm1.weight": ("dim",),
    "ffn_norm2.weight": ("dim",),
    "adaLN_modulation.0.weight": ("modulation", "adaln"),
    "adaLN_modulation.0.bias": ("modulation",),
}


@dataclass(frozen=True, eq=False, slots=True)
class TensorMap:
    """Where a tensor of the parent goes. `kept` has for each axis the positions that stay, None for all of them."""

    name: str
    kept: tuple[Kept | None, ...]
    parent: Shape
    shape: Shape

    @property
    def unchanged(self) -> bool:
        """Whether every number stays."""
        return all(axis is None for axis in self.kept)


def tensor_maps(plan: PrunePlan) -> dict[str, TensorMap]:
    """Every tensor of the parent that stays, by its name there. What is not in it goes with its block."""
    blocks = _blocks(plan)
    outer = _outer_positions(plan)
    maps: dict[str, TensorMap] = {}
    for name, shape in tensor_shapes(plan.before).items():
        match = _PLACE.fullmatch(name)
        if match is None:
            maps[name] = _mapped(name, shape, _OUTER_AXES[name], outer)
        elif (found := blocks.get((match[1], int(match[2])))) is not None:
            number, inner = found
            maps[name] = _mapped(f"{match[1]}.{number}.{match[3]}", shape, _INNER_AXES[match[3]], outer | inner)
    return maps


def _mapped(name: str, shape: Shape, axes: tuple[Axis, ...], positions: Mapping[Axis, Kept | None]) -> TensorMap:
    kept = tuple(positions.get(axis) for axis in axes)
    after = tuple(size if axis is None else len(axis) for size, axis in zip(shape, kept, strict=True))
    return TensorMap(name, kept, shape, after)


def _outer_positions(plan: PrunePlan) -> dict[Axis, Kept | None]:
    """Of the axes that are the same everywhere."""
    dim = plan.before.dim
    kept = _positions(plan.dim_kept, dim)
    narrow = kept is not None and plan.after.adaln_width < plan.before.adaln_width
    # a timestep embedding as wide as a model narrower than 256: cut by the same units, which it has no other tie to
    adaln = kept if narrow and dim == plan.before.adaln_width else None
    if narrow and adaln is None:
        adaln = np.arange(plan.after.adaln_width)
    modulation = None if kept is None else np.concatenate([kept + part * dim for part in range(MODULATIONS)])
    return {"dim": kept, "adaln": adaln, "modulation": modulation}


def _blocks(plan: PrunePlan) -> dict[tuple[str, int], tuple[int, dict[Axis, Kept | None]]]:
    """For each block that stays its new number and its own axes, by its place in the parent."""
    found: dict[tuple[str, int], tuple[int, dict[Axis, Kept | None]]] = {}
    for block, cut in zip(plan.before.blocks, plan.cuts, strict=True):
        if cut.kept:
            number = sum(stack == block.stack for stack, _ in found)
            found[(block.stack, block.index)] = (number, _inner_positions(block, cut, plan.before.head_dim))
    return found


def _inner_positions(block: BlockShape, cut: BlockCut, head_dim: int) -> dict[Axis, Kept | None]:
    heads = _positions(cut.heads_kept, block.heads)
    rows = None if heads is None else (heads[:, None] * head_dim + np.arange(head_dim)).reshape(-1)
    return {"ffn": _positions(cut.ffn_kept, block.ffn), "heads": rows}


def _positions(text: str, count: int) -> Kept | None:
    return np.array(units(text, count), dtype=np.int64) if text else None


# --- forecast -------------------------------------------------------------------------------------------------------


def parameters(shapes: Mapping[str, Shape]) -> int:
    """How many numbers these tensors hold."""
    return sum(math.prod(shape) for shape in shapes.values())


def forecast(plan: PrunePlan) -> tuple[int, int]:
    """Parameters and bytes of the transformer after the cut."""
    maps = tensor_maps(plan)
    sizes = {old: math.prod(tensor.shape) for old, tensor in maps.items()}
    return sum(sizes.values()), sum(n * plan.item_bytes_of.get(old, plan.item_bytes) for old, n in sizes.items())


def require_parent(plan: PrunePlan, found: Mapping[str, Shape]) -> None:
    """Refuse a plan made for tensors of other names or shapes. Raises ModelError naming the first that differs."""
    expected = tensor_shapes(plan.before)
    for name in sorted(expected.keys() | found.keys()):
        here, there = found.get(name), expected.get(name)
        if here != there:
            raise ModelError("plan_other_shape", what=name, found=_spelled(here), expected=_spelled(there))


def _spelled(shape: Shape | None) -> str:
    return "–" if shape is None else "×".join(map(str, shape))
