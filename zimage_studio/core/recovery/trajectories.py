"""The way of a picture through the sampler: for samples while training, and as the teacher's lesson.

The points of the teacher's own trajectories, and its velocities there, are all that distillation needs of it: they
are written to disk once, and the teacher leaves memory before training begins.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift, get_default_z_image_sigmas
from torch import Tensor

Predict = Callable[[Tensor, Tensor, list[Tensor]], Tensor]


@dataclass(frozen=True, slots=True)
class Point:
    """One step of B pictures: where they are, and the velocity with and (where there is guidance) without words."""

    sigma: float
    latents_BCHW: Tensor
    velocity_BCHW: Tensor
    wordless_BCHW: Tensor | None


@dataclass(frozen=True, slots=True)
class Sampler:
    """How the model draws: its scheduler's config, number of steps, guidance, and how many tokens a picture has."""

    scheduler: Mapping[str, Any]
    steps: int
    guidance: float
    tokens: int

    def sigmas(self) -> list[float]:
        """From 1 down to 0, steps + 1 of them, as diffusers' pipeline sets them."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(self.scheduler))
        scales = (
            scheduler.config[key] for key in ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        )
        scheduler.set_timesteps(sigmas=get_default_z_image_sigmas(self.steps), mu=calculate_shift(self.tokens, *scales))
        found: list[float] = scheduler.sigmas.tolist()
        return found


@torch.no_grad()  # type: ignore[untyped-decorator]
def follow(
    predict: Predict, sampler: Sampler, noise_BCHW: Tensor, captions: list[Tensor], wordless: Tensor
) -> Iterator[Point]:
    """Each step of the sampler, then the finished latents (sigma 0, zero velocity)."""
    latents, sigmas = noise_BCHW, sampler.sigmas()
    for now, after in itertools.pairwise(sigmas):
        level = torch.full((len(latents),), now)
        velocity = predict(latents, level, captions)
        latents = latents.to(velocity.device)
        empty = predict(latents, level, [wordless] * len(latents)) if sampler.guidance > 0 else None
        yield Point(now, latents, velocity, empty)
        guided = velocity if empty is None else velocity + sampler.guidance * (velocity - empty)
        latents = latents - (after - now) * guided
    yield Point(0.0, latents, torch.zeros_like(latents), None)
