"""float16 as a person meets it: a profile asks for it, real overflow goes a rung down, and nothing broken is saved."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ZImagePipeline
from PIL import Image

from benchmarks.overflow import forward_on, make_overflow
from tests.conftest import TINY, assert_one_call_at_a_time
from zimage_studio.errors import NonFiniteError
from zimage_studio.records.memory import PRESETS, MemoryProfile
from zimage_studio.records.progress import silent
from zimage_studio.services.generation import GenerationJob
from zimage_studio.services.images import StoredImage
from zimage_studio.services.replay import read_original
from zimage_studio.services.studio import Studio, build_studio
from zimage_studio.settings import Settings

QUICK = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 2, "guidance": 0, "seed": 3}
FP16 = MemoryProfile(name="fp16", transformer_precision="fp16", vae_precision="fp32")
WAIT_S = 120


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model three times: past float16's limit, far past it, and with a weight that is not a number."""
    folder = tmp_path_factory.mktemp("models")
    for name, strength in (("past", 4), ("far", 200)):
        pipeline = ZImagePipeline.from_pretrained(TINY, local_files_only=True)
        assert make_overflow(pipeline.transformer, strength, forward_on(pipeline, side=8)) > 1
        pipeline.save_pretrained(folder / name)
    pipeline = ZImagePipeline.from_pretrained(TINY, local_files_only=True)
    with torch.no_grad():
        pipeline.transformer.layers[1].feed_forward.w2.weight[0, 0] = float("nan")
    pipeline.save_pretrained(folder / "broken")
    return folder


@pytest.fixture
def studio(settings: Settings, models: Path) -> Iterator[Studio]:
    studio = build_studio(replace(settings, models=(models,)))
    studio.manager.start()
    yield studio
    studio.begin_stop()
    studio.close()
    assert_one_call_at_a_time(studio.manager)


def submit(studio: Studio, model: str, profile: MemoryProfile | None = FP16) -> GenerationJob:
    return studio.generation.submit(QUICK, model=model, profile=profile)


def draw(studio: Studio, model: str, profile: MemoryProfile | None = FP16) -> StoredImage:
    (image,) = submit(studio, model, profile).result(WAIT_S)
    return image


def psnr_db(one: StoredImage, other: StoredImage) -> float:
    pixels = [np.asarray(Image.open(image.path), np.float64) for image in (one, other)]
    return float(10 * np.log10(255**2 / np.mean((pixels[0] - pixels[1]) ** 2)))


def test_a_profile_of_float16_draws_scaled_and_says_so(studio):
    studio.memory.choose(FP16)
    made = draw(studio, "past", None)
    memory = made.recipe.numerics.memory
    assert memory["ladder"]["rung"] == "float16_scaled" and "not_finite" not in memory["ladder"]
    assert made.recipe.numerics.dtypes["transformer"] == "float16"
    assert psnr_db(made, draw(studio, "past", PRESETS["exact"])) > 40
    draw(studio, "past", None)
    states = {state.name: state for state in studio.memory.states().states}
    precision = states["transformer_precision"]
    assert (precision.requested, precision.state, precision.reason) == ("fp16", "applied", "rung.float16_scaled")


def test_real_overflow_goes_down_the_ladder_and_the_replay_begins_there(studio):
    made = draw(studio, "far")
    ladder = made.recipe.numerics.memory["ladder"]
    assert ladder["rung"] == "bfloat16"
    assert ladder["not_finite"] == ["float16_scaled", "float16_float32_blocks"]
    assert studio.images.page()[1] == 1, "nothing that was not finite was saved"
    precision = next(s for s in studio.memory.states().states if s.name == "transformer_precision")
    assert (precision.state, precision.reason) == ("refused", "memory.precision.fell")
    draw(studio, "far", PRESETS["exact"])  # another profile in between: the ladder is a new one
    (again,) = studio.replay.start(read_original(made.path), silent, session="x").result(WAIT_S)
    assert again.recipe.numerics.memory["ladder"] == {k: v for k, v in ladder.items() if k != "not_finite"}
    verdict = studio.replay.verdict(read_original(made.path), again)
    assert (verdict.verdict, verdict.differences) == ("identical", ())


def test_a_replay_on_another_rung_leaves_the_model_where_it_stood(studio):
    made = draw(studio, "past")
    lower = studio.generation.submit(QUICK, model="past", profile=FP16, rung="bfloat16")
    assert lower.result(WAIT_S)[0].recipe.numerics.memory["ladder"] == {"rung": "bfloat16"}
    again = draw(studio, "past")
    assert again.recipe.numerics.memory == made.recipe.numerics.memory
    assert again.recipe.outcome.pixels_sha256 == made.recipe.outcome.pixels_sha256


def test_when_no_rung_is_finite_nothing_is_saved_and_the_next_job_works(studio):
    with pytest.raises(NonFiniteError):
        submit(studio, "broken").result(WAIT_S)
    assert studio.images.page()[1] == 0
    assert draw(studio, "past")


def test_the_rest_of_the_profile_is_at_work_on_every_rung(studio):
    profile = replace(FP16, feed_forward_chunks=4, group_offload="block", group_offload_disk=True)
    made = draw(studio, "far", profile)
    assert made.recipe.numerics.memory["ladder"]["rung"] == "bfloat16"
    states = {state.name: state.state for state in studio.memory.states().states}
    assert states["group_offload"] == states["feed_forward_chunks"] == "applied"
