"""How far to cut: until the parameters, the bytes or the FLOPs are what was asked for. No torch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from zimage_studio.core.pruning.mapping import parameters
from zimage_studio.core.pruning.ranking import PARTS, Place, Step, cuttable
from zimage_studio.core.pruning.shape import flops, tensor_shapes
from zimage_studio.errors import InvalidInputError
from zimage_studio.records.compress import PruneRequest
from zimage_studio.records.plan import PrunePlan, TransformerShape

Amount = Callable[[TransformerShape], float]

GB = 10**9
BELOW_ONE = 0.9999
"""The highest ratio that is named as a bound: 1 is refused, also where every block that is not protected may go."""


@dataclass(frozen=True, slots=True)
class Trial:
    """How far to go: so many whole blocks, then so many narrowing steps of those that stay."""

    draft: PrunePlan
    whole: Sequence[int]
    steps: Sequence[Step]

    def steps_without(self, dropped: int) -> list[Step]:
        gone = {("layers", index) for index in self.whole[:dropped]}
        return [step for step in self.steps if step.place not in gone]

    def shape(self, dropped: int, taken: int) -> TransformerShape:
        """The shape then; its blocks keep the numbers that they have in the parent."""
        gone = {("layers", index) for index in self.whole[:dropped]}
        kept: dict[tuple[Place, str], int] = {}
        for step in self.steps_without(dropped)[:taken]:
            kept[(step.place, step.part)] = step.keep
        blocks = [block for block in self.draft.before.blocks if (block.stack, block.index) not in gone]
        return replace(
            self.draft.before,
            blocks=tuple(
                replace(block, **{p: kept.get(((block.stack, block.index), p), getattr(block, p)) for p in PARTS})
                for block in blocks
            ),
        )


def amount_of(draft: PrunePlan, request: PruneRequest) -> Amount:
    """How far a shape goes towards the target; it grows with what is removed. A size counts negative."""
    if request.speedup is not None:
        return lambda shape: draft.flops_before / flops(shape, draft.image_tokens, draft.caption_tokens)
    if request.gigabytes is not None:
        other = draft.bytes_before - draft.transformer_bytes_before
        return lambda shape: -(other + _bytes(draft, shape)) / GB
    base = _touchable(draft.before, request)
    return lambda shape: (draft.transformer_parameters_before - parameters(tensor_shapes(shape))) / base


def _bytes(draft: PrunePlan, shape: TransformerShape) -> int:
    sizes = tensor_shapes(shape).items()
    return sum(math.prod(size) * draft.item_bytes_of.get(name, draft.item_bytes) for name, size in sizes)


def _touchable(shape: TransformerShape, request: PruneRequest) -> int:
    """Parameters of what the chosen kinds may touch: that of which a ratio is a share."""
    if "dim" in request.kinds:
        return parameters(tensor_shapes(shape))
    total = 0
    for block in cuttable(shape, protect_ends=request.protect_ends):
        alone = replace(shape, blocks=(block,))
        if "depth" in request.kinds and block.stack == "layers":
            total += parameters(tensor_shapes(alone)) - parameters(tensor_shapes(replace(shape, blocks=())))
            continue
        total += 3 * shape.dim * block.ffn * ("ffn" in request.kinds)
        total += 4 * shape.dim * block.heads * shape.head_dim * ("heads" in request.kinds)
    return total


def chosen(trial: Trial, request: PruneRequest, amount: Amount) -> tuple[int, int]:
    """How many blocks and steps meet the target: of all pairs that do, the one that cuts every kind as far."""
    target = target_of(request)
    if not trial.steps:
        alone = nearest([amount(trial.shape(dropped, 0)) for dropped in range(len(trial.whole) + 1)], target, request)
        pairs = [] if alone is None else [(0.0, alone, 0)]
    else:
        pairs = [
            (abs(dropped / max(1, len(trial.whole)) - taken / len(trial.steps)), dropped, taken)
            for dropped in range(len(trial.whole) + 1)
            if (taken := _taken(trial, request, amount, dropped)) is not None
        ]
    best = min(pairs, default=(0.0, 0, 0))[1:]
    if best == (0, 0):
        smallest = [(1, 0)] * bool(trial.whole) + [(0, 1)] * bool(trial.steps)
        least = min(amount(trial.shape(*pair)) for pair in smallest)
        raise unreachable(trial.draft, request, least, amount(trial.shape(len(trial.whole), len(trial.steps))))
    return best


def target_of(request: PruneRequest) -> float:
    """The target on the scale of the amount."""
    return -request.gigabytes if request.gigabytes is not None else next(iter(request.target.values()))


def _taken(trial: Trial, request: PruneRequest, amount: Amount, dropped: int) -> int | None:
    """How many steps meet the target beside so many dropped blocks; None when all of them do not."""
    last, target = len(trial.steps_without(dropped)), target_of(request)

    def at(taken: int) -> float:
        return amount(trial.shape(dropped, taken))

    taken = _first(at, last, target)
    if taken > last:
        return None
    before = taken > 0 and request.ratio is not None and target - at(taken - 1) <= at(taken) - target
    return taken - before


def nearest(amounts: Sequence[float], target: float, request: PruneRequest) -> int | None:
    """Which of growing amounts meets the target: a ratio as nearly as it goes, anything else is reached."""
    number = _first(lambda index: amounts[index], len(amounts) - 1, target)
    if number == len(amounts):
        return None
    before = number > 0 and request.ratio is not None and target - amounts[number - 1] <= amounts[number] - target
    return number - before


def _first(at: Callable[[int], float], last: int, target: float) -> int:
    """The first of 0..last where `at` reaches `target`; last + 1 when none does."""
    low, high = 0, last + 1
    while low < high:
        middle = (low + high) // 2
        if at(middle) >= target:
            high = middle
        else:
            low = middle + 1
    return low


def unreachable(draft: PrunePlan, request: PruneRequest, least: float, most: float) -> InvalidInputError:
    """The refusal with bounds that hold when they are typed in."""
    (name, value) = next(iter(request.target.items()))
    low, high = (-most, -least) if name == "gigabytes" else (least, most)
    high = min(high, BELOW_ONE) if name == "ratio" else high
    return InvalidInputError(
        "plan_unreachable", field=name, value=f"{value:g}", model=draft.model,
        low=_inward(low, math.ceil), high=_inward(high, math.floor),
    )  # fmt: skip


def _inward(value: float, rounded: Callable[[float], int], digits: int = 5) -> str:
    """`value` in five digits, rounded up or down."""
    scale = 10.0 ** (digits - 1 - math.floor(math.log10(abs(value)))) if value else 1.0
    return f"{rounded(value * scale) / scale:g}"
