"""On a CUDA device: weights lie where the profile says, the picture is the same, the estimate is the measurement."""

import pytest
import torch

from tests.core.memory.conftest import everything
from zimage_studio.core import sampling
from zimage_studio.core.memory.apply import apply
from zimage_studio.core.memory.estimate import Estimator
from zimage_studio.core.memory.measure import measure, measure_under
from zimage_studio.core.memory.shapes import Shapes
from zimage_studio.core.memory.site import COMPONENTS
from zimage_studio.core.preview import LatentToRgb
from zimage_studio.core.sampling import Sample
from zimage_studio.records.memory import EXACT, PHASES, PRESETS, MemoryProfile
from zimage_studio.records.progress import silent
from zimage_studio.records.request import GenerationRequest

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
SCHEDULER = {"num_train_timesteps": 1000, "shift": 3.0}
SIDE = 512
LOSSLESS = ("exact", "chunked", "text_out", "in_turn", "streamed", "from_disk")
WORKSPACE_BYTES = 40 * 2**20


@pytest.fixture
def cuda() -> torch.device:
    return torch.device("cuda", 0)


@pytest.fixture
def draw(pipeline, cuda):
    request = GenerationRequest(prompt="a red circle", seed=5, width=SIDE, height=SIDE, steps=2, guidance=1.5)
    to_rgb = LatentToRgb.fit(pipeline.vae)

    def one() -> Sample:
        return sampling.sample(pipeline, request, scheduler_config=SCHEDULER, to_rgb=to_rgb, progress=silent)

    return one


def places(pipeline) -> dict[str, set[str]]:
    return {name: {p.device.type for p in getattr(pipeline, name).parameters()} for name in COMPONENTS}


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_lossless_preset_gives_the_picture_of_exact_and_is_undone(pipeline, draw, cuda, tmp_path, name):
    before = everything(pipeline)
    reference, _ = measure_under(pipeline, EXACT, draw, device=cuda)
    found, stays = measure_under(pipeline, PRESETS[name], draw, device=cuda, scratch=tmp_path)
    assert stays == ()
    assert found.pixels_sha256 == reference.pixels_sha256
    assert everything(pipeline) == before


def test_weights_are_where_the_profile_says(pipeline, draw, cuda):
    applied = apply(pipeline, EXACT, device=cuda)
    assert set.union(*places(pipeline).values()) == {"cuda"}
    applied.undo()
    for name, expected in (
        ("text_out", {"text_encoder": {"cpu"}, "transformer": {"cuda"}, "vae": {"cuda"}}),
        ("in_turn", {component: {"cpu"} for component in COMPONENTS}),
        ("streamed", {"text_encoder": {"cpu"}, "transformer": {"cpu"}, "vae": {"cuda"}}),
    ):
        applied = apply(pipeline, PRESETS[name], device=cuda)
        for _ in range(2):
            assert places(pipeline) == expected, name
            draw()
            applied.forget_prompts()
        applied.undo()
    assert set.union(*places(pipeline).values()) == {"cpu"}


def test_the_switches_that_need_an_accelerator_are_applied(pipeline, cuda):
    applied = apply(pipeline, PRESETS["streamed"], device=cuda)
    on = {state.name for state in applied.states if state.state == "applied"}
    assert {"evict_text_encoder", "group_offload", "group_offload_stream"} <= on
    applied.undo()
    applied = apply(pipeline, MemoryProfile(model_offload=True, evict_text_encoder=True), device=cuda)
    reasons = {state.name: state.reason for state in applied.states}
    assert reasons["model_offload"] == "memory.model_offload.is"
    assert reasons["evict_text_encoder"] == "memory.evict.in_turn"
    applied.undo()


@pytest.mark.parametrize("name", ["exact", "tiled", "text_out", "in_turn", "streamed_tiled"])
def test_the_estimate_is_what_torch_gives_out(pipeline, draw, cuda, name):
    foretold = Estimator(Shapes.of_pipeline(pipeline), cuda).estimate(
        PRESETS[name], SIDE, SIDE, guidance=True, tokens=64
    )
    applied = apply(pipeline, PRESETS[name], device=cuda)
    measured = measure(pipeline, applied, draw).phase_peak_bytes
    applied.undo()
    for phase, peak in zip(PHASES, foretold.phases, strict=True):
        assert measured[phase] == pytest.approx(peak.peak_bytes, rel=0.1, abs=WORKSPACE_BYTES), phase
