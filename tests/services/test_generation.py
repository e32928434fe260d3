"""Jobs: every one ends in one state, none is lost or doubled, and nothing before a job changes its pixels."""

import threading
import time

import pytest
import torch

from zimage_studio.errors import BusyError, Cancelled, NonFiniteError, StorageError, UserError
from zimage_studio.services.generation import GenerationJob
from zimage_studio.services.manager import CallMeter
from zimage_studio.services.studio import Studio, build_studio

QUICK = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 2, "guidance": 0}
LONG = {**QUICK, "steps": 200, "guidance": 1}
WAIT_S = 60


def pixels(studio: Studio, model: str = "one", **values: object) -> str:
    (image,) = studio.generation.submit({**QUICK, "seed": 3, **values}, model=model).result(WAIT_S)
    return image.recipe.outcome.pixels_sha256


def running(studio: Studio, **values: object) -> GenerationJob:
    """A long job that has made its first step."""
    job = studio.generation.submit({**LONG, **values}, model="one", session="long")
    deadline = time.monotonic() + WAIT_S
    while not (job.view.state == "running" and job.view.done >= 1):
        assert time.monotonic() < deadline, job.view
        job.wait_change(job.view.version, 1)
    return job


def test_an_image_and_its_recipe(random_studio):
    (image,) = random_studio.generation.submit({**QUICK, "seed": 3}, model="one").result(WAIT_S)
    recipe = image.recipe
    assert recipe.request.seed == 3
    assert recipe.model.key == "one" and len(recipe.model.sha256) == 64
    assert set(recipe.numerics.dtypes) == {"text_encoder", "transformer", "vae"}
    assert len(recipe.numerics.sigmas) == 3
    assert {"torch", "diffusers", "studio"} <= recipe.stack.keys()
    assert random_studio.images.get(image.id) == image
    assert image.path.is_file()


def test_a_batch_is_made_of_the_same_images_as_single_requests(random_studio):
    images = random_studio.generation.submit({**QUICK, "seed": 3, "count": 3}, model="one").result(WAIT_S)
    assert [image.recipe.request.seed for image in images] == [3, 4, 5]
    assert images[2].recipe.outcome.pixels_sha256 == pixels(random_studio, seed=5)


def test_pixels_depend_on_nothing_that_ran_before(random_studio):
    first = pixels(random_studio)
    other_model = pixels(random_studio, model="two")
    assert other_model != first
    assert pixels(random_studio) == first, "after another model was loaded in between"
    job = running(random_studio)
    random_studio.generation.stop_job(job)
    with pytest.raises(Cancelled):
        job.result(WAIT_S)
    assert pixels(random_studio) == first, "after a stopped job"
    with pytest.raises(UserError, match="512"):
        random_studio.generation.submit({**QUICK, "prompt": "猫狗 " * 400}, model="one").result(WAIT_S)
    assert pixels(random_studio) == first, "after a failed job"


def test_a_restart_changes_no_pixel(random_studio, settings):
    before = pixels(random_studio)
    again = build_studio(random_studio.settings)
    again.start()
    try:
        assert pixels(again) == before
    finally:
        again.begin_stop()
        again.close()


def test_many_clients_at_once_get_their_own_images(random_studio):
    """Eight threads, three calls each: nothing lost, doubled or misdelivered, one call at a time."""
    results: dict[tuple[int, int], tuple[str, int]] = {}
    problems: list[Exception] = []

    def client(number: int) -> None:
        for call in range(3):
            values = {**QUICK, "prompt": f"client {number} call {call}", "seed": 100 * number + call}
            try:
                job = random_studio.generation.submit(values, model="one", session=f"s{number}")
                (image,) = job.result(WAIT_S)
                results[number, call] = (image.recipe.request.prompt, image.recipe.request.seed)
            except Exception as error:  # noqa: BLE001 - reported by the assertion below
                problems.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not problems
    assert results == {(n, c): (f"client {n} call {c}", 100 * n + c) for n in range(8) for c in range(3)}
    assert random_studio.images.page()[1] == 24
    assert random_studio.manager.meter.peak == 1


def test_the_queue_is_bounded_in_all_and_for_each_visitor(random_studio):
    job = running(random_studio)
    for _ in range(4):
        random_studio.generation.submit(QUICK, model="one", session="greedy")
    with pytest.raises(BusyError, match=r"already have 4 .* at most 4"):
        random_studio.generation.submit(QUICK, model="one", session="greedy")
    for number in range(12):
        random_studio.generation.submit(QUICK, model="one", session=f"s{number}")
    with pytest.raises(BusyError, match=r"16 jobs are waiting.*about \d+ s"):
        random_studio.generation.submit(QUICK, model="one", session="late")
    job.stop()


def test_a_waiting_job_knows_its_place_and_can_be_stopped_there(random_studio):
    first = running(random_studio)
    second = random_studio.generation.submit(QUICK, model="one", session="b")
    third = random_studio.generation.submit(QUICK, model="one", session="c")
    assert (second.view.ahead, third.view.ahead) == (1, 2)
    assert random_studio.generation.stop("b") == 1
    assert second.view.state == "stopped"
    assert third.view.ahead == 1
    first.stop()
    assert third.result(WAIT_S)


def test_a_stop_ends_within_a_step_and_may_be_repeated(random_studio):
    job = running(random_studio)
    at = job.view.done
    job.stop()
    job.stop()
    with pytest.raises(Cancelled):
        job.result(WAIT_S)
    assert job.view.state == "stopped"
    assert job.view.done <= at + 2
    assert random_studio.images.page()[1] == 0


def first_image_of(job: GenerationJob) -> None:
    deadline = time.monotonic() + WAIT_S
    while not job.view.images:
        assert time.monotonic() < deadline and not job.view.finished, job.view
        job.wait_change(job.view.version, 1)


def test_a_stop_in_a_batch_keeps_what_was_drawn(random_studio):
    job = random_studio.generation.submit({**QUICK, "steps": 40, "count": 5}, model="one")
    first_image_of(job)
    random_studio.generation.stop_job(job)
    with pytest.raises(Cancelled):
        job.result(WAIT_S)
    kept = job.view.images
    assert 1 <= len(kept) < 5
    assert [image.recipe.index for image in kept] == list(range(len(kept)))
    assert random_studio.images.of_job(job.id) == kept


def test_an_image_that_cannot_be_saved_ends_the_batch_and_costs_no_other(random_studio):
    """Saving goes on while the next image is drawn; its failure is the job's, and at most one drawing is in vain."""
    job = random_studio.generation.submit({**QUICK, "steps": 40, "count": 5}, model="one")
    first_image_of(job)
    month = job.view.images[0].path.parent
    moved = month.rename(month.with_name("moved"))
    month.write_text("a file where the folder was")
    with pytest.raises(StorageError, match="cannot be written"):
        job.result(WAIT_S)
    assert job.view.state == "failed"
    assert len(job.view.images) <= 2
    assert random_studio.manager.meter.total <= len(job.view.images) + 2
    month.unlink()
    moved.rename(month)
    assert random_studio.images.of_job(job.id) == job.view.images
    assert pixels(random_studio)


def test_the_pipeline_is_looked_at_after_each_loan(random_studio):
    pixels(random_studio)
    random_studio.manager.submit(lambda: None).result(WAIT_S)
    before = random_studio.manager.snapshot
    pixels(random_studio)
    random_studio.manager.submit(lambda: None).result(WAIT_S)
    after = random_studio.manager.snapshot
    assert after is not before and after == before


def test_a_foreign_job_looks_like_no_job(random_studio):
    job = random_studio.generation.submit(QUICK, model="one", session="mine")
    for wrong in (job.id, "nothing", None, 7, "x" * 10**6):
        with pytest.raises(UserError) as refused:
            random_studio.generation.job(wrong, "yours")
        assert refused.value.key == "unknown_job"
    assert random_studio.generation.job(job.id, "mine") is job


def test_a_bad_request_is_refused_before_it_is_queued(random_studio):
    with pytest.raises(UserError, match="multiple of 16"):
        random_studio.generation.submit({**QUICK, "width": 100}, model="one")
    with pytest.raises(UserError, match="no model called"):
        random_studio.generation.submit(QUICK, model="../../etc")


def test_progress_counts_steps_tells_the_time_left_and_shows_a_preview(random_studio):
    job = running(random_studio)
    seen = [job.view]
    while seen[-1].done < 30:
        seen.append(job.wait_change(seen[-1].version, 5))
    job.stop()
    assert all(view.total == 200 for view in seen)
    assert any(view.preview is not None for view in seen)
    assert seen[-1].seconds_left is not None and seen[-1].seconds_left > 0


def test_a_model_of_nan_fails_by_name_and_saves_nothing(settings, two_models, tmp_path):
    from tests import tiny_random

    broken = tiny_random.pipeline()
    with torch.no_grad():
        broken.transformer.layers[0].feed_forward.w1.weight[0] = float("nan")
    broken.save_pretrained(tmp_path / "models" / "broken")
    from dataclasses import replace

    studio = build_studio(replace(settings, models=(tmp_path / "models", two_models), model="broken"))
    studio.manager.start()
    try:
        with pytest.raises(NonFiniteError, match="step 1 of 2"):
            studio.generation.submit(QUICK, model="broken").result(WAIT_S)
        assert studio.images.page()[1] == 0
        assert studio.generation.submit(QUICK, model="one").result(WAIT_S)
    finally:
        studio.begin_stop()
        studio.close()


def test_stopping_takes_no_new_work_and_lets_the_running_image_finish(random_studio):
    random_studio.generation.submit(QUICK, model="one").result(WAIT_S)
    job = random_studio.generation.submit({**LONG, "steps": 20}, model="one")
    while job.view.state == "waiting":
        job.wait_change(job.view.version, 1)
    random_studio.begin_stop()
    with pytest.raises(BusyError, match="stopping"):
        random_studio.generation.submit(QUICK, model="one")
    assert random_studio.finish(WAIT_S)
    assert job.view.state == "done"


def test_a_second_call_at_the_same_time_would_fail_loudly():
    meter = CallMeter()
    with meter.call(), pytest.raises(RuntimeError, match="2 pipeline calls"), meter.call():
        pass
    assert (meter.inside, meter.peak) == (0, 2)


def test_borrowing_from_another_thread_is_a_bug(random_studio):
    from zimage_studio.records.progress import silent

    with pytest.raises(RuntimeError, match="owner thread"), random_studio.manager.borrow("one", silent):
        pass


def test_whoever_starts_studio_may_name_a_path_but_visitors_may_not(settings, two_models):
    from dataclasses import replace

    studio = build_studio(replace(settings, model=str(two_models / "two")))
    assert studio.settings.model == "two"
    with pytest.raises(UserError, match="no model called"):
        studio.generation.submit(QUICK, model=str(two_models / "one"))
    with pytest.raises(UserError, match="nothing at"):
        build_studio(replace(settings, model=str(two_models / "three")))
