"""The numbers of docs/fp16.md, measured on the embedded model."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import ZImagePipeline

from benchmarks.overflow import PROMPT, clamped, error, forward_on, make_overflow
from zimage_studio.core.precision.ladder import LADDER, RUNGS, Ladder, engage
from zimage_studio.core.preview import LatentToRgb
from zimage_studio.core.sampling import sample
from zimage_studio.errors import NonFiniteError
from zimage_studio.records.progress import silent
from zimage_studio.records.request import GenerationRequest

STRENGTHS = (0.25, 1, 2, 4, 14, 200)
PICTURES = (1, 4, 14, 200)


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors of the velocity at one strength; `peak` is over the limit, `share` the part that was clamped."""

    peak: float
    plain: float
    clamped: float
    share: float
    scaled: float
    float32_blocks: float
    bfloat16: float


def velocity_errors(folder: Path, strength: float, *, only_largest: bool = False) -> Errors:
    """Every way of computing, on the model in `folder` grown to `strength`."""
    pipeline = ZImagePipeline.from_pretrained(folder, local_files_only=True)
    forward = forward_on(pipeline)
    exact = forward(pipeline.transformer)
    peak = make_overflow(pipeline.transformer, strength, forward, only_largest=only_largest)
    if not torch.equal(forward(pipeline.transformer), exact):
        raise AssertionError("the grown model computes another function")
    measured = {}
    for name in ("float16_scaled", "float16_float32_blocks", "bfloat16"):
        engaged = engage(pipeline, RUNGS[name])
        measured[name] = error(forward(pipeline.transformer), exact)
        engaged.remove()
    half = pipeline.transformer.half()
    plain = error(forward(half), exact)
    with clamped(half) as clamp:
        cut = error(forward(half), exact)
    return Errors(peak, plain, cut, clamp.share, *measured.values())


@dataclass(slots=True)
class Picture:
    """PSNR in dB against the float32 picture (peak 255; None: not finite), and the rung the ladder ended on."""

    plain: float | None = None
    clamped: float | None = None
    ladder: float | None = None
    rung: str = field(default="")


def picture(folder: Path, strength: float, *, side: int = 128, steps: int = 8) -> Picture:
    """One picture; the usual size and steps of the embedded model unless said otherwise."""
    pipeline = ZImagePipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    make_overflow(pipeline.transformer, strength, forward_on(pipeline))
    config, to_rgb = dict(pipeline.scheduler.config), LatentToRgb.fit(pipeline.vae)
    request = GenerationRequest(prompt=PROMPT, seed=1, width=side, height=side, steps=steps, guidance=2.0)

    def draw() -> np.ndarray:
        return sample(pipeline, request, scheduler_config=config, to_rgb=to_rgb, progress=silent).pixels_HWC

    exact = draw()
    ladder = Ladder(pipeline, LADDER)
    made = Picture(ladder=psnr(ladder.draw(draw), exact), rung=ladder.rung.name)
    ladder.remove()
    pipeline.transformer.half()
    made.plain = _psnr_or_none(draw, exact)
    with clamped(pipeline.transformer):
        made.clamped = _psnr_or_none(draw, exact)
    return made


def _psnr_or_none(draw: Callable[[], np.ndarray], exact: np.ndarray) -> float | None:
    try:
        return psnr(draw(), exact)
    except NonFiniteError:
        return None


def psnr(found: np.ndarray, exact: np.ndarray) -> float:
    """In dB, peak 255; infinite when equal."""
    squared = float(np.mean((found.astype(np.float64) - exact) ** 2))
    return math.inf if squared == 0 else 10 * math.log10(255**2 / squared)


def table(folder: Path) -> str:
    """Markdown: velocities, then pictures."""
    lines = [
        "| products reach (× 65504) | in | plain float16 | clamped (share of values) | **scaled** | + float32 blocks "
        "| bfloat16 | clamped ÷ scaled |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for only, where in ((False, "every block"), (True, "one block")):
        for strength in STRENGTHS:
            lines.append(_velocity_line(velocity_errors(folder, strength, only_largest=only), where))
    lines += [
        "",
        "| grown to (× 65504) | plain float16 | clamped | the ladder | ended on |",
        "|---|---|---|---|---|",
    ]
    lines += [_picture_line(strength, picture(folder, strength)) for strength in PICTURES]
    return "\n".join(lines)


def _velocity_line(errors: Errors, where: str) -> str:
    gain = errors.clamped / errors.scaled
    cells = [
        f"{errors.peak:.3g}",
        where,
        _error(errors.plain),
        f"{_error(errors.clamped)} ({errors.share:.1%})",
        f"**{_error(errors.scaled)}**",
        _error(errors.float32_blocks),
        _error(errors.bfloat16),
        f"{gain:.0f}" if math.isfinite(gain) and gain > 0 else "–",
    ]
    return f"| {' | '.join(cells)} |"


def _picture_line(strength: float, made: Picture) -> str:
    values = (f"{strength:g}", _decibel(made.plain), _decibel(made.clamped), _decibel(made.ladder), f"`{made.rung}`")
    return f"| {' | '.join(values)} |"


def _error(value: float) -> str:
    return f"{value:.1e}" if math.isfinite(value) else "not finite"


def _decibel(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1f} dB"
