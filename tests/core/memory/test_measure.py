"""Measuring: phases, time and distance of one image under a profile, and a pipeline that is as it was."""

import numpy as np
import pytest
import torch

from tests.core.memory.conftest import everything
from zimage_studio.core import sampling
from zimage_studio.core.memory.apply import apply
from zimage_studio.core.memory.measure import RamProbe, measure, measure_under, probe_phases, resident_weights
from zimage_studio.core.preview import LatentToRgb
from zimage_studio.core.sampling import Sample
from zimage_studio.errors import Cancelled
from zimage_studio.records.memory import EXACT, PHASES, MemoryProfile
from zimage_studio.records.progress import silent
from zimage_studio.records.request import GenerationRequest

SCHEDULER = {"num_train_timesteps": 1000, "shift": 3.0}


@pytest.fixture
def draw(pipeline):
    request = GenerationRequest(prompt="a red circle", seed=5, width=64, height=96, steps=2, guidance=1.5)
    to_rgb = LatentToRgb.fit(pipeline.vae)

    def one() -> Sample:
        return sampling.sample(pipeline, request, scheduler_config=SCHEDULER, to_rgb=to_rgb, progress=silent)

    return one


def test_the_same_image_is_identical_and_every_phase_has_a_peak(pipeline, draw):
    reference = draw().pixels_HWC
    found, stays = measure_under(pipeline, EXACT, draw, reference_HWC=reference)
    assert stays == ()
    assert (found.identical, found.psnr_db) == (True, None)
    assert tuple(found.phase_peak_bytes) == PHASES
    assert all(peak >= resident_weights(pipeline) for peak in found.phase_peak_bytes.values())
    assert found.seconds > 0
    assert [state.name for state in found.states] == list(EXACT.switches)


def test_a_lossy_profile_has_a_distance(pipeline, draw):
    reference = draw().pixels_HWC
    found, stays = measure_under(pipeline, MemoryProfile(vae_tile_px=32), draw, reference_HWC=reference)
    assert stays == ()
    assert found.identical is False
    assert 5 < found.psnr_db < 80
    assert {s.name: s.reason for s in found.states}["vae_tile_px"] == "memory.tile.is"


def test_what_stays_after_undo_is_told(pipeline, draw):
    found, stays = measure_under(pipeline, MemoryProfile(quantization="int4"), draw, warm_up=False)
    assert stays == ("quantization",)
    assert (found.identical, found.psnr_db) == (None, None)


def test_the_pipeline_is_as_it_was_also_after_an_error(pipeline, draw, tmp_path):
    draw()
    before = everything(pipeline)
    profile = MemoryProfile(
        feed_forward_chunks=2, evict_text_encoder=True, group_offload="block", group_offload_disk=True
    )
    measure_under(pipeline, profile, draw, scratch=tmp_path)
    assert everything(pipeline) == before

    def stopped() -> Sample:
        raise Cancelled

    with pytest.raises(Cancelled):
        measure_under(pipeline, profile, stopped, scratch=tmp_path)
    assert everything(pipeline) == before


def test_the_text_phase_is_there_although_prompts_are_remembered(pipeline, draw):
    calls = []
    handle = pipeline.text_encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    applied = apply(pipeline, EXACT)
    measure(pipeline, applied, draw)
    assert len(calls) == 4, "both prompts, in the warm-up and in the measured image"
    handle.remove()


def test_weights_on_disk_do_not_count_as_resident(pipeline, tmp_path):
    everything_in_ram = resident_weights(pipeline)
    applied = apply(pipeline, MemoryProfile(group_offload="block", group_offload_disk=True), scratch=tmp_path)
    transformer = sum(p.numel() * p.element_size() for p in pipeline.transformer.parameters())
    assert resident_weights(pipeline) == everything_in_ram - transformer
    applied.undo()
    assert resident_weights(pipeline) == everything_in_ram


def test_a_peak_belongs_to_the_phase_it_happened_in(pipeline, draw):
    held = []

    def swell(_module, _args) -> None:
        held.append(torch.ones(64 * 2**18))  # 64 MiB, touched
        probe._note()
        held.clear()

    draw()
    handle = pipeline.transformer.layers[0].register_forward_pre_hook(swell)
    probe = RamProbe(pipeline)
    with probe_phases(pipeline, probe):
        draw()
    handle.remove()
    own = {phase: peak - probe.weights_bytes for phase, peak in probe.peaks.items()}
    assert own["denoise"] >= 64 * 2**20
    assert own["text"] < 32 * 2**20


def test_the_measured_image_is_the_image(pipeline, draw):
    reference = draw()
    found, _ = measure_under(pipeline, EXACT, draw, reference_HWC=np.zeros_like(reference.pixels_HWC))
    assert found.pixels_sha256 == reference.pixels_sha256
    assert found.psnr_db > 0
    assert found.to_dict()["phase_peak_bytes"]
