"""The sensitivity map: what every block and each of its halves matter, measured by switching them off one by one."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import ZImagePipeline
from numpy.typing import NDArray

from zimage_studio.core.comparison import distance
from zimage_studio.core.pruning.ablation import Shift, Tick, pictures, velocities
from zimage_studio.core.pruning.calibration import DEFAULT_STEPS, default_size, states_of, ways
from zimage_studio.core.pruning.knockout import knocked
from zimage_studio.errors import NonFiniteError
from zimage_studio.records.plan import STACKS
from zimage_studio.records.progress import Progress, silent
from zimage_studio.records.sensitivity import Cell, Knock, KnockPart, SensitivityMap

LEAST = 1e-30
"""Keeps a model that predicts nothing at all from dividing by zero."""
HALVES: tuple[KnockPart, ...] = ("block", "attention", "feed_forward")


def sensitivity_map(
    pipeline: ZImagePipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    by_timestep: bool = False,
    progress: Progress = silent,
    *,
    steps: int = DEFAULT_STEPS,
    size: tuple[int, int] | None = None,
    guidance: float = 0.0,
    parts: Sequence[KnockPart] = HALVES,
    decode: bool = False,
) -> SensitivityMap:
    """How far pictures move when each of `parts` of each block is switched off, from first step to last.

    The pictures are those of `prompts` and `seeds` (see ways): |x' - x| / |x| of the finished latents. For each step,
    when asked for: |v' - v| / |v| of the velocity where the whole model passes by. `decode` also compares the pixels of
    the first picture. The weights are afterwards bit for bit as before, also when it is stopped.
    Raises InvalidInputError (no prompt), UserError (weights that a memory profile keeps in another form or place),
    NonFiniteError, Cancelled.
    """
    width, height = size or default_size(pipeline)
    transformer, knocks = pipeline.transformer, _knocks(pipeline, parts)
    drawn = ways(pipeline, prompts, seeds, steps, size=(width, height), guidance=guidance)
    batch = states_of(transformer, drawn, progress) if by_timestep else None
    speeds = None if batch is None else velocities(transformer, batch)
    tick = Tick(progress, len(knocks), "note.mapping")
    ends = pictures(transformer, drawn, tick)
    whole = decoded(pipeline, ends.whole_BCHW[:1]) if decode else None
    cells = []
    for number, knock in enumerate(knocks):
        tick(number)
        seen_BCHW = ends.without(knocked(transformer, [knock]))
        moved_B = ends.moved_each(seen_BCHW)
        if not bool(torch.isfinite(moved_B).all()):
            raise NonFiniteError("calibration_not_finite", value=str(knock))
        by_step: tuple[float, ...] = ()
        if batch is not None and speeds is not None:
            by_step = _by_step(speeds, speeds.without(knocked(transformer, [knock])), batch.step_B)
        psnr_db = None if whole is None else distance(whole, decoded(pipeline, seen_BCHW[:1])).psnr_db
        cells.append(Cell(knock=knock, change=_ratio(moved_B, ends.power_B), by_step=by_step, psnr_db=psnr_db))
    tick(len(knocks))
    return SensitivityMap(
        prompts=tuple(prompts), seeds=tuple(seeds), width=width, height=height,
        times=tuple(1 - sigma for sigma in drawn.sampler.sigmas()[:-1]), cells=tuple(cells),
    )  # fmt: skip


def _knocks(pipeline: ZImagePipeline, parts: Sequence[KnockPart]) -> list[Knock]:
    """In the order in which they act."""
    found: list[Knock] = []
    for stack in STACKS:
        for index, block in enumerate(getattr(pipeline.transformer, stack)):
            for part in parts:
                heads = range(block.attention.heads) if part == "head" else (None,)
                found += [Knock(stack, index, part, head) for head in heads]
    return found


def _ratio(moved_B: torch.Tensor, power_B: torch.Tensor) -> float:
    """|x' - x| / |x| from mean squares."""
    return float((moved_B.sum() / power_B.sum().clamp_min(LEAST)).sqrt())


def _by_step(speeds: Shift, seen_BCHW: torch.Tensor, step_B: torch.Tensor) -> tuple[float, ...]:
    moved_B, steps = speeds.moved_each(seen_BCHW), sorted(set(step_B.tolist()))
    return tuple(_ratio(moved_B[step_B == step], speeds.power_B[step_B == step]) for step in steps)


@torch.no_grad()  # type: ignore[untyped-decorator]
def decoded(pipeline: ZImagePipeline, latents_1CHW: torch.Tensor) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) of finished latents."""
    vae = pipeline.vae
    latents = latents_1CHW.to(vae.device, vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
    image = vae.decode(latents, return_dict=False)[0]
    picture_HWC: NDArray[np.float32] = pipeline.image_processor.postprocess(image, output_type="np")[0]
    pixels: NDArray[np.uint8] = (picture_HWC * 255).round().astype(np.uint8)
    return pixels
