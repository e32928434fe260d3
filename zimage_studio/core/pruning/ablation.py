"""Measured ablation: switch something off and see how far what the model does moves.

Two ways to look. The velocity at given states is cheap and says at which step a part works. But it mistakes detail for
substance: in the embedded model the block whose absence moves the velocity least is one without which no object is
right, while a block that moves it more is not missed. Drawing the picture to its end without the part, so that errors
add up or heal as they will, orders the blocks as a judge of the pictures does. So that is what is scored; the final
latent is also what EcoDiff learns its masks by (arXiv:2412.02852).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor

from zimage_studio.core.pruning.activations import listen, unit_strengths
from zimage_studio.core.pruning.calibration import Batch, Predictor, Ways
from zimage_studio.core.pruning.knockout import knocked, zeroed
from zimage_studio.core.pruning.scores import Numbers, Place
from zimage_studio.records.plan import STACKS, Kind
from zimage_studio.records.progress import Progress, silent
from zimage_studio.records.sensitivity import Knock

UNIT_GROUPS = 16
STATES_AT_ONCE = 16
PICTURES_AT_ONCE = 4


class Shift:
    """How far what the `looks` see, (B, C, H, W) together, moves while something is switched off."""

    def __init__(self, looks: Sequence[Callable[[], Tensor]]) -> None:
        self._looks = looks
        self.whole_BCHW = self._see()
        self.power_B = self.whole_BCHW.square().flatten(1).mean(1).double()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _see(self) -> Tensor:
        return torch.cat([look().cpu() for look in self._looks])

    def without(self, off: AbstractContextManager[None]) -> Tensor:
        """What is seen while `off` lasts, (B, C, H, W)."""
        with off:
            seen: Tensor = self._see()
        return seen

    def moved_each(self, seen_BCHW: Tensor) -> Tensor:
        """Mean squared change of each, float64."""
        return (seen_BCHW - self.whole_BCHW).square().flatten(1).mean(1).double()

    def moved(self, off: AbstractContextManager[None]) -> float:
        """Mean squared change over mean square, over all."""
        return float(self.moved_each(self.without(off)).mean() / self.power_B.mean())


def velocities(transformer: ZImageTransformer2DModel, batch: Batch) -> Shift:
    """What the transformer predicts at the states of `batch`."""
    predict = Predictor(transformer)
    return Shift(
        [partial(predict, part.latents_BCHW, part.time_B, part.captions) for part in batch.parts(STATES_AT_ONCE)]
    )


def pictures(transformer: ZImageTransformer2DModel, ways: Ways, tick: "Tick") -> Shift:
    """The finished latents of pictures that are drawn the whole way; `tick` beats at every step."""
    predict = Predictor(transformer)
    return Shift([partial(_end, predict, part, tick) for part in ways.parts(PICTURES_AT_ONCE)])


def _end(predict: Predictor, ways: Ways, tick: "Tick") -> Tensor:
    latents_BCHW = ways.noise_BCHW
    for point in ways.follow(predict):
        tick()
        latents_BCHW = point.latents_BCHW
    return latents_BCHW


class Tick:
    """Progress that can be repeated where it is: whoever draws shows that it lives, and can be stopped there."""

    def __init__(self, progress: Progress, total: int, note: str) -> None:
        self._progress, self._total, self._note = progress, total, note
        self._done = 0.0

    def __call__(self, done: float | None = None) -> None:
        """Raises Cancelled."""
        self._done = self._done if done is None else done
        self._progress(self._done, self._total, self._note)


Measured = tuple[dict[Place, Numbers], dict[Place, Numbers], dict[Place, float]]
Measurement = Callable[[], None]


def ablations(
    transformer: ZImageTransformer2DModel, batch: Batch, ways: Ways, kinds: Sequence[Kind], progress: Progress
) -> Measured:
    """Scores of units, heads and blocks, of the kinds asked for: how far the pictures of `ways` move.

    Heads and blocks are switched off one by one. Feed-forward units in 16 groups a block, formed in the order of how
    strongly they speak on `batch`, so that like stands with like; each group's measured change is shared among its
    units by the squares of their strengths.
    """
    strengths, _ = unit_strengths(transformer, listen(transformer, batch, silent)) if "ffn" in kinds else ({}, {})
    ffn: dict[Place, Numbers] = {}
    heads: dict[Place, Numbers] = {}
    blocks: dict[Place, float] = {}
    places = [(stack, index) for stack in STACKS for index in range(len(getattr(transformer, stack)))]
    tick = Tick(progress, len(places), "note.scoring")
    shift = pictures(transformer, ways, tick)
    for number, (stack, index) in enumerate(places):
        tick(number)
        block, place = getattr(transformer, stack)[index], (stack, index)
        if "ffn" in kinds:
            ffn[place] = _units(shift, block.feed_forward.w2, strengths[place], tick, number)
        if "heads" in kinds:
            knocks = [Knock(stack, index, "head", head) for head in range(block.attention.heads)]
            heads[place] = np.array([shift.moved(knocked(transformer, [knock])) for knock in knocks])
        if "depth" in kinds:
            blocks[place] = shift.moved(knocked(transformer, [Knock(stack, index)]))
    return ffn, heads, blocks


def _units(shift: Shift, w2: torch.nn.Linear, strengths: Numbers, tick: Tick, at: int) -> Numbers:
    scores = np.zeros(len(strengths))
    groups = np.array_split(np.argsort(strengths, kind="stable"), min(UNIT_GROUPS, len(strengths)))
    for number, members in enumerate(groups):
        tick(at + number / len(groups))
        moved = shift.moved(zeroed(w2.weight, torch.from_numpy(members).to(w2.weight.device)))
        powers = strengths[members] ** 2
        shares = powers / powers.sum() if powers.sum() > 0 else np.full(len(members), 1 / len(members))
        scores[members] = moved * shares
    return scores
