"""Measured ablation: switch something off and see how far the velocity moves, over all calibration states."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor

from zimage_studio.core.pruning.activations import listen, unit_strengths
from zimage_studio.core.pruning.calibration import Batch, Predictor
from zimage_studio.core.pruning.knockout import knocked, zeroed
from zimage_studio.core.pruning.scores import Numbers, Place
from zimage_studio.records.plan import STACKS, Kind
from zimage_studio.records.progress import Progress, silent
from zimage_studio.records.sensitivity import Knock

UNIT_GROUPS = 16
STATES_AT_ONCE = 16


class Ablation:
    """How far the velocity of one model moves, against what it is now."""

    def __init__(self, transformer: ZImageTransformer2DModel, batch: Batch) -> None:
        self._predict = Predictor(transformer)
        self._parts = list(batch.parts(STATES_AT_ONCE))
        self._whole = [self._velocity(part) for part in self._parts]
        self.power_B = torch.cat([whole.square().flatten(1).mean(1) for whole in self._whole]).double()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _velocity(self, part: Batch) -> Tensor:
        return self._predict(part.latents_BCHW, part.time_B, part.captions).cpu()

    def moved_per_state(self, off: AbstractContextManager[None]) -> Tensor:
        """Mean squared change of the velocity of each state while `off` lasts, float64."""
        with off:
            pairs = [(self._velocity(part), whole) for part, whole in zip(self._parts, self._whole, strict=True)]
        return torch.cat([(now - whole).square().flatten(1).mean(1) for now, whole in pairs]).double()

    def moved(self, off: AbstractContextManager[None]) -> float:
        """Mean squared change over mean square, over all states."""
        return float(self.moved_per_state(off).mean() / self.power_B.mean())


Measured = tuple[dict[Place, Numbers], dict[Place, Numbers], dict[Place, float]]
Measurement = Callable[[], None]


def ablations(
    transformer: ZImageTransformer2DModel, batch: Batch, kinds: Sequence[Kind], progress: Progress
) -> Measured:
    """Scores of units, heads and blocks, of the kinds asked for.

    Heads and blocks are switched off one by one. Feed-forward units in 16 groups a block, formed in the order of how
    strongly they speak, so that like stands with like; each group's measured change is shared among its units by the
    squares of their strengths.
    """
    ablation = Ablation(transformer, batch)
    strengths, _ = unit_strengths(transformer, listen(transformer, batch, silent)) if "ffn" in kinds else ({}, {})
    ffn: dict[Place, Numbers] = {}
    heads: dict[Place, Numbers] = {}
    blocks: dict[Place, float] = {}
    places = [(stack, index) for stack in STACKS for index in range(len(getattr(transformer, stack)))]
    for number, (stack, index) in enumerate(places):
        progress(number, len(places), "note.scoring")
        block, place = getattr(transformer, stack)[index], (stack, index)
        if "ffn" in kinds:
            ffn[place] = _units(ablation, block.feed_forward.w2, strengths[place], progress, (number, len(places)))
        if "heads" in kinds:
            knocks = [Knock(stack, index, "head", head) for head in range(block.attention.heads)]
            heads[place] = np.array([ablation.moved(knocked(transformer, [knock])) for knock in knocks])
        if "depth" in kinds:
            blocks[place] = ablation.moved(knocked(transformer, [Knock(stack, index)]))
    return ffn, heads, blocks


def _units(
    ablation: Ablation, w2: torch.nn.Linear, strengths: Numbers, progress: Progress, at: tuple[int, int]
) -> Numbers:
    scores = np.zeros(len(strengths))
    groups = np.array_split(np.argsort(strengths, kind="stable"), min(UNIT_GROUPS, len(strengths)))
    for number, members in enumerate(groups):
        progress(at[0] + number / len(groups), at[1], "note.scoring")
        moved = ablation.moved(zeroed(w2.weight, torch.from_numpy(members).to(w2.weight.device)))
        powers = strengths[members] ** 2
        shares = powers / powers.sum() if powers.sum() > 0 else np.full(len(members), 1 / len(members))
        scores[members] = moved * shares
    return scores
