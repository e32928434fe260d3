"""In which order blocks, units and heads go: the least missed first, like compared with like. No torch.

Scores are compared within like groups only: the units of one block with each other, blocks of one stack with each
other. The sandwich norms make the size of a branch's weights meaningless across blocks, so magnitudes cut all blocks
evenly; scores that measure what the loss or the picture feels are ranked across the blocks of a stack (Isomorphic
Pruning, arXiv:2407.04616; ours ranks steps of equal width, not single units: widths stay ones that runtimes like).
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zimage_studio.errors import InvalidInputError
from zimage_studio.records.compress import PruneRequest
from zimage_studio.records.plan import BlockShape, Calibration, Criterion, PrunePlan, TransformerShape
from zimage_studio.records.ranges import ranges

Place = tuple[str, int]
Numbers = NDArray[np.float64]
Part = Literal["ffn", "heads"]

PARTS: tuple[Part, ...] = ("ffn", "heads")
WIDTH_STEPS = (256, 128, 64, 32, 16, 8, 4, 2, 1)
LEAST_STEPS = 16
"""A feed-forward is cut in steps of 256, as quantised formats want them, or the widest that divides it this often."""
COMPARABLE: frozenset[Criterion] = frozenset({"taylor", "fisher", "ablation"})
"""Criteria whose scores mean the same in every block."""


class Ranking(Protocol):
    """Scores as core.pruning.scores.Scores holds them; the higher, the more it is missed."""

    @property
    def criterion(self) -> str: ...
    @property
    def ffn(self) -> Mapping[Place, ArrayLike]: ...
    @property
    def heads(self) -> Mapping[Place, ArrayLike]: ...
    @property
    def blocks(self) -> Mapping[Place, float]: ...
    @property
    def dim(self) -> ArrayLike | None: ...
    @property
    def calibration(self) -> Calibration | None: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One step narrower: `keep` units of a block's feed-forward or heads stay."""

    part: Part
    place: Place
    keep: int


def width_step(width: int) -> int:
    """The step in which a feed-forward of this width is cut."""
    return next(step for step in WIDTH_STEPS if width // step >= LEAST_STEPS or step == 1)


def cuttable(shape: TransformerShape, *, protect_ends: bool) -> list[BlockShape]:
    """The blocks that may be cut: all, or the main ones but the first and the last."""
    if not protect_ends:
        return list(shape.blocks)
    return list(shape.stack("layers")[1:-1])


def removal_order(draft: PrunePlan, request: PruneRequest, scores: Ranking) -> tuple[list[int], list[Step]]:
    """Main blocks in the order in which they would go, and the steps of all others, each kind as far as the others."""
    blocks = cuttable(draft.before, protect_ends=request.protect_ends)
    ranked = request.allocation == "ranked" or (request.allocation == "auto" and request.criterion in COMPARABLE)
    groups: list[list[Step]] = []
    for part in PARTS:
        if part in request.kinds:
            for _, members in itertools.groupby(blocks, key=lambda block: block.stack):
                groups.append(_narrowing(part, list(members), scores, ranked=ranked, criterion=request.criterion))
    shares = [
        ((number + 1) / len(group), turn, number, step)
        for turn, group in enumerate(groups)
        for number, step in enumerate(group)
    ]
    layers = _block_order(blocks, scores, len(draft.before.stack("layers"))) if "depth" in request.kinds else []
    if not layers and not shares:
        raise InvalidInputError("plan_nothing_to_cut", field="kinds", model=draft.model, kinds=", ".join(request.kinds))
    return layers, [step for *_, step in sorted(shares, key=lambda entry: entry[:3])]


def _block_order(blocks: Sequence[BlockShape], scores: Ranking, count: int) -> list[int]:
    """Main blocks by number, the least missed first; one at least stays."""
    layers = [block for block in blocks if block.stack == "layers"]
    values = {block.index: scores.blocks.get(("layers", block.index), math.nan) for block in layers}
    if any(not math.isfinite(value) for value in values.values()):
        raise InvalidInputError("plan_needs_scores", field="criterion", criterion=scores.criterion, what="depth")
    return sorted(values, key=lambda index: (values[index], index))[: count - 1]


def _narrowing(
    part: Part, blocks: Sequence[BlockShape], scores: Ranking, *, ranked: bool, criterion: Criterion
) -> list[Step]:
    """The steps that narrow these blocks of one stack down to the least, in the order in which they are taken."""
    entries: list[tuple[float, float, int, Step]] = []
    for block in blocks:
        values = np.sort(values_of(scores, part, block))
        if criterion not in COMPARABLE:
            values = values / (np.abs(values).mean() or 1.0)
        keeps = _keeps(part, getattr(block, part))
        bounds = [0, *(len(values) - keep for keep in keeps)]
        means = [float(values[start:stop].mean()) for start, stop in itertools.pairwise(bounds)]
        for number, (keep, cost) in enumerate(zip(keeps, itertools.accumulate(means, max), strict=True)):
            turn = 0.0 if ranked else (number + 1) / len(keeps)
            entries.append((turn, cost, number, Step(part, (block.stack, block.index), keep)))
    return [step for *_, step in sorted(entries, key=lambda entry: (*entry[:3], entry[3].place))]


def _keeps(part: Part, count: int) -> list[int]:
    """The widths below `count` that may be kept, the widest first."""
    step = width_step(count) if part == "ffn" else 1
    return list(range((count - 1) // step * step, 0, -step))


def values_of(scores: Ranking, part: Part, block: BlockShape) -> Numbers:
    """The scores of a block's units. Raises InvalidInputError when they are missing or cannot rank."""
    what = f"{part} {block.stack}.{block.index}"
    found = (scores.ffn if part == "ffn" else scores.heads).get((block.stack, block.index))
    if found is None:
        raise InvalidInputError("plan_needs_scores", field="criterion", criterion=scores.criterion, what=what)
    return checked(found, getattr(block, part), what)


def checked(found: ArrayLike, count: int, what: str) -> Numbers:
    """Scores as float64. Raises InvalidInputError (plan_scores_odd) unless they are `count` finite numbers."""
    values = np.asarray(found, dtype=np.float64).reshape(-1)
    finite = int(np.isfinite(values).sum())
    if finite != count or len(values) != count:
        raise InvalidInputError("plan_scores_odd", field="criterion", what=what, found=finite, expected=count)
    return values


def best(values: Numbers, keep: int) -> str:
    """The `keep` units with the highest scores, as text; of equals the first."""
    return ranges(np.sort(np.argsort(-values, kind="stable")[:keep]).tolist(), len(values))
