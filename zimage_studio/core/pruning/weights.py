"""Criteria that look at weights alone, one tensor at a time: in a pipeline, or straight from a folder on disk.

L1 is the common published recipe, and only a baseline: both halves of a block end in a normalisation, so the size of
its weights says nothing about how much the block adds. That is why blocks are scored by what that normalisation and
the gate let through, which is comparable, and units only within their block.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from diffusers.models.transformers.transformer_z_image import TimestepEmbedder
from torch import Tensor

from zimage_studio.core.pruning.groups import OUTER_DIM, UnitGroup
from zimage_studio.core.pruning.raw_tensors import TensorPlace
from zimage_studio.core.pruning.scores import Numbers, Place
from zimage_studio.core.pruning.shape import TIME_WIDTH
from zimage_studio.core.weight_headers import Reading
from zimage_studio.records.plan import Kind, TransformerShape
from zimage_studio.records.progress import Progress

Read = Callable[[str], Tensor]
"""Gives a tensor by its name."""
TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
TIMES = 16
T_SCALE = 1000.0


def read_tensor(place: TensorPlace) -> Tensor:
    """A tensor from its file, in its own type."""
    with Reading(place.file), place.file.open("rb") as file:
        file.seek(place.start)
        raw = bytearray(place.bytes)
        file.readinto(raw)
    return torch.frombuffer(raw, dtype=TYPES[place.dtype]).reshape(place.shape)


def magnitudes(tensor: Tensor, axis: int, power: int) -> Tensor:
    """Sum of |w|^p along the other axis, float32."""
    norm: Tensor = torch.linalg.vector_norm(tensor, ord=power, dim=1 - axis, dtype=torch.float32)
    return norm**power


def folded(values: Tensor, group: UnitGroup) -> Numbers:
    """From rows and columns to units: the mean over those of a head."""
    units: Numbers = values.double().reshape(group.count, group.width).mean(1).cpu().numpy()
    return units


def unit_magnitudes(
    read: Read, groups: Iterable[UnitGroup], power: int, kinds: tuple[Kind, ...], progress: Progress
) -> tuple[dict[Place, Numbers], dict[Place, Numbers], Numbers | None]:
    """Scores of feed-forward units, of heads and, asked for `dim`, of the residual stream.

    The mean over the members of a group, as torch-pruning's GroupMagnitudeImportance has it (normalizer=None).
    """
    found: dict[str, dict[Place, Numbers]] = {"ffn": {}, "heads": {}}
    wanted = [group for group in groups if group.part in kinds or "dim" in kinds]
    dim: list[Tensor] = []
    for number, group in enumerate(wanted):
        progress(number, len(wanted), "note.scoring")
        total = torch.zeros(group.count * group.width)
        for name, axis in group.members:
            tensor = read(name)
            total += magnitudes(tensor, axis, power).cpu()
            if "dim" in kinds:
                dim.append(magnitudes(tensor, group.dim_axis(axis), power).cpu())
        found[group.part][group.place] = folded(total / len(group.members), group)
    if "dim" not in kinds:
        return found["ffn"], found["heads"], None
    dim += [magnitudes(read(name), axis, power).cpu() for name, axis in OUTER_DIM]
    return found["ffn"], found["heads"], torch.stack(dim).double().mean(0).numpy()


def branch_strengths(read: Read, shape: TransformerShape, power: int) -> dict[Place, float]:
    """How much each block can add to the residual stream, from its weights alone.

    Each half adds tanh(gate(t)) * norm2.weight * (a vector of mean square 1): the p-mean of the two factors' product
    over channels and times from 0 to 1, summed over the halves. The context refiners have no gate.
    """
    time_TE = _time_embedding(read)
    found: dict[Place, float] = {}
    for block in shape.blocks:
        prefix = f"{block.stack}.{block.index}."
        norms = [read(f"{prefix}{name}.weight").float() for name in ("attention_norm2", "ffn_norm2")]
        gates = [torch.ones(1, 1), torch.ones(1, 1)]
        if block.stack != "context_refiner":
            weight = read(f"{prefix}adaLN_modulation.0.weight").float()
            bias = read(f"{prefix}adaLN_modulation.0.bias").float()
            _, gate_a, _, gate_f = (time_TE.to(weight.device) @ weight.T + bias).chunk(4, dim=1)
            gates = [gate_a.tanh(), gate_f.tanh()]
        strengths = [(gate * norm).abs().pow(power).mean() for gate, norm in zip(gates, norms, strict=True)]
        found[block.stack, block.index] = sum(float(strength) ** (1 / power) for strength in strengths)
    return found


def _time_embedding(read: Read) -> Tensor:
    """(TIMES, E) float32."""
    times = (torch.arange(TIMES) + 0.5) / TIMES * T_SCALE
    waves = TimestepEmbedder.timestep_embedding(times, TIME_WIDTH)
    names = ("mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias")
    in_w, in_b, out_w, out_b = (read(f"t_embedder.{name}").float().cpu() for name in names)
    return torch.nn.functional.silu(waves @ in_w.T + in_b) @ out_w.T + out_b


def random_scores(
    shape: TransformerShape, seed: int
) -> tuple[dict[Place, Numbers], dict[Place, Numbers], dict[Place, float], Numbers]:
    """Chance, as a control: the same for the same seed, whatever kinds are cut."""
    chance = np.random.default_rng(seed)
    ffn: dict[Place, Numbers] = {}
    heads: dict[Place, Numbers] = {}
    blocks: dict[Place, float] = {}
    for block in shape.blocks:
        place = (block.stack, block.index)
        ffn[place], heads[place] = chance.random(block.ffn), chance.random(block.heads)
        blocks[place] = float(chance.random())
    return ffn, heads, blocks, chance.random(shape.dim)
