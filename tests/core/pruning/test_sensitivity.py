"""The sensitivity map: a part that does nothing changes nothing, and the map can be stopped and read back."""

import copy

import pytest
import torch
from diffusers import ZImagePipeline

from tests.calibration import calibration_set
from zimage_studio.core.pruning.knockout import knocked
from zimage_studio.core.pruning.sensitivity import sensitivity_map
from zimage_studio.errors import Cancelled, InvalidInputError
from zimage_studio.records.sensitivity import Knock, SensitivityMap

PROMPTS = ("a red fish", "红色的鱼")


@pytest.fixture(scope="module")
def pipeline(parent_pipeline: ZImagePipeline) -> ZImagePipeline:
    """Its third block adds nothing, nor does the attention of its fifth."""
    own = ZImagePipeline(**{**parent_pipeline.components, "transformer": copy.deepcopy(parent_pipeline.transformer)})
    with torch.no_grad():
        for block, name in ((2, "attention_norm2"), (2, "ffn_norm2"), (4, "attention_norm2")):
            getattr(own.transformer.layers[block], name).weight.zero_()
    return own


@pytest.fixture(scope="module")
def found(pipeline: ZImagePipeline) -> SensitivityMap:
    return sensitivity_map(pipeline, PROMPTS, (3, 4), by_timestep=True, steps=3, decode=True)


def test_what_does_nothing_has_no_influence_and_everything_else_has(found):
    nothing = {"layers.2.block", "layers.2.attention", "layers.2.feed_forward", "layers.4.attention"}
    assert {str(cell.knock) for cell in found.cells if cell.change == 0} == nothing
    assert {str(cell.knock) for cell in found.cells if cell.psnr_db is None} == nothing
    assert len(found.cells) == 3 * 7
    assert all(len(cell.by_step) == 3 and min(cell.by_step) >= 0 for cell in found.cells)
    lone = found.cell("layers", 4, "block").change
    assert lone == pytest.approx(found.cell("layers", 4, "feed_forward").change)


def test_a_change_is_that_of_the_picture_drawn_without_the_part(pipeline, found):
    def end() -> torch.Tensor:
        made = [calibration_set(pipeline, [prompt], [seed], 3) for prompt, seed in zip(PROMPTS, (3, 4), strict=True)]
        return torch.cat([states.noise_BCHW[:1] + states.target_BCHW[:1] for states in made])

    whole = end()
    with knocked(pipeline.transformer, [Knock("layers", 1, "attention")]):
        without = end()
    expected = float((without - whole).norm() / whole.norm())
    assert found.cell("layers", 1, "attention").change == pytest.approx(expected, rel=1e-4)


def test_the_map_is_read_back_and_nothing_else_is(found):
    assert SensitivityMap.from_json(found.to_json()) == found
    for damaged in (
        "{}",
        "[",
        found.to_json().replace('"schema": 2', '"schema": 1'),
        found.to_json()[:-1] + ', "x": 1}',
    ):
        with pytest.raises(InvalidInputError):
            SensitivityMap.from_json(damaged)


def test_the_same_seeds_give_the_same_map_and_leave_the_model_alone(pipeline, found):
    before = {name: tensor.clone() for name, tensor in pipeline.transformer.state_dict().items()}
    again = sensitivity_map(pipeline, PROMPTS, (3, 4), by_timestep=True, steps=3, decode=True)
    assert again == found
    other = sensitivity_map(pipeline, PROMPTS[:1], (5,), steps=3, parts=("head",))
    assert [cell.knock.head for cell in other.cells[:4]] == [0, 1, 2, 3]
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipeline.transformer.state_dict().items())


def test_it_stops_at_once_and_restores(pipeline):
    before = {name: tensor.clone() for name, tensor in pipeline.transformer.state_dict().items()}

    def stop(done: float, _total: float, note: str, /, preview: object = None) -> None:
        if note == "note.mapping" and done == 4:
            raise Cancelled

    with pytest.raises(Cancelled):
        sensitivity_map(pipeline, PROMPTS, (3, 4), steps=2, progress=stop)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipeline.transformer.state_dict().items())


def test_it_beats_at_every_step_so_that_a_large_model_shows_life_and_stops_within_one(pipeline):
    seen: list[float] = []

    def beat(done: float, _total: float, note: str, /, preview: object = None) -> None:
        if note == "note.mapping":
            seen.append(done)
            if seen.count(1) == 3:  # inside the drawing without the second part
                raise Cancelled

    before = {name: tensor.clone() for name, tensor in pipeline.transformer.state_dict().items()}
    with pytest.raises(Cancelled):
        sensitivity_map(pipeline, PROMPTS, (3, 4), steps=2, progress=beat)
    points = 2 + 1  # the steps and the finished picture
    assert seen == [0] * (points + 1 + points) + [1] * 3  # the whole picture, then the first part
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipeline.transformer.state_dict().items())


def test_calibration_is_the_way_of_the_sampler(pipeline):
    """Its states are those of diffusers' own pipeline, and seeds alone decide them."""
    states = calibration_set(pipeline, ["a red fish"], [7], 2, size=(64, 64), guidance=2.0)
    seen = []
    pipeline.set_progress_bar_config(disable=True)
    end = pipeline(
        "a red fish", height=64, width=64, num_inference_steps=2, guidance_scale=2.0, output_type="latent",
        latents=states.noise_BCHW[:1].clone(), return_dict=False,
        callback_on_step_end=lambda _p, _i, _t, kept: seen.append(kept["latents"]) or {},
    )[0]  # fmt: skip
    torch.testing.assert_close(states.latents_BCHW[1:], seen[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((states.noise_BCHW + states.target_BCHW)[:1], end, rtol=1e-4, atol=1e-5)
    again = calibration_set(pipeline, ["a red fish"], [7], 2, size=(64, 64), guidance=2.0)
    assert torch.equal(states.velocity_BCHW, again.velocity_BCHW)
    assert not torch.equal(states.noise_BCHW, calibration_set(pipeline, ["a red fish"], [8], 2).noise_BCHW)
    with pytest.raises(InvalidInputError, match="prompt"):
        calibration_set(pipeline, [], [7])
