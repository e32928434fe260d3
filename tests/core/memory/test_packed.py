"""Models that are quantised already: a GGUF under the switches, its size, its estimate."""

import pytest
import torch

from tests import tiny_random
from tests.core.memory.conftest import everything, pixels
from zimage_studio.core.loading import load_pipeline
from zimage_studio.core.memory.apply import apply
from zimage_studio.core.memory.estimate import Estimator
from zimage_studio.core.memory.planner import candidates
from zimage_studio.core.memory.shapes import Shapes, component_bytes
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.memory import EXACT, PRESETS, MemoryProfile
from zimage_studio.records.progress import silent


@pytest.fixture
def packed(random_pipeline, random_folder, tmp_path):
    """The tiny model with its blocks in Q8_0."""
    path = tiny_random.write_gguf(random_pipeline.transformer, tmp_path / "z.gguf", "Q8_0")
    artifact = ModelArtifact(key="k", kind="gguf", path=str(path), name="z.gguf")
    pipeline = load_pipeline(artifact, device="cpu", parts=random_folder, progress=silent)
    pixels(pipeline)
    return pipeline


def states(applied) -> dict[str, tuple[str, str]]:
    return {state.name: (state.state, state.reason) for state in applied.states}


@pytest.mark.parametrize("switch", [{"fp8_storage": True}, {"quantization": "int4"}, {"quantization": "int8"}], ids=str)
def test_a_gguf_is_not_rounded_again(packed, switch):
    expected = pixels(packed)
    applied = apply(packed, MemoryProfile(**switch))
    assert states(applied)[next(iter(switch))] == ("refused", "memory.already_quantised")
    assert applied.undo() == ()
    assert pixels(packed) == expected


def test_its_precision_is_its_own(packed):
    applied = apply(packed, MemoryProfile(transformer_precision="bf16"))
    assert states(applied)["transformer_precision"] == ("refused", "memory.precision.quantised")
    assert states(applied)["quantization"] == ("applied", "memory.quantised")


@pytest.mark.parametrize("profile", [PRESETS["chunked"], PRESETS["text_out"]], ids=lambda p: p.name)
def test_what_only_saves_memory_works_on_it_too(packed, profile, tmp_path):
    before, expected = everything(packed), pixels(packed)
    applied = apply(packed, profile, scratch=tmp_path / "scratch")
    assert pixels(packed) == expected
    assert applied.undo() == ()
    assert everything(packed) == before
    assert pixels(packed) == expected


def test_its_weights_cannot_go_to_disk_and_that_is_said(packed, tmp_path):
    before = everything(packed)
    applied = apply(packed, PRESETS["from_disk"], scratch=tmp_path / "scratch")
    found = states(applied)
    assert found["group_offload"] == found["group_offload_disk"] == ("refused", "memory.packed_to_disk")
    assert found["evict_text_encoder"] == ("applied", "memory.evict.disk")
    applied.undo()
    assert everything(packed) == before


def test_its_size_is_what_it_takes_and_the_planner_leaves_it_packed(packed, random_pipeline):
    shapes = Shapes.of_pipeline(packed)
    plain = Shapes.of_pipeline(random_pipeline)
    live = sum(p.numel() * p.element_size() for p in packed.transformer.parameters())
    assert component_bytes(shapes, "transformer", EXACT) == live
    assert live < component_bytes(plain, "transformer", EXACT)
    estimator = Estimator(shapes, torch.device("cuda"))
    assert max(candidate.loss for candidate in candidates(estimator)) == 1
    assert estimator.estimate(EXACT, 64, 64).peak_bytes > 0
