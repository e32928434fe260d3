"""Knock-outs on the live pipeline, and the device lent to a job: nothing stays altered, the refusal names the job."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import assert_one_call_at_a_time
from zimage_studio.core.engine import TorchEngine
from zimage_studio.errors import BusyError, Cancelled, InvalidInputError, UserError
from zimage_studio.records.job import JobRecord
from zimage_studio.services.studio import Studio, build_studio
from zimage_studio.settings import Settings

UNTIL_S = 60
SMALL = {"prompt": "a fish", "width": 64, "height": 64, "steps": 2, "guidance": 0.0, "seed": 3}
JOB = JobRecord(id="0" * 16, kind="recover", state="running", request={"model": "one"})


def pixels(studio: Studio) -> np.ndarray:
    from PIL import Image

    [stored] = studio.generation.submit(SMALL, model="one").result(UNTIL_S)
    return np.asarray(Image.open(stored.path).convert("RGB"))


def test_the_same_picture_with_and_without_and_nothing_stays_altered(random_studio: Studio) -> None:
    before = pixels(random_studio)
    knocks = [{"stack": "layers", "index": 0}, {"stack": "noise_refiner", "index": 0, "part": "head", "head": 1}]
    done = random_studio.compression.knock_out(SMALL, knocks, model="one").result(UNTIL_S)
    assert done.whole_HWC is not None and done.knocked_HWC is not None and done.distance is not None
    assert np.array_equal(done.whole_HWC, before)
    assert not np.array_equal(done.knocked_HWC, before)
    assert done.distance.psnr_db is not None
    assert np.array_equal(pixels(random_studio), before)
    again = random_studio.compression.knock_out(SMALL, knocks, model="one", whole_HWC=before).result(UNTIL_S)
    assert np.array_equal(again.knocked_HWC, done.knocked_HWC)
    _, count = random_studio.images.page()
    assert count == 2  # the knocked-out pictures have no recipe and are not kept


def test_a_knock_out_that_cannot_be_is_refused_by_name(random_studio: Studio) -> None:
    ask = random_studio.compression.knock_out
    with pytest.raises(UserError, match="Nothing is knocked out"):
        ask(SMALL, [], model="one")
    with pytest.raises(InvalidInputError):
        ask(SMALL, [{"stack": "cellar", "index": 0}], model="one")
    with pytest.raises(UserError, match=r"layers\.99"):
        ask(SMALL, [{"stack": "layers", "index": 99}], model="one").result(UNTIL_S)
    job = ask({**SMALL, "steps": 100}, [{"stack": "layers", "index": 0}], model="one")
    job.stop()
    with pytest.raises(Cancelled):
        job.result(UNTIL_S)
    assert random_studio.manager.submit(lambda: random_studio.manager.state.phase).result(UNTIL_S) == "ready"


class Accelerated(TorchEngine):
    """The real engine, which calls its device an accelerator."""

    def device(self) -> str:
        return "cuda"


@pytest.fixture
def accelerated(settings: Settings, two_models: Path) -> Iterator[Studio]:
    studio = build_studio(replace(settings, models=(two_models,), model="one"), lambda _settings: Accelerated())
    studio.manager.start()
    yield studio
    studio.begin_stop()
    studio.close()
    assert_one_call_at_a_time(studio.manager)


def test_while_a_job_has_the_accelerator_pictures_are_refused_in_a_sentence_that_names_it(accelerated: Studio) -> None:
    before = pixels(accelerated)
    accelerated.manager.lend(JOB)
    assert (accelerated.manager.state.phase, accelerated.manager.state.model) == ("lent", "one")
    assert accelerated.manager.look() is None  # the model is gone from memory
    for ask in (pixels, lambda s: s.compression.knock_out(SMALL, [{"stack": "layers", "index": 0}], model="one")):
        with pytest.raises(BusyError, match=r"lent to a job \(recovery, one\)"):
            ask(accelerated)
    assert accelerated.compression.slowed("en") == ""
    accelerated.manager.take_back()
    assert accelerated.manager.state.phase == "empty"
    assert np.array_equal(pixels(accelerated), before)


def test_on_the_processor_pictures_go_on_beside_a_job(random_studio: Studio) -> None:
    random_studio.manager.lend(JOB)
    assert pixels(random_studio).shape == (64, 64, 3)
    random_studio.jobs.table.insert(JOB, settings={}, needs_bytes=0)
    assert (
        random_studio.compression.slowed("en")
        == "A job (recovery) is running on this processor: it and your pictures slow each other down."
    )
    random_studio.manager.take_back()


def test_what_a_killed_cut_left_is_swept_at_the_next_start(settings: Settings) -> None:
    models = settings.data / "models"
    gone, mine, other = (
        models / ".a.999999999-00112233.partial",
        models / f".b.{os.getpid()}-00112233.partial",
        models / "c",
    )
    for folder in (gone, mine, other):
        (folder / "transformer").mkdir(parents=True)
    build_studio(settings)
    assert [folder.exists() for folder in (gone, mine, other)] == [False, True, True]


def test_more_processes_than_accelerators_are_refused_before_the_job_is_queued(
    random_studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zimage_studio.core.recovery import launch

    monkeypatch.setattr(launch, "accelerators", lambda: 2)
    asked = {"data_set": "drawn", "method": "flow", "steps": 1, "processes": 3}
    with pytest.raises(InvalidInputError, match="3") as refused:
        random_studio.compression.recover("one", asked)
    assert refused.value.values["high"] == 2
    assert random_studio.jobs.list() == ()
    monkeypatch.setattr(launch, "accelerators", lambda: 0)  # on the processor any number
    assert random_studio.compression.recover("one", asked).request["config"]["processes"] == 3


def test_a_lora_of_the_parent_is_carried_over_to_the_child(random_studio: Studio, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from tests.pruning_plans import plan_of
    from zimage_studio.core.pruning.artifact import write_pruned
    from zimage_studio.records.progress import silent

    parent = Path(random_studio.models.get("one").path)
    child = random_studio.settings.data / "models" / "child"
    plan = plan_of(parent, ("ffn",), ratio=0.5)
    write_pruned(parent, child, plan, progress=silent)
    width = plan.after.blocks[-2].ffn
    key = f"transformer.layers.{plan.after.blocks[-2].index}.feed_forward.w1"
    rows = plan.before.blocks[-2].ffn
    save_file(
        {f"{key}.lora_A.weight": torch.randn(2, 64), f"{key}.lora_B.weight": torch.randn(rows, 2)},
        tmp_path / "l.safetensors",
    )
    made = random_studio.compression.carry_lora(tmp_path / "l.safetensors", "child", tmp_path / "c.safetensors")
    assert (made.kept, made.dropped) == (2, 0)
    assert load_file(tmp_path / "c.safetensors")[f"{key}.lora_B.weight"].shape == (width, 2)
    with pytest.raises(UserError, match="not cut by a plan"):
        random_studio.compression.carry_lora(tmp_path / "l.safetensors", "one", tmp_path / "d.safetensors")


def test_a_plan_is_never_overwritten_without_a_word(random_studio: Studio, two_models: Path) -> None:
    from tests.pruning_plans import plan_of

    service = random_studio.compression
    first = service.save_plan(plan_of(two_models / "one", ("ffn",), ratio=0.5), "first")
    other = service.save_plan(plan_of(two_models / "one", ("ffn",), ratio=0.25), "other")
    edits = [{"stack": "layers", "index": 0, "kept": False}]
    asks = (
        lambda **how: service.edit_plan("first", edits, save_as="other", **how),
        lambda **how: service.save_plan(first.plan, "other", **how),
        lambda **how: service.plan({"model": "one", "kinds": "ffn", "ratio": 0.5}, save_as="other", **how),
    )
    for ask in asks:
        with pytest.raises(UserError, match="There is a plan called other already"):
            ask()
        with pytest.raises(InvalidInputError):
            ask(overwrite="yes")
    assert service.get_plan("other").plan == other.plan
    assert random_studio.jobs.list() == ()

    assert service.edit_plan("first", edits, save_as="third").plan.edited
    assert service.get_plan("first").plan == first.plan
    changed = service.edit_plan("first", edits, save_as="other", overwrite=True)
    assert service.get_plan("other").plan == changed.plan != other.plan
    assert service.edit_plan("other", edits).id == "other"  # in its own place: that is what was asked


def test_a_plan_that_a_job_is_going_to_save_has_its_name_already(random_studio: Studio, two_models: Path) -> None:
    from tests.pruning_plans import plan_of

    service, asked = random_studio.compression, {"model": "one", "kinds": "ffn", "ratio": 0.5}
    job = service.plan(asked, save_as="mine")
    with pytest.raises(UserError, match="There is a plan called mine already"):
        service.plan(asked, save_as="mine")
    with pytest.raises(UserError, match="There is a plan called mine already"):
        service.save_plan(plan_of(two_models / "one", ("ffn",), ratio=0.5), "mine")
    assert random_studio.jobs.wait(job.id, UNTIL_S * 3).result["id"] == "mine"
    assert service.get_plan("mine").plan.target == {"ratio": 0.5}
