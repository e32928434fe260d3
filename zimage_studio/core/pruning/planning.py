"""From a wish and scores to a plan, and a plan edited by hand. Reads headers only; no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from zimage_studio.core.model_files import Facts, inspect_folder
from zimage_studio.core.pruning.loads import loads
from zimage_studio.core.pruning.mapping import forecast
from zimage_studio.core.pruning.probe import float16_probe
from zimage_studio.core.pruning.ranking import PARTS, Part, Ranking, best, checked, removal_order, values_of
from zimage_studio.core.pruning.shape import CAPTION_TOKENS, ITEM_BYTES, flops, image_tokens, transformer_shape
from zimage_studio.core.pruning.targets import Trial, amount_of, chosen, nearest, target_of, unreachable
from zimage_studio.core.weight_headers import component_header
from zimage_studio.errors import InvalidInputError, ModelError
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.checks import whole
from zimage_studio.records.compress import PruneRequest
from zimage_studio.records.plan import BlockCut, BlockEdit, BlockShape, PrunePlan, TransformerShape
from zimage_studio.records.progress import Progress
from zimage_studio.records.ranges import ranges, units


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


def _cut(draft: PrunePlan, request: PruneRequest, scores: Ranking) -> PrunePlan:
    trial = Trial(draft, *removal_order(draft, request, scores))
    dropped, taken = chosen(trial, request, amount_of(draft, request))
    after = {(block.stack, block.index): block for block in trial.shape(dropped, taken).blocks}
    cuts = tuple(_block_cut(block, after.get((block.stack, block.index)), scores) for block in draft.before.blocks)
    return foretold(replace(draft, cuts=cuts))


def _block_cut(before: BlockShape, after: BlockShape | None, scores: Ranking) -> BlockCut:
    if after is None:
        return BlockCut(before.stack, before.index, kept=False)
    texts = [
        "" if getattr(before, part) == getattr(after, part)
        else best(values_of(scores, part, before), getattr(after, part))
        for part in PARTS
    ]  # fmt: skip
    return BlockCut(before.stack, before.index, True, *texts)


# --- embedding dim --------------------------------------------------------------------------------------------------


def _narrowed(draft: PrunePlan, request: PruneRequest, scores: Ranking) -> PrunePlan:
    """The plan for the widest model of the stock's own shape that meets the target: dim, heads and widths together."""
    shapes = list(_stock_shapes(draft.before))
    if not shapes:
        raise InvalidInputError("plan_nothing_to_cut", field="kinds", model=draft.model, kinds="dim")
    if scores.dim is None:
        raise InvalidInputError("plan_needs_scores", field="criterion", criterion=scores.criterion, what="dim")
    amount = amount_of(draft, request)
    amounts = [amount(shape) for shape in (draft.before, *shapes)]
    number = nearest(amounts, target_of(request), request)
    if not number:
        raise unreachable(draft, request, amounts[1], amounts[-1])
    after = shapes[number - 1]
    cuts = (_block_cut(*pair, scores) for pair in zip(draft.before.blocks, after.blocks, strict=True))
    values = checked(scores.dim, draft.before.dim, "dim")
    return foretold(replace(draft, cuts=tuple(cuts), dim_kept=best(values, after.dim)))


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
    return best(values_of(scores, part, block), wanted)
