"""Plans: as near to the target as the steps allow, editable, and plain about who loads the result."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pruning_plans import Given, artifact, plan_of, random_scores
from zimage_studio.core.pruning.loads import loads
from zimage_studio.core.pruning.mapping import forecast, parameters
from zimage_studio.core.pruning.planning import edited, make_plan
from zimage_studio.core.pruning.ranking import width_step
from zimage_studio.core.pruning.shape import flops, tensor_shapes, transformer_shape
from zimage_studio.errors import InvalidInputError, ModelError
from zimage_studio.messages import CATALOGUES
from zimage_studio.records.compress import parse_prune
from zimage_studio.records.plan import STACKS, BlockCut, BlockEdit, BlockShape, PrunePlan, TransformerShape
from zimage_studio.records.progress import silent
from zimage_studio.records.ranges import units, width

REAL_FFN, REAL_HEADS = 10240, 30


def real_shape(layers=30, refiners=2, dim=3840, heads=REAL_HEADS, ffn=REAL_FFN) -> TransformerShape:
    counts = {"layers": layers, "noise_refiner": refiners, "context_refiner": refiners}
    blocks = [BlockShape(stack, index, ffn, heads) for stack in STACKS for index in range(counts[stack])]
    return TransformerShape(dim=dim, head_dim=128, in_channels=16, caption_width=2560, blocks=tuple(blocks))


def test_the_real_model_has_the_parameters_and_flops_that_are_known():
    assert parameters(tensor_shapes(real_shape())) == 6_154_908_736
    assert flops(real_shape(), 4096, 512) == pytest.approx(62.5e12, rel=0.002)
    assert flops(real_shape(), 4096, 128) == pytest.approx(56.6e12, rel=0.002)


@given(st.integers(1, 20000))
def test_steps_are_those_that_runtimes_like(count):
    step = width_step(count)
    assert step in (256, 128, 64, 32, 16, 8, 4, 2, 1) and (count // step >= 16 or step == 1)
    assert width_step(10240) == 256 and width_step(512) == 32


@settings(max_examples=30, deadline=None, derandomize=True)
@given(ratio=st.floats(0.08, 0.9), protect=st.booleans(), criterion=st.sampled_from(["l1", "taylor"]))
def test_a_ratio_is_met_within_a_step_and_widths_are_multiples(parent, ratio, protect, criterion):
    plan = plan_of(parent, "ffn", ratio=ratio, protect_ends=protect, criterion=criterion)
    blocks = plan.before.stack("layers")[1:-1] if protect else plan.before.blocks
    touchable = 3 * 64 * sum(block.ffn for block in blocks)
    removed = plan.transformer_parameters_before - plan.transformer_parameters_after
    assert abs(removed / touchable - ratio) <= 0.5 * 3 * 64 * width_step(170) / touchable + 1e-9
    widths = [block.ffn for block in plan.after.blocks]
    assert all(w == 170 or w % width_step(170) == 0 for w in widths)
    if protect:
        ends = [row for row in plan.rows() if row["stack"] != "layers" or row["index"] in (0, 4)]
        assert all(row["ffn_after"] == row["ffn_before"] for row in ends)
    if criterion == "l1":
        middle = [row["ffn_after"] for row in plan.rows() if row["stack"] == "layers"][1:-1]
        assert max(middle) - min(middle) <= max(width_step(170), 170 % width_step(170))


def test_magnitudes_cut_evenly_whatever_their_scale_and_losses_are_ranked(parent):
    scores = random_scores(transformer_shape(parent))
    loud = replace(scores, ffn={place: v * (1000 if place[1] == 2 else 1) for place, v in scores.ffn.items()})
    assert plan_of(parent, "ffn", ratio=0.5, scores=scores).cuts == plan_of(parent, "ffn", ratio=0.5, scores=loud).cuts
    ranked = plan_of(parent, "ffn", ratio=0.5, scores=loud, criterion="taylor")
    by_hand = plan_of(parent, "ffn", ratio=0.5, scores=scores, allocation="ranked")
    rows = {row["index"]: row["ffn_after"] for row in ranked.rows() if row["stack"] == "layers"}
    assert rows[2] == 170 and rows[1] < 100 and by_hand.rows() != ranked.rows()


def test_the_least_missed_blocks_go_and_the_rest_is_numbered_anew(parent):
    scores = replace(
        random_scores(transformer_shape(parent)),
        blocks={("layers", index): float(index == 2) for index in range(5)},
    )
    plan = plan_of(parent, "depth", ratio=0.6, scores=scores)
    assert [cut.index for cut in plan.cuts if not cut.kept] == [1, 3]
    assert [block.index for block in plan.after.stack("layers")] == [0, 1, 2]
    every = plan_of(parent, "depth", ratio=0.79, protect_ends=False, scores=scores)
    assert len(every.after.stack("layers")) == 1 and len(every.after.stack("noise_refiner")) == 1


@pytest.mark.parametrize("kinds", ["ffn", "heads", "depth", "depth,ffn,heads", "dim"])
@pytest.mark.parametrize(("target", "value"), [("ratio", 0.999), ("ratio", 0.0001), ("gigabytes", 1e-5),
                                               ("gigabytes", 50), ("speedup", 900)])  # fmt: skip
def test_what_cannot_be_reached_is_refused_with_bounds_that_hold(parent, kinds, target, value):
    if "depth" in kinds and value == 0.999:
        assert len(plan_of(parent, kinds, ratio=value).after.stack("layers")) == 2  # all but the ends may go
        return
    with pytest.raises(InvalidInputError) as refused:
        plan_of(parent, kinds, **{target: value})
    assert refused.value.key == "plan_unreachable"
    for bound in ("low", "high"):
        plan_of(parent, kinds, **{target: refused.value.values[bound]})


def test_scores_that_are_missing_or_odd_are_refused(parent):
    good = random_scores(transformer_shape(parent))
    place = ("layers", 2)
    for kinds, bad in {
        "ffn": replace(good, ffn={}),
        "heads": replace(good, heads={**good.heads, place: np.ones(3)}),
        "depth": replace(good, blocks={**good.blocks, place: float("nan")}),
        "ffn,heads": replace(good, ffn={**good.ffn, place: np.full(170, np.nan)}),
        "dim": Given(),
    }.items():
        with pytest.raises(InvalidInputError) as refused:
            plan_of(parent, kinds, ratio=0.5, scores=bad)
        assert refused.value.key in ("plan_needs_scores", "plan_scores_odd")


def test_only_a_whole_folder_with_its_hash_is_planned_for(parent):
    request = parse_prune({"model": "m", "kinds": "ffn", "ratio": 0.5})
    scores = random_scores(transformer_shape(parent))
    for model, folder in ((replace(artifact(parent), sha256=None), parent), (artifact(parent), parent / "no.gguf")):
        with pytest.raises(ModelError):
            make_plan(request, model, folder, scores, silent)


def test_editing_by_hand_computes_everything_anew(parent):
    scores = random_scores(transformer_shape(parent))
    plan = plan_of(parent, "ffn", ratio=0.5, scores=scores)
    changed = edited(
        plan,
        [
            BlockEdit("layers", 1, kept=False), BlockEdit("layers", 2, ffn=100, heads=2),
            BlockEdit("layers", 3, ffn=170), BlockEdit("layers", 0, ffn_kept="0-63,100", heads_kept="3"),
        ],
        scores,
    )  # fmt: skip
    assert changed.edited and not plan.edited
    assert [(b.ffn, b.heads) for b in changed.after.stack("layers")] == [(65, 1), (100, 2), (170, 4), (170, 4)]
    assert (changed.transformer_parameters_after, changed.transformer_bytes_after) == forecast(changed)
    assert changed.transformer_parameters_after == parameters(tensor_shapes(changed.after))
    assert changed.flops_after == flops(changed.after, changed.image_tokens, changed.caption_tokens) != plan.flops_after
    cut = next(cut for cut in changed.cuts if (cut.stack, cut.index) == ("layers", 2))
    assert width(cut.ffn_kept, 170) == 100
    values = scores.ffn["layers", 2]
    assert min(values[list(units(cut.ffn_kept, 170))]) >= np.sort(values)[70]
    back = edited(changed, [BlockEdit(c.stack, c.index, True, ffn_kept="", heads_kept="") for c in changed.cuts])
    assert back.removes_nothing and back.loads_in["diffusers"] == "unchanged"
    assert (back.parameters_after, back.bytes_after) == (plan.parameters_before, plan.bytes_before)


@pytest.mark.parametrize(
    "edit",
    [
        BlockEdit("layers", 9, kept=False), BlockEdit("layers", 1, ffn=0), BlockEdit("layers", 1, ffn=171),
        BlockEdit("layers", 1, heads=5), BlockEdit("layers", 1, ffn_kept="0-170"),
        BlockEdit("noise_refiner", 0, kept=False),
    ],
)  # fmt: skip
def test_an_edit_that_cannot_be_is_refused(parent, edit):
    with pytest.raises(InvalidInputError):
        edited(plan_of(parent, "ffn", ratio=0.5), [edit], random_scores(transformer_shape(parent)))
    with pytest.raises(InvalidInputError):  # which units, nobody said
        edited(plan_of(parent, "ffn", ratio=0.5), [BlockEdit("layers", 1, ffn=100)])


# --- who loads it ---------------------------------------------------------------------------------------------------


def verdicts(after, before=None, kept=None, probe=()):
    before = before or real_shape()
    kept = list(range(len(after.stack("layers")))) if kept is None else kept
    answers = loads(before, after, kept, probe)
    assert {why for _, why in answers.values()} <= CATALOGUES["en"].keys()
    return {runtime: verdict for runtime, (verdict, _) in answers.items()}, answers


def test_the_runtimes_of_the_real_model():
    whole = dict.fromkeys(verdicts(real_shape())[0], "unchanged")
    assert verdicts(real_shape())[0] == whole
    assert verdicts(real_shape(layers=24), kept=[*range(10), *range(16, 30)])[0] == whole
    narrow = replace(real_shape(), blocks=tuple(replace(b, ffn=7680) for b in real_shape().blocks))
    assert verdicts(narrow)[0] == {
        "diffusers": "does_not_load", "diffusers_with_package": "unchanged", "comfyui": "needs_our_loader",
        "comfyui_gguf": "unchanged", "stable_diffusion_cpp": "does_not_load",
    }  # fmt: skip
    no = dict.fromkeys(whole, "does_not_load") | {"diffusers_with_package": "unchanged"}
    heads = replace(real_shape(), blocks=tuple(replace(b, heads=24) for b in real_shape().blocks))
    assert verdicts(heads)[0] == no
    stock = no | {"diffusers": "unchanged"}
    assert verdicts(real_shape(dim=2688, heads=21, ffn=7168))[0] == stock | {"stable_diffusion_cpp": "unchanged"}
    assert verdicts(real_shape(dim=2560, heads=20, ffn=6826))[0] == stock
    one = verdicts(real_shape(refiners=1))[0]
    assert one == whole | {"comfyui": "does_not_load", "comfyui_gguf": "does_not_load"}


def test_dropping_blocks_warns_when_comfyui_would_change_its_mind_about_float16():
    probe = [0.3] * 30
    probe[28] = 0.6
    shape = real_shape(layers=29)

    def why(dropped, probe):
        return verdicts(shape, kept=[i for i in range(30) if i != dropped], probe=probe)[1]["comfyui"][1]

    assert why(5, probe) == "loads.depth"
    assert why(28, probe) == "loads.depth_fp16_flips"
    assert why(28, [0.3] * 30) == "loads.depth_fp16"


def test_a_small_model_loads_only_where_any_size_does(parent):
    plan = plan_of(parent, "depth", ratio=0.5)
    assert plan.loads_in["diffusers"] == "unchanged" and plan.loads_in["comfyui"] == "does_not_load"
    assert len(plan.float16_probe) == 5 and all(spread > 0 for spread in plan.float16_probe)
    assert isinstance(plan, PrunePlan) and BlockCut("layers", 0) in plan.cuts
