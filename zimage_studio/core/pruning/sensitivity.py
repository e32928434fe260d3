"""The sensitivity map: what every block and each of its halves matter, measured by switching them off one by one."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import ZImagePipeline
from numpy.typing import NDArray

from zimage_studio.core.comparison import distance
from zimage_studio.core.pruning.ablation import Ablation
from zimage_studio.core.pruning.calibration import DEFAULT_STEPS, calibration_set, default_size
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
    pictures: bool = False,
) -> SensitivityMap:
    """How far the velocity moves when each of `parts` of each block is switched off.

    Measured on the states of `prompts` and `seeds` (see calibration_set): |v' - v| / |v| over all of them, and for
    each step when asked for. `pictures` also draws the first prompt without each part and compares the pixels, which
    costs a picture each. The weights are afterwards bit for bit as before, also when it is stopped.
    Raises InvalidInputError (no prompt), UserError (weights that a memory profile keeps in another form or place),
    NonFiniteError, Cancelled.
    """
    width, height = size or default_size(pipeline)
    batch = calibration_set(pipeline, prompts, seeds, steps, size=(width, height), guidance=guidance, progress=progress)
    transformer = pipeline.transformer
    ablation = Ablation(transformer, batch)
    knocks = _knocks(pipeline, parts)

    def picture() -> NDArray[np.uint8]:
        drawn = calibration_set(pipeline, prompts[:1], seeds[:1], steps, size=(width, height), guidance=guidance)
        pixels: NDArray[np.uint8] = decoded(pipeline, drawn.noise_BCHW[:1] + drawn.target_BCHW[:1])
        return pixels

    whole = picture() if pictures else None
    cells = []
    for number, knock in enumerate(knocks):
        progress(number, len(knocks), "note.mapping")
        moved_B = ablation.moved_per_state(knocked(transformer, [knock]))
        if not bool(torch.isfinite(moved_B).all()):
            raise NonFiniteError("calibration_not_finite", value=str(knock))
        psnr_db = None
        if whole is not None:
            with knocked(transformer, [knock]):
                psnr_db = distance(whole, picture()).psnr_db
        cells.append(
            Cell(
                knock=knock,
                change=_ratio(moved_B, ablation.power_B),
                by_step=_by_step(moved_B, ablation.power_B, batch.step_B) if by_timestep else (),
                psnr_db=psnr_db,
            )
        )
    progress(len(knocks), len(knocks), "note.mapping")
    return SensitivityMap(
        prompts=tuple(prompts), seeds=tuple(seeds), width=width, height=height,
        times=tuple(batch.time_B[:steps].tolist()), cells=tuple(cells),
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
    """|v' - v| / |v| from mean squares."""
    return float((moved_B.sum() / power_B.sum().clamp_min(LEAST)).sqrt())


def _by_step(moved_B: torch.Tensor, power_B: torch.Tensor, step_B: torch.Tensor) -> tuple[float, ...]:
    steps = sorted(set(step_B.tolist()))
    return tuple(_ratio(moved_B[step_B == step], power_B[step_B == step]) for step in steps)


@torch.no_grad()  # type: ignore[untyped-decorator]
def decoded(pipeline: ZImagePipeline, latents_1CHW: torch.Tensor) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) of finished latents."""
    vae = pipeline.vae
    latents = latents_1CHW.to(vae.device, vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
    image = vae.decode(latents, return_dict=False)[0]
    picture_HWC: NDArray[np.float32] = pipeline.image_processor.postprocess(image, output_type="np")[0]
    pixels: NDArray[np.uint8] = (picture_HWC * 255).round().astype(np.uint8)
    return pixels
