"""Knock-outs take out exactly what they say, and leave nothing behind."""

import copy

import pytest
import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor

from zimage_studio.core.pruning.calibration import Predictor
from zimage_studio.core.pruning.knockout import Knock, knocked, parse_knock
from zimage_studio.errors import InvalidInputError, UserError

Inputs = tuple[list[Tensor], Tensor, list[Tensor]]


@pytest.fixture(scope="module")
def model(parent_pipeline: ZImagePipeline) -> ZImageTransformer2DModel:
    """A copy, in case a test fails half way."""
    return copy.deepcopy(parent_pipeline.transformer)


@torch.no_grad()
def velocity(model: ZImageTransformer2DModel, inputs: Inputs) -> Tensor:
    return torch.stack(model(*inputs, return_dict=False)[0])


def bits(model: ZImageTransformer2DModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model: ZImageTransformer2DModel, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("index", [0, 2, 4])
def test_a_block_knocked_out_is_a_block_deleted(model, inputs, index):
    without = copy.deepcopy(model)
    del without.layers[index]
    before = bits(model)
    with knocked(model, [Knock("layers", index)]):
        assert torch.equal(velocity(model, inputs), velocity(without, inputs))
    assert same(model, before)


def test_the_two_halves_together_are_the_block(model, inputs):
    halves = [Knock("noise_refiner", 0, "attention"), Knock("noise_refiner", 0, "feed_forward")]
    with knocked(model, [Knock("noise_refiner", 0)]):
        block = velocity(model, inputs)
    with knocked(model, halves):
        assert torch.equal(velocity(model, inputs), block)


def test_a_head_knocked_out_is_a_head_deleted(model, inputs):
    without = copy.deepcopy(model)
    attention = without.layers[1].attention
    width = attention.to_q.out_features // attention.heads
    kept = [row for row in range(attention.to_q.out_features) if row // width != 2]
    with torch.no_grad():
        for layer in (attention.to_q, attention.to_k, attention.to_v):
            layer.weight = torch.nn.Parameter(layer.weight[kept])
        attention.to_out[0].weight = torch.nn.Parameter(attention.to_out[0].weight[:, kept])
    attention.heads -= 1
    with knocked(model, [{"stack": "layers", "index": 1, "part": "head", "head": 2}]):
        torch.testing.assert_close(velocity(model, inputs), velocity(without, inputs), rtol=1e-5, atol=1e-6)


def test_overlapping_knocks_are_undone_bit_for_bit_also_after_an_error(model, inputs):
    before, whole = bits(model), velocity(model, inputs)
    knocks = [Knock("layers", 1), Knock("layers", 1, "attention"), *(Knock("layers", 1, "head", h) for h in range(4))]
    with pytest.raises(RuntimeError, match="half way"), knocked(model, knocks):
        assert not torch.equal(velocity(model, inputs), whole)
        raise RuntimeError("half way")
    assert same(model, before)
    assert torch.equal(velocity(model, inputs), whole)


@pytest.mark.parametrize(
    "knock",
    [
        {"stack": "layers", "index": 5}, {"stack": "layers", "index": -1}, {"stack": "layers", "index": True},
        {"stack": "layers", "index": 0, "part": "head"}, {"stack": "layers", "index": 0, "part": "head", "head": 4},
        {"stack": "layers", "index": 0, "part": "block", "head": 1}, {"stack": "vae", "index": 0}, {"index": 0},
        {"stack": "layers", "index": 0, "part": "norm"}, {"stack": "layers", "index": 0, "heads": 1},
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused_before_anything_changes(model, knock):
    before = bits(model)
    with pytest.raises(InvalidInputError), knocked(model, [Knock("layers", 1), knock]):
        raise AssertionError("it was let in")
    assert same(model, before)


def test_weights_in_another_form_are_refused(model):
    empty = copy.deepcopy(model).to("meta")
    with pytest.raises(UserError, match="offloaded"), knocked(empty, [Knock("layers", 0)]):
        raise AssertionError("it was let in")
    packed = copy.deepcopy(model)
    weight = packed.layers[0].attention.to_out[0]
    del weight.weight
    weight.weight = torch.nn.Parameter(torch.zeros(64, 32, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UserError, match="quantised"), knocked(packed, [Knock("layers", 0, "head", 0)]):
        raise AssertionError("it was let in")


def test_both_forwards_agree_on_a_knock(model, inputs):
    pictures = torch.randn(2, 4, 16, 8, generator=torch.Generator().manual_seed(4))  # 32 tokens: both can
    with torch.no_grad(), knocked(model, [parse_knock({"stack": "layers", "index": 3, "part": "feed_forward"})]):
        fast, official = (Predictor(model, official=own)(pictures, inputs[1], inputs[2]) for own in (False, True))
    torch.testing.assert_close(fast, official, rtol=1e-4, atol=1e-5)
