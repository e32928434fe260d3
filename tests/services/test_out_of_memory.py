"""Out of memory: a rung down and again; what failed leaves nothing behind, however often."""

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import psutil
import pytest
import torch

from zimage_studio.core.engine import TorchEngine
from zimage_studio.core.memory.measure import release_heap
from zimage_studio.errors import OutOfMemoryError
from zimage_studio.messages import CATALOGUES
from zimage_studio.records.memory import EXACT, PRESETS, MemoryProfile
from zimage_studio.records.progress import silent
from zimage_studio.records.recovery import RUNGS, rungs_below
from zimage_studio.services.generation import GenerationJob
from zimage_studio.services.replay import read_original
from zimage_studio.services.studio import Studio, build_studio

QUICK = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 2, "guidance": 0, "seed": 3}
WAIT_S = 120
FAILURES = 20


def hook(studio: Studio, part: str, fails: Callable[[object], bool]) -> torch.utils.hooks.RemovableHandle:
    """Make the live model run out of memory, with torch's own exception, wherever `fails` says so of the pipeline."""

    def work() -> torch.utils.hooks.RemovableHandle:
        with studio.manager.borrow("one", silent) as lent:
            pipeline = lent.model.pipeline

            def before(_module: object, _args: object) -> None:
                held = torch.ones(1000)  # in the frame that the traceback pins
                if fails(pipeline):
                    raise torch.OutOfMemoryError(f"CUDA out of memory (tried {held.numel()})")

            return _module(pipeline, part).register_forward_pre_hook(before)

    return studio.manager.submit(work).result(WAIT_S)


def _module(pipeline: object, part: str) -> torch.nn.Module:
    component, _, rest = part.partition(".")
    return getattr(pipeline, component).get_submodule(rest)


def submit(studio: Studio, **values: object) -> GenerationJob:
    return studio.generation.submit({**QUICK, **values}, model="one")


def tensors() -> Counter[tuple[int, ...]]:
    """How many tensors of each shape are alive."""
    gc.collect()
    return Counter(tuple(thing.shape) for thing in gc.get_objects() if isinstance(thing, torch.Tensor))


def test_twenty_failures_in_a_row_leave_the_twenty_first_job_working(random_studio, settings):
    (first,) = submit(random_studio).result(WAIT_S)
    handle = hook(random_studio, "transformer", lambda _pipeline: True)
    for number in range(FAILURES):
        job = submit(random_studio)
        with pytest.raises(OutOfMemoryError, match="64×64"):
            job.result(WAIT_S)
        assert job.view.recovered == ("tiled", "text_out", "from_disk")
        if number == 0:
            submit_quietly_ended(random_studio)
            alive, resident = tensors(), resident_bytes()
    assert random_studio.manager.state.phase == "ready"
    submit_quietly_ended(random_studio)
    assert tensors() == alive
    assert resident_bytes() - resident < 64 * 2**20
    handle.remove()
    (last,) = submit(random_studio).result(WAIT_S)
    assert last.recipe.outcome.pixels_sha256 == first.recipe.outcome.pixels_sha256
    assert last.recipe.numerics.memory == {}
    assert list((settings.data / "scratch").glob("*/*")) == [], "weights on disk went with the profile"


def submit_quietly_ended(studio: Studio) -> None:
    """The owner thread has let go of the last job, and has looked at the pipeline after it."""
    studio.memory.apply("one").result(WAIT_S)
    studio.manager.submit(lambda: None).result(WAIT_S)


def resident_bytes() -> int:
    release_heap()
    return int(psutil.Process().memory_info().rss)


def test_the_rung_that_helped_is_said_recorded_and_replayed(random_studio):
    handle = hook(random_studio, "vae.decoder", lambda pipeline: not pipeline.vae.use_tiling)
    job = submit(random_studio)
    seen = [job.view]
    while not seen[-1].finished:
        seen.append(job.wait_change(seen[-1].version, 5))
    (image,) = job.result(WAIT_S)
    assert job.view.recovered == ("tiled",)
    memory = image.recipe.numerics.memory
    assert memory == {"vae_tile_px": 512, "feed_forward_chunks": 4, "out_of_memory": ["tiled"]}
    assert random_studio.memory.profile.same_switches(EXACT), "the person's choice stays"
    again = random_studio.replay.start(read_original(image.path), silent, session="x")
    (made,) = again.result(WAIT_S)
    assert again.view.recovered == (), "the replay begins under the profile that fitted"
    verdict = random_studio.replay.verdict(read_original(image.path), made)
    assert (verdict.verdict, verdict.differences) == ("identical", ())
    handle.remove()


def test_the_images_before_the_failure_are_kept_and_not_made_twice(random_studio):
    calls = []

    def fails(pipeline: object) -> bool:
        calls.append(pipeline.vae.use_tiling)
        return len(calls) == 2

    handle = hook(random_studio, "vae.decoder", fails)
    first, second, third = submit(random_studio, count=3).result(WAIT_S)
    handle.remove()
    assert calls == [False, False, True, True]
    assert [image.recipe.request.seed for image in (first, second, third)] == [3, 4, 5]
    assert "out_of_memory" not in first.recipe.numerics.memory
    assert second.recipe.numerics.memory["out_of_memory"] == ["tiled"]
    assert random_studio.images.page()[1] == 3


def test_the_next_job_begins_with_the_chosen_profile_again(random_studio):
    handle = hook(random_studio, "vae.decoder", lambda pipeline: not pipeline.vae.use_tiling)
    submit(random_studio).result(WAIT_S)
    handle.remove()
    (image,) = submit(random_studio).result(WAIT_S)
    assert image.recipe.numerics.memory == {}


class SmallDevice(TorchEngine):
    """The real engine on a device that holds no text encoder beside the transformer."""

    def load(self, artifact, parts, progress, profile=EXACT):
        if not profile.evict_text_encoder:
            raise OutOfMemoryError("model_too_large", value=artifact.name)
        return super().load(artifact, parts, progress, profile)

    def fit(self, model, profile):
        if not profile.evict_text_encoder:
            raise OutOfMemoryError("model_too_large", value=model.artifact.name)
        super().fit(model, profile)


def test_a_model_that_does_not_fit_while_loading_is_loaded_further_down(settings, two_models):
    engine = SmallDevice(device="cpu", scratch=settings.data / "scratch")
    studio = build_studio(replace(settings, models=(two_models,), model="one"), lambda _settings: engine)
    studio.start()
    try:
        studio.manager.submit(lambda: None).result(WAIT_S)
        assert studio.not_ready() == "", "the warm-up went down by itself"
        job = submit(studio)
        (image,) = job.result(WAIT_S)
        assert job.view.recovered == ("tiled", "text_out")
        assert image.recipe.numerics.memory["out_of_memory"] == ["tiled", "text_out"]
    finally:
        studio.begin_stop()
        studio.close()


@pytest.mark.parametrize("accelerated", [True, False])
@pytest.mark.parametrize("profile", PRESETS.values(), ids=PRESETS)
def test_every_way_down_ends_and_never_takes_a_saving_back(profile, accelerated):
    before = profile
    names = [rung.name for rung in RUNGS]
    for rung, lower in rungs_below(profile, accelerated=accelerated):
        assert not lower.same_switches(before)
        assert lower.feed_forward_chunks >= before.feed_forward_chunks
        assert not before.vae_tile_px or 0 < lower.vae_tile_px <= before.vae_tile_px
        assert lower.evict_text_encoder >= before.evict_text_encoder
        assert lower.group_offload_disk >= before.group_offload_disk
        assert (lower.quantization, lower.fp8_storage) == (before.quantization, before.fp8_storage)
        names = names[names.index(rung.name) + 1 :]
        before = lower


def test_the_deepest_profile_has_nothing_below_it():
    assert list(rungs_below(PRESETS["from_disk_tiled"], accelerated=False)) == []


def test_every_rung_is_said_in_both_languages():
    for rung in RUNGS:
        assert all(f"recovery.{rung.name}" in catalogue for catalogue in CATALOGUES.values())


def test_a_rung_that_contradicts_is_left_out():
    profile = MemoryProfile(quantization="int8", evict_text_encoder=True)
    names = [rung.name for rung, _ in rungs_below(profile, accelerated=True)]
    assert names == ["tiled", "streamed", "streamed_leaves"], "torchao's weights cannot lie on disk"
