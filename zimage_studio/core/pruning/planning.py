"""From a wish and scores to a plan: which units of which block go, until the target is met. Headers only, no torch.

Scores are compared within like groups only: the units of one block with each other, blocks of one stack with each
other. The sandwich norms make the size of a branch's weights meaningless across blocks, so magnitudes cut all blocks
evenly; scores that measure what the loss or the picture feels are ranked across the blocks of a stack (Isomorphic
Pruning, arXiv:2407.04616; ours ranks steps of equal width, not single units: widths stay ones that runtimes like).
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zimage_studio.core.model_files import Facts, inspect_folder
from zimage_studio.core.pruning.loads import loads
from zimage_studio.core.pruning.mapping import forecast, parameters
from zimage_studio.core.pruning.probe import float16_probe
from zimage_studio.core.pruning.shape import (
    CAPTION_TOKENS,
    ITEM_BYTES,
    flops,
    image_tokens,
    tensor_shapes,
    transformer_shape,
)
from zimage_studio.core.weight_headers import component_header
from zimage_studio.errors import InvalidInputError, ModelError
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.checks import whole
from zimage_studio.records.compress import PruneRequest
from zimage_studio.records.plan import BlockCut, BlockEdit, BlockShape, Criterion, PrunePlan, TransformerShape
from zimage_studio.records.progress import Progress
from zimage_studio.records.ranges import ranges, units

Place = tuple[str, int]
Numbers = NDArray[np.float64]
Part = Literal["ffn", "heads"]
Amount = Callable[[TransformerShape], float]

PARTS: tuple[Part, ...] = ("ffn", "heads")

WIDTH_STEPS = (256, 128, 64, 32, 16, 8, 4, 2, 1)
LEAST_STEPS = 16
"""A feed-forward is cut in steps of 256, as quantised formats want them, or the widest that divides it this often."""
COMPARABLE: frozenset[Criterion] = frozenset({"taylor", "fisher", "ablation"})
"""Criteria whose scores mean the same in every block."""
GB = 10**9
BELOW_ONE = 0.9999
"""The highest ratio that is named as a bound: 1 is refused, also where every block that is not protected may go."""


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
    def calibration(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One step narrower: `keep` units of a block's feed-forward or heads stay."""

    part: Part
    place: Place
    keep: int


def width_step(width: int) -> int:
    """The step in which a feed-forward of this width is cut."""
    return next(step for step in WIDTH_STEPS if width // step >= LEAST_STEPS or step == 1)


def make_plan(
    request: PruneRequest, artifact: ModelArtifact, folder: Path, scores: Ranking, progress: Progress
) -> PrunePlan:
    """The plan that comes nearest to the request's target.

    `artifact` is the model of `folder` with its hash. A ratio is met as nearly as the steps allow, a size or a speed-up
    is reached. Raises InvalidInputError (plan_unreachable) with the bounds, ModelError for a model that cannot be cut.
    """
    progress(0, 1, "note.planning")
    if artifact.sha256 is None or not folder.is_dir():
        raise ModelError("plan_needs_folder", value=artifact.name)
    facts = inspect_folder(folder)
    draft = _draft(request, artifact, facts, folder)
    draft = replace(draft, calibration=scores.calibration)
    plan = (_narrowed if request.kinds == ("dim",) else _cut)(draft, request, scores)
    progress(1, 1, "note.planning")
    return plan


def _draft(request: PruneRequest, artifact: ModelArtifact, facts: Facts, folder: Path) -> PrunePlan:
    """A plan that removes nothing, with all that is known of the parent."""
    shape = transformer_shape(folder)
    sizes = {name: ITEM_BYTES[info.dtype] for name, info in component_header(folder, "transformer").items()}
    usual = max(set(sizes.values()), key=list(sizes.values()).count)
    size = facts.components["transformer"]
    defaults = artifact.defaults
    draft = PrunePlan(
        model=artifact.name, model_sha256=str(artifact.sha256), created=datetime.now(UTC).isoformat(timespec="seconds"),
        kinds=request.kinds, criterion=request.criterion, target=request.target, before=shape,
        cuts=tuple(BlockCut(block.stack, block.index) for block in shape.blocks),
        parameters_before=facts.parameters, parameters_after=facts.parameters,
        bytes_before=facts.bytes, bytes_after=facts.bytes,
        transformer_parameters_before=size.parameters, transformer_parameters_after=size.parameters,
        transformer_bytes_before=size.bytes, transformer_bytes_after=size.bytes, flops_before=0, flops_after=0,
        width=defaults.width, height=defaults.height, caption_tokens=CAPTION_TOKENS,
        image_tokens=image_tokens(folder, defaults.width, defaults.height), item_bytes=usual,
        item_bytes_of={name: n for name, n in sorted(sizes.items()) if n != usual},
        float16_probe=float16_probe(folder, len(shape.stack("layers"))), predicted_speedup=1.0,
        loads_in={}, loads_why={}, seed=request.seed, note=request.note, protect_ends=request.protect_ends,
    )  # fmt: skip
    return foretold(draft)


def foretold(plan: PrunePlan) -> PrunePlan:
    """The plan with all its numbers and verdicts computed anew from what it cuts."""
    count, size = forecast(plan)
    after = plan.after
    kept = [cut.index for cut in plan.cuts if cut.stack == "layers" and cut.kept]
    answers = loads(plan.before, after, kept, plan.float16_probe)
    before_flops = flops(plan.before, plan.image_tokens, plan.caption_tokens)
    after_flops = flops(after, plan.image_tokens, plan.caption_tokens)
    return replace(
        plan,
        parameters_after=plan.parameters_before - plan.transformer_parameters_before + count,
        bytes_after=plan.bytes_before - plan.transformer_bytes_before + size,
        transformer_parameters_after=count,
        transformer_bytes_after=size,
        flops_before=before_flops,
        flops_after=after_flops,
        predicted_speedup=round(before_flops / after_flops, 4),
        loads_in={runtime: verdict for runtime, (verdict, _) in answers.items()},
        loads_why={runtime: why for runtime, (_, why) in answers.items()},
    )


# --- the order of removal -------------------------------------------------------------------------------------------


def _cuttable(shape: TransformerShape, *, protect_ends: bool) -> list[BlockShape]:
    if not protect_ends:
        return list(shape.blocks)
    return list(shape.stack("layers")[1:-1])


def _order(draft: PrunePlan, request: PruneRequest, scores: Ranking) -> tuple[list[int], list[Step]]:
    """Main blocks in the order in which they would go, and the steps of all others, each kind as far as the others."""
    blocks = _cuttable(draft.before, protect_ends=request.protect_ends)
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
        values = np.sort(_values(scores, part, block))
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


def _values(scores: Ranking, part: Part, block: BlockShape) -> Numbers:
    """The scores of a block's units. Raises InvalidInputError when they are missing or cannot rank."""
    what = f"{part} {block.stack}.{block.index}"
    found = (scores.ffn if part == "ffn" else scores.heads).get((block.stack, block.index))
    if found is None:
        raise InvalidInputError("plan_needs_scores", field="criterion", criterion=scores.criterion, what=what)
    return _checked(found, getattr(block, part), what)


def _checked(found: ArrayLike, count: int, what: str) -> Numbers:
    values = np.asarray(found, dtype=np.float64).reshape(-1)
    finite = int(np.isfinite(values).sum())
    if finite != count or len(values) != count:
        raise InvalidInputError("plan_scores_odd", field="criterion", what=what, found=finite, expected=count)
    return values


def _best(values: Numbers, keep: int) -> str:
    """The `keep` units with the highest scores, as text; of equals the first."""
    return ranges(np.sort(np.argsort(-values, kind="stable")[:keep]).tolist(), len(values))


# --- until the target is met ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Trial:
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


def _cut(draft: PrunePlan, request: PruneRequest, scores: Ranking) -> PrunePlan:
    trial = _Trial(draft, *_order(draft, request, scores))
    dropped, taken = _chosen(trial, request, _amount(draft, request))
    after = {(block.stack, block.index): block for block in trial.shape(dropped, taken).blocks}
    cuts = tuple(_block_cut(block, after.get((block.stack, block.index)), scores) for block in draft.before.blocks)
    return foretold(replace(draft, cuts=cuts))


def _block_cut(before: BlockShape, after: BlockShape | None, scores: Ranking) -> BlockCut:
    if after is None:
        return BlockCut(before.stack, before.index, kept=False)
    texts = [
        "" if getattr(before, part) == getattr(after, part)
        else _best(_values(scores, part, before), getattr(after, part))
        for part in PARTS
    ]  # fmt: skip
    return BlockCut(before.stack, before.index, True, *texts)


def _amount(draft: PrunePlan, request: PruneRequest) -> Amount:
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
    for block in _cuttable(shape, protect_ends=request.protect_ends):
        alone = replace(shape, blocks=(block,))
        if "depth" in request.kinds and block.stack == "layers":
            total += parameters(tensor_shapes(alone)) - parameters(tensor_shapes(replace(shape, blocks=())))
            continue
        total += 3 * shape.dim * block.ffn * ("ffn" in request.kinds)
        total += 4 * shape.dim * block.heads * shape.head_dim * ("heads" in request.kinds)
    return total


def _chosen(trial: _Trial, request: PruneRequest, amount: Amount) -> tuple[int, int]:
    """How many blocks and steps meet the target: of all pairs that do, the one that cuts every kind as far."""
    target = _target(request)
    if not trial.steps:
        alone = _nearest([amount(trial.shape(dropped, 0)) for dropped in range(len(trial.whole) + 1)], target, request)
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
        raise _unreachable(trial.draft, request, least, amount(trial.shape(len(trial.whole), len(trial.steps))))
    return best


def _target(request: PruneRequest) -> float:
    """The target on the scale of the amount."""
    return -request.gigabytes if request.gigabytes is not None else next(iter(request.target.values()))


def _taken(trial: _Trial, request: PruneRequest, amount: Amount, dropped: int) -> int | None:
    """How many steps meet the target beside so many dropped blocks; None when all of them do not."""
    last, target = len(trial.steps_without(dropped)), _target(request)

    def at(taken: int) -> float:
        return amount(trial.shape(dropped, taken))

    taken = _first(at, last, target)
    if taken > last:
        return None
    before = taken > 0 and request.ratio is not None and target - at(taken - 1) <= at(taken) - target
    return taken - before


def _nearest(amounts: Sequence[float], target: float, request: PruneRequest) -> int | None:
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


def _unreachable(draft: PrunePlan, request: PruneRequest, least: float, most: float) -> InvalidInputError:
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


# --- embedding dim --------------------------------------------------------------------------------------------------


def _narrowed(draft: PrunePlan, request: PruneRequest, scores: Ranking) -> PrunePlan:
    """The plan for the widest model of the stock's own shape that meets the target: dim, heads and widths together."""
    shapes = list(_stock_shapes(draft.before))
    if not shapes:
        raise InvalidInputError("plan_nothing_to_cut", field="kinds", model=draft.model, kinds="dim")
    if scores.dim is None:
        raise InvalidInputError("plan_needs_scores", field="criterion", criterion=scores.criterion, what="dim")
    amount = _amount(draft, request)
    amounts = [amount(shape) for shape in (draft.before, *shapes)]
    number = _nearest(amounts, _target(request), request)
    if not number:
        raise _unreachable(draft, request, amounts[1], amounts[-1])
    after = shapes[number - 1]
    cuts = (_block_cut(*pair, scores) for pair in zip(draft.before.blocks, after.blocks, strict=True))
    values = _checked(scores.dim, draft.before.dim, "dim")
    return foretold(replace(draft, cuts=tuple(cuts), dim_kept=_best(values, after.dim)))


def _stock_shapes(before: TransformerShape) -> Iterator[TransformerShape]:
    """Every narrower shape that diffusers' own class builds and that can be cut out of this one, the widest first."""
    for heads in range(before.stock_heads - 1, 0, -1):
        dim = heads * before.head_dim
        ffn = replace(before, dim=dim).stock_ffn
        if all(block.ffn >= ffn and block.heads >= heads for block in before.blocks):
            blocks = tuple(replace(block, ffn=ffn, heads=heads) for block in before.blocks)
            yield replace(before, dim=dim, blocks=blocks)


# --- by hand --------------------------------------------------------------------------------------------------------


def edited(plan: PrunePlan, edits: Sequence[BlockEdit], scores: Ranking | None = None) -> PrunePlan:
    """The plan with blocks set by hand, and all its numbers computed anew.

    A width or a number of heads needs the scores that say which units stay, unless it is what the block has now or had
    before the cut; kept units given as text need none. Raises InvalidInputError for a block or width that is not there.
    """
    cuts = {(cut.stack, cut.index): cut for cut in plan.cuts}
    blocks = {(block.stack, block.index): block for block in plan.before.blocks}
    for edit in edits:
        place = (edit.stack, edit.index)
        if place not in cuts:
            raise InvalidInputError("plan_unknown_block", field="block", value=f"{edit.stack}.{edit.index}")
        cuts[place] = _edited_cut(blocks[place], cuts[place], edit, scores)
    return foretold(replace(plan, cuts=tuple(cuts.values()), edited=True))


def _edited_cut(block: BlockShape, cut: BlockCut, edit: BlockEdit, scores: Ranking | None) -> BlockCut:
    kept = cut.kept if edit.kept is None else edit.kept
    if not kept:
        return BlockCut(block.stack, block.index, kept=False)
    texts = [_edited_units(block, cut, edit, part, scores) for part in PARTS]
    return BlockCut(block.stack, block.index, True, *texts)


def _edited_units(block: BlockShape, cut: BlockCut, edit: BlockEdit, part: Part, scores: Ranking | None) -> str:
    now, count = getattr(cut, f"{part}_kept"), getattr(block, part)
    wanted, text = getattr(edit, part), getattr(edit, f"{part}_kept")
    what = f"{block.stack}.{block.index} {part}"
    if text is not None:
        return ranges(units(text, count, what), count)
    if wanted is None or wanted == len(units(now, count)):
        return str(now)
    whole(what, wanted, 1, count)
    if wanted == count:
        return ""
    if scores is None:
        raise InvalidInputError("plan_needs_scores", field="criterion", criterion="–", what=what)
    return _best(_values(scores, part, block), wanted)
