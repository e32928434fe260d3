"""Criteria: equal to torch-pruning where that is right, right where it is not, and what does nothing goes first."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_pruning as tp
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from torch_pruning.pruner import importance

from tests.calibration import calibration_set
from zimage_studio.core.pruning.activations import listen, unit_strengths
from zimage_studio.core.pruning.calibration import Batch, Predictor, Ways, joined, ways
from zimage_studio.core.pruning.criteria import groups_of, measured, score
from zimage_studio.core.pruning.gradients import gradient_scores, loss
from zimage_studio.core.pruning.scores import Scores
from zimage_studio.errors import Cancelled, InvalidInputError, UserError
from zimage_studio.records.plan import CRITERIA, Calibration

KINDS = ("depth", "ffn", "heads")
PROMPTS = ("a red fish", "红色的鱼", "a house")
MEASURED = ("taylor", "fisher", "activation", "ablation", "block_influence")
HEAD_DIM = 16


@pytest.fixture(scope="module")
def pipeline(parent_pipeline: ZImagePipeline) -> ZImagePipeline:
    """Unit 5 and head 2 of the second block do nothing, nor does the fourth block."""
    own = ZImagePipeline(**{**parent_pipeline.components, "transformer": copy.deepcopy(parent_pipeline.transformer)})
    block, idle = own.transformer.layers[1], own.transformer.layers[3]
    head = slice(2 * HEAD_DIM, 3 * HEAD_DIM)
    with torch.no_grad():
        for weight in (
            block.feed_forward.w1.weight[5],
            block.feed_forward.w3.weight[5],
            block.feed_forward.w2.weight[:, 5],
        ):
            weight.zero_()
        for part in ("to_q", "to_k", "to_v"):
            getattr(block.attention, part).weight[head].zero_()
        block.attention.to_out[0].weight[:, head].zero_()
        idle.attention_norm2.weight.zero_()
        idle.ffn_norm2.weight.zero_()
    return own


@pytest.fixture(scope="module")
def model(pipeline: ZImagePipeline) -> ZImageTransformer2DModel:
    return pipeline.transformer


@pytest.fixture(scope="module")
def states(pipeline: ZImagePipeline) -> Batch:
    return calibration_set(pipeline, PROMPTS, (1, 2, 3), 3)


def tp_units(model: ZImageTransformer2DModel, judge: object) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
    """What torch-pruning's own importance says about every block's units and heads."""
    qk = [parameter for name, parameter in model.named_parameters() if "attention.norm_" in name]
    channels, words = model.config.in_channels, model.config.cap_feat_dim
    inputs = ([torch.randn(channels, 1, 8, 8)], torch.tensor([0.5]), [torch.randn(7, words)])

    def run(m: ZImageTransformer2DModel, given: tuple) -> list:
        return m(list(given[0]), given[1], list(given[2]), return_dict=False)[0]

    graph = tp.DependencyGraph().build_dependency(model, inputs, forward_fn=run, ignored_params=qk, verbose=False)
    found = {}
    for stack in ("noise_refiner", "context_refiner", "layers"):
        for index, block in enumerate(getattr(model, stack)):
            said = []
            for layer in (block.feed_forward.w1, block.attention.to_q):
                rows = list(range(layer.out_features))
                said.append(judge(graph.get_pruning_group(layer, tp.prune_linear_out_channels, rows)).detach().numpy())
            found[stack, index] = (said[0], said[1].reshape(block.attention.heads, -1).mean(1))
    return found


def assert_same(found: Scores, expected: dict) -> None:
    assert found.ffn.keys() == found.heads.keys() == expected.keys()
    for place, (ffn, heads) in expected.items():
        np.testing.assert_allclose(found.ffn[place], ffn, rtol=2e-4, atol=1e-12)
        np.testing.assert_allclose(found.heads[place], heads, rtol=2e-4, atol=1e-12)


@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("group_l2", 2)])
def test_magnitudes_are_those_of_torch_pruning(pipeline, criterion, power):
    judge = importance.GroupMagnitudeImportance(p=power, normalizer=None)
    assert_same(score(pipeline, criterion, KINDS), tp_units(copy.deepcopy(pipeline.transformer), judge))


@pytest.mark.parametrize("criterion", ["random", "l1", "group_l2"])
def test_weights_say_the_same_from_the_disk(parent, parent_pipeline, criterion):
    kinds = (*KINDS, "dim")
    folder, memory = (score(source, criterion, kinds, seed=4) for source in (parent, parent_pipeline))
    assert_same(folder, {place: (memory.ffn[place], memory.heads[place]) for place in memory.ffn})
    assert folder.blocks == pytest.approx(memory.blocks)
    np.testing.assert_allclose(folder.dim, memory.dim)
    assert folder.dim.shape == (64,)


def test_taylor_is_that_of_torch_pruning_for_one_backward_pass(model, states):
    own = copy.deepcopy(model)
    batch = states.straight.part(slice(0, 4))
    loss(Predictor(own), batch).backward()
    expected = tp_units(own, importance.GroupTaylorImportance(normalizer=None))
    assert_same(gradient_scores(model, groups_of(model), states.part(slice(0, 4)), "taylor", at_once=4), expected)


def test_fisher_is_that_of_torch_pruning_for_one_state_and_the_mean_over_several(model, states):
    each = []
    for row in range(3):
        own = copy.deepcopy(model)
        judge = importance.GroupHessianImportance(normalizer=None)
        loss(Predictor(own), states.straight.part([row])).backward()
        judge.accumulate_grad(own)
        each.append(tp_units(own, judge))
        assert_same(gradient_scores(model, groups_of(model), states.part([row]), "fisher"), each[-1])
    means = {place: tuple(np.mean([one[place][part] for one in each], axis=0) for part in (0, 1)) for place in each[0]}
    assert_same(gradient_scores(model, groups_of(model), states.part(slice(0, 3)), "fisher"), means)


def test_streaming_leaves_no_gradient_and_every_flag_as_it_was(model, states):
    model.x_pad_token.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    alive = []

    def stop(done: float, _total: float, _note: str, /, preview: object = None) -> None:
        alive.append(sum(parameter.grad is not None for parameter in model.parameters()))
        if done == 2:
            raise Cancelled

    gradient_scores(model, groups_of(model), states, "taylor", at_once=3)
    with pytest.raises(Cancelled):
        gradient_scores(model, groups_of(model), states, "fisher", stop)
    assert alive == [0, 0, 0]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert not model.is_gradient_checkpointing
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.fixture(scope="module")
def drawn(pipeline: ZImagePipeline) -> Ways:
    return ways(pipeline, PROMPTS[:2], (1, 2), 2)


@pytest.fixture(scope="module")
def all_scores(pipeline: ZImagePipeline, states: Batch, drawn: Ways) -> dict[str, Scores]:
    weighed = {criterion: score(pipeline, criterion, KINDS) for criterion in ("l1", "group_l2")}
    return weighed | {
        name: measured(pipeline.transformer, name, KINDS, states.part([0, 4]), drawn) for name in MEASURED
    }


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "random"])
def test_what_does_nothing_scores_lowest(all_scores, criterion):
    found = all_scores[criterion]
    place = ("layers", 1)
    assert found.ffn[place].argmin() == 5
    assert found.ffn[place][5] == 0 < np.partition(found.ffn[place], 1)[1]
    assert found.heads[place].argmin() == 2
    assert found.heads[place][2] == 0 < np.partition(found.heads[place], 1)[1]
    main = {index: value for (stack, index), value in found.blocks.items() if stack == "layers"}
    assert min(main, key=main.__getitem__) == 3
    assert main[3] == pytest.approx(0, abs=1e-6)
    assert all(np.isfinite(values).all() for values in (*found.ffn.values(), *found.heads.values()))


def test_activations_add_up_over_all_batches(model, states):
    many = joined([states, states.part(slice(0, 6))])  # 15 states, two batches
    backwards = many.part(list(reversed(range(len(many)))))
    found = [unit_strengths(model, listen(model, part, lambda *_args: None)) for part in (many, backwards)]
    for part in (0, 1):
        for place, values in found[0][part].items():
            np.testing.assert_allclose(values, found[1][part][place], rtol=1e-4)


def test_equal_arguments_give_equal_scores_and_another_seed_gives_others(pipeline):
    def drawn(criterion: str, seed: int) -> Scores:
        return score(pipeline, criterion, ("depth",), prompts=PROMPTS[:1], seed=seed, steps=2)

    for criterion in ("random", "taylor", "ablation"):
        first, again, other = (drawn(criterion, seed).blocks for seed in (1, 1, 2))
        assert first == again
        assert first != other


def test_scores_are_read_back_and_nothing_else_is(all_scores, tmp_path: Path):
    path = tmp_path / "plan.scores.safetensors"
    for found in all_scores.values():
        found.save(path)
        back = Scores.load(path)
        assert (back.criterion, back.blocks) == (found.criterion, found.blocks)
        assert_same(back, {place: (found.ffn[place], found.heads[place]) for place in found.ffn})
        assert back.calibration == found.calibration
    assert list(tmp_path.iterdir()) == [path]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InvalidInputError, match="scores"):
        Scores.load(path)


def test_what_a_criterion_cannot_do_is_refused(pipeline):
    with pytest.raises(InvalidInputError, match="prompt"):
        score(pipeline, "taylor", ("ffn",))
    with pytest.raises(InvalidInputError, match="dim"):
        score(pipeline, "fisher", ("dim",), prompts=PROMPTS)
    with pytest.raises(InvalidInputError, match="ffn, heads"):
        score(pipeline, "block_influence", ("ffn", "heads"), prompts=PROMPTS)
    packed = ZImagePipeline(**{**pipeline.components, "transformer": copy.deepcopy(pipeline.transformer)})
    layer = packed.transformer.layers[0].feed_forward.w1
    del layer.weight
    layer.weight = torch.nn.Parameter(torch.zeros(170, 32, dtype=torch.uint8), requires_grad=False)
    for criterion in ("l1", "taylor"):
        with pytest.raises(UserError, match=criterion):
            score(packed, criterion, ("ffn",), prompts=PROMPTS)


def test_a_folder_is_loaded_and_measured_with_prompts_of_its_own(parent):
    found = score(parent, "activation", ("ffn", "dim"), prompts=PROMPTS[:1], steps=2, size=(64, 64), device="cpu")
    assert found.dim is not None
    assert found.dim.shape == (64,)
    assert found.calibration == Calibration(prompts=1, states=2, width=64, height=64, guidance=0.0, seed=0)
