"""The planner: least lossy that fits, never worse with more memory, and what would fit when nothing does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny_random
from zimage_studio.core.memory.estimate import Estimator
from zimage_studio.core.memory.planner import Room, Scene, candidates, needed_bytes, plan
from zimage_studio.core.memory.shapes import Shapes
from zimage_studio.messages import CATALOGUES, LANGS, say
from zimage_studio.records.memory import PRESETS

MIB = 2**20
SCENE = Scene(256, 256, guidance=True, tokens=64)
DEVICES = {"cpu": torch.device("cpu"), "cuda": torch.device("cuda")}


@pytest.fixture(scope="module")
def estimators() -> dict[str, Estimator]:
    shapes = Shapes.of_pipeline(tiny_random.pipeline(dim=256, n_heads=4, axes_dims=[16, 24, 24], n_layers=6))
    return {name: Estimator(shapes, device) for name, device in DEVICES.items()}


def needs(estimator: Estimator, name: str, scene: Scene = SCENE) -> int:
    estimate = estimator.estimate(
        PRESETS[name], scene.width, scene.height, guidance=scene.guidance, tokens=scene.tokens
    )
    return needed_bytes(estimate)


@pytest.mark.parametrize("device", DEVICES)
@settings(deadline=None, max_examples=150)
@given(frees=st.lists(st.integers(0, 600 * MIB), min_size=2, max_size=6), host=st.none() | st.integers(0, 2**34))
def test_more_free_memory_never_gives_a_worse_choice(estimators, device, frees, host):
    estimator = estimators[device]
    order = [candidate.profile.name for candidate in candidates(estimator)]
    chosen = [plan(estimator, SCENE, Room(free, host)) for free in sorted(frees)]
    ranks = [order.index(p.profile.name) if p.fits else len(order) for p in chosen]
    assert ranks == sorted(ranks, reverse=True)


@pytest.mark.parametrize("device", DEVICES)
@settings(deadline=None, max_examples=150)
@given(free=st.integers(0, 600 * MIB))
def test_the_choice_fits_and_nothing_less_lossy_does(estimators, device, free):
    estimator = estimators[device]
    found = plan(estimator, SCENE, Room(free))
    order = [candidate.profile.name for candidate in candidates(estimator)]
    fitting = [name for name in order if needs(estimator, name) <= free]
    assert found.fits == bool(fitting)
    if fitting:
        assert found.profile.name == fitting[0]
        assert found.headroom_bytes == free - found.estimate.peak_bytes > 0
        assert found.free_bytes == free
    for lang in LANGS:
        sentence = say(found.reason, lang, **found.values)
        assert found.profile.name in sentence


def test_candidates_are_presets_from_least_to_most_lossy(estimators):
    for estimator in estimators.values():
        for bf16 in (True, False):
            ranks = [(c.loss, c.pace) for c in candidates(estimator, bf16=bf16)]
            assert ranks == sorted(ranks)
            assert all(PRESETS[c.profile.name] is c.profile for c in candidates(estimator, bf16=bf16))
    names = {name: {c.profile.name for c in candidates(e)} for name, e in estimators.items()}
    assert "in_turn" in names["cuda"] - names["cpu"]
    assert "bf16" in names["cpu"] - names["cuda"]
    assert {"fp16", "fp16_streamed"} <= {c.profile.name for c in candidates(estimators["cuda"], bf16=False)}
    assert not {"fp16", "fp16_streamed"} & names["cuda"]


def test_with_room_for_everything_the_choice_is_exact(estimators):
    for estimator in estimators.values():
        found = plan(estimator, SCENE, Room(2**40, 2**40))
        assert (found.profile.name, found.reason, found.faster) == ("exact", "plan.fits", None)
        assert [row["phase"] for row in found.predicted()] == ["text", "denoise", "decode"]


def test_one_byte_below_what_exact_needs_it_is_passed_over_by_name(estimators):
    estimator = estimators["cuda"]
    need = needs(estimator, "exact")
    assert plan(estimator, SCENE, Room(need)).profile.name == "exact"
    found = plan(estimator, SCENE, Room(need - 1))
    assert found.profile.name != "exact"
    assert (found.reason, found.values["other"]) == ("plan.next_best", "exact")


def test_where_ram_is_short_weights_are_not_put_there(estimators):
    estimator = estimators["cuda"]
    free = needs(estimator, "streamed")
    assert plan(estimator, SCENE, Room(free, 2**40)).estimate.host_bytes > 0
    short = plan(estimator, SCENE, Room(free, 256 * MIB))
    assert short.estimate.host_bytes == 0 or not short.fits


def test_when_nothing_fits_a_smaller_picture_is_named_if_one_would(estimators):
    estimator = estimators["cuda"]
    scene = Scene(512, 384, tokens=64)
    most = min(needs(estimator, c.profile.name, scene) for c in candidates(estimator))
    found = plan(estimator, scene, Room(most - 1))
    assert (found.fits, found.reason) == (False, "plan.smaller_size")
    width, height = found.size
    assert width < 512 and width % 16 == height % 16 == 0
    assert found.headroom_bytes < 0
    assert plan(estimator, Scene(width, height, tokens=64), Room(most - 1)).fits
    none = plan(estimator, scene, Room(0))
    assert (none.fits, none.reason, none.size) == (False, "plan.nothing", None)


def test_a_faster_profile_that_loses_more_is_named(estimators):
    estimator = estimators["cuda"]
    found = plan(estimator, SCENE, Room(needs(estimator, "int4")))
    by_name = {c.profile.name: c for c in candidates(estimator)}
    if found.faster is not None:
        chosen, faster = by_name[found.profile.name], by_name[found.faster.name]
        assert faster.loss > chosen.loss and faster.pace < chosen.pace
        assert needs(estimator, faster.profile.name) <= found.free_bytes
    assert found.fits


def test_a_quantised_model_is_not_quantised_again():
    from zimage_studio.core.memory.apply import apply
    from zimage_studio.records.memory import MemoryProfile

    pipeline = tiny_random.pipeline()
    apply(pipeline, MemoryProfile(quantization="int4", embedding_cache=0))
    estimator = Estimator(Shapes.of_pipeline(pipeline), DEVICES["cuda"])
    assert {c.loss for c in candidates(estimator)} == {0, 1}


def test_every_sentence_of_the_planner_exists():
    for catalogue in CATALOGUES.values():
        assert {"plan.fits", "plan.next_best", "plan.next_best_ram", "plan.smaller_size", "plan.nothing"} <= set(
            catalogue
        )
