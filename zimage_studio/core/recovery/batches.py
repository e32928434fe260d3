"""What each step is given: a function of the seed and the step's number, whatever ran before."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zimage_studio.core.recovery.losses import even_levels, noise_levels
from zimage_studio.core.recovery.preparation import WORDLESS, Prepared, generator_from
from zimage_studio.records.recover import RecoveryConfig

HELD_OUT_ONE_IN = 8
"""One of this many trajectories of the teacher is for validation."""


@dataclass(frozen=True, slots=True)
class FlowBatch:
    """Pictures, noise (B, C, h, w), noise levels (B) and captions."""

    clean_BCHW: Tensor
    noise_BCHW: Tensor
    sigma_B: Tensor
    captions: list[Tensor]


@dataclass(frozen=True, slots=True)
class DistilBatch:
    """Points of the teacher's trajectories and its velocities there."""

    latents_BCHW: Tensor
    teacher_BCHW: Tensor
    sigma_B: Tensor
    captions: list[Tensor]


class Batches:
    """Batches by number. Each pass through the data is a shuffle of its own."""

    def __init__(self, prepared: Prepared, config: RecoveryConfig, purpose: str) -> None:
        self._prepared, self._config, self._purpose = prepared, config, purpose
        self._shift = float(prepared.sampler.scheduler.get("shift", 1.0))
        count = len(prepared.index.trajectories)
        self._lessons = range(max(1, count // HELD_OUT_ONE_IN), count) if count > 1 else range(count)
        self._orders: dict[tuple[str, int], list[int]] = {}

    def flow(self, number: int) -> FlowBatch:
        """Batch `number` of pictures. A share of the captions is left out."""
        chance = self._generator("flow", number)
        chosen = self._chosen("flow", self._prepared.index.trained, number)
        captions = [self._caption(self._prepared.index.pictures[picture], chance) for picture in chosen]
        clean = torch.stack([self._prepared.latents(picture) for picture in chosen])
        sigma = noise_levels(len(chosen), self._shift, chance)
        return FlowBatch(clean, torch.randn(clean.shape, generator=chance), sigma, captions)

    def distil(self, number: int) -> DistilBatch:
        """Batch `number` of points of trajectories, any step; a share without words where it drew so."""
        chance = self._generator("distil", number)
        chosen = self._chosen("distil", self._lessons, number)
        steps = torch.randint(self._prepared.sampler.steps, (len(chosen),), generator=chance).tolist()
        share = self._config.caption_dropout if self._prepared.sampler.guidance > 0 else 0.0
        worded = (torch.rand(len(chosen), generator=chance) >= share).tolist()
        return self._points(list(zip(chosen, steps, worded, strict=True)))

    def held_out_flow(self) -> list[FlowBatch]:
        """The held-out pictures, each with its first caption, noise of its own and evenly spread noise levels."""
        held = self._prepared.index.held_out
        order = torch.randperm(len(held), generator=generator_from(self._config.seed, "validation")).tolist()
        levels = even_levels(len(held), self._shift)[order] if held else torch.empty(0)
        batches = []
        for start in range(0, len(held), self._config.batch):
            part = held[start : start + self._config.batch]
            clean = torch.stack([self._prepared.latents(picture) for picture in part])
            noise = torch.randn(clean.shape, generator=generator_from(self._config.seed, "validation", start))
            captions = [self._prepared.caption(self._prepared.index.pictures[picture][0]) for picture in part]
            batches.append(FlowBatch(clean, noise, levels[start : start + self._config.batch], captions))
        return batches

    def held_out_distil(self) -> list[DistilBatch]:
        """Every step of the held-out trajectories (at most eight of them)."""
        held = range(self._lessons.start) or self._lessons
        steps = self._prepared.sampler.steps
        points = [(trajectory, step, True) for trajectory in list(held)[:HELD_OUT_ONE_IN] for step in range(steps)]
        size = self._config.batch
        return [self._points(points[start : start + size]) for start in range(0, len(points), size)]

    def _points(self, places: Sequence[tuple[int, int, bool]]) -> DistilBatch:
        found = [self._prepared.point(trajectory, step, worded=worded) for trajectory, step, worded in places]
        numbers = [
            self._prepared.index.trajectories[trajectory] if worded else WORDLESS for trajectory, _, worded in places
        ]
        return DistilBatch(
            torch.stack([latents for _, latents, _ in found]),
            torch.stack([velocity for _, _, velocity in found]),
            torch.tensor([sigma for sigma, _, _ in found]),
            [self._prepared.caption(number) for number in numbers],
        )

    def _caption(self, numbers: Sequence[int], chance: torch.Generator) -> Tensor:
        dropped = float(torch.rand((), generator=chance)) < self._config.caption_dropout
        which = int(torch.randint(len(numbers), (), generator=chance))
        return self._prepared.caption(WORDLESS if dropped else numbers[which])

    def _generator(self, kind: str, number: int) -> torch.Generator:
        return generator_from(self._config.seed, self._purpose, kind, number)

    def _chosen(self, kind: str, items: Sequence[int], number: int) -> list[int]:
        """Items `number * batch` and following of an endless row of shuffles."""
        first = number * self._config.batch
        return [items[self._order(kind, place // len(items), len(items))[place % len(items)]]
                for place in range(first, first + self._config.batch)]  # fmt: skip

    def _order(self, kind: str, turn: int, count: int) -> list[int]:
        if (kind, turn) not in self._orders:
            for old in [key for key in self._orders if key[0] == kind and key[1] < turn - 1]:
                del self._orders[old]
            chance = generator_from(self._config.seed, self._purpose, kind, "order", turn)
            self._orders[kind, turn] = torch.randperm(count, generator=chance).tolist()
        return self._orders[kind, turn]
