"""The profile in use, saved profiles, states of the live pipeline, the planner, measuring, readouts."""

import csv
import io
import json
import threading
import time
from dataclasses import replace

import pytest

from tests.test_architecture import imported_by
from zimage_studio.errors import BusyError, Cancelled, InvalidInputError, OutOfMemoryError, UserError
from zimage_studio.records.measured import MeasuredRow
from zimage_studio.records.memory import EXACT, GIB, PHASES, PRESETS, MemoryProfile, placed_as
from zimage_studio.services.measuring import MeasureJob, Measurements
from zimage_studio.services.studio import build_studio

MINE = MemoryProfile(name="mine", feed_forward_chunks=2)
QUICK = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 2, "guidance": 0, "seed": 3}
SMALL = {"width": 64, "height": 64, "steps": 1, "guidance": 0}
WAIT_S = 120


def draw(studio, **words):
    (image,) = studio.generation.submit(QUICK, model="one", **words).result(WAIT_S)
    return image.recipe.numerics.memory


# --- the profile in use


def test_importing_it_imports_no_torch():
    assert "torch" not in imported_by("zimage_studio.services.memory")


def test_the_profile_in_use_is_kept_over_a_restart(settings):
    studio = build_studio(settings)
    assert studio.memory.profile == EXACT
    studio.memory.choose(MINE)
    again = build_studio(settings)
    assert again.memory.profile == MINE
    assert list(settings.data.glob(".*.tmp")) == []


def test_until_one_is_chosen_the_setting_decides(settings, tmp_path):
    assert build_studio(replace(settings, profile="tiled")).memory.profile == PRESETS["tiled"]
    (tmp_path / "p.json").write_text(MINE.to_json(), encoding="utf-8")
    studio = build_studio(replace(settings, profile=str(tmp_path / "p.json")))
    assert studio.memory.profile == MINE
    with pytest.raises(InvalidInputError, match="magic"):
        build_studio(replace(settings, profile="magic"))


def test_without_a_choice_a_model_that_has_plenty_of_room_goes_under_exact(random_studio):
    assert random_studio.memory.settled is None
    assert draw(random_studio) == {}
    assert random_studio.memory.profile == EXACT


def test_without_a_choice_a_model_that_is_too_large_goes_under_what_fits(settings, two_models, monkeypatch):
    from zimage_studio.core.memory import advice

    studio = build_studio(replace(settings, models=(two_models,), model="one"))
    studio.manager.start()
    studio.manager.import_engine()
    needs = studio.memory.estimate(EXACT, model="one").peak_bytes + advice.GIB // 4
    room = advice.Room(needs)  # the peak itself, but not the reserve of 5 % and 256 MiB beside it
    monkeypatch.setattr(advice, "_room", lambda device, held: room)
    job = studio.generation.submit(QUICK, model="one")
    numerics = job.result(WAIT_S)[0].recipe.numerics
    assert numerics.memory != {} or studio.memory.profile != EXACT
    assert studio.memory.profile.name not in ("", "exact")
    studio.memory.choose(MINE)
    assert draw(studio) == {"feed_forward_chunks": 2}, "a person's choice goes first"
    studio.memory.choose_none()
    assert studio.memory.settled is None
    studio.close()


def test_a_choice_holds_for_the_next_job_not_for_the_one_that_waits(random_studio):
    gate = threading.Event()
    random_studio.manager.submit(lambda: gate.wait(WAIT_S))
    waiting = random_studio.generation.submit(QUICK, model="one")
    random_studio.memory.choose(MINE)
    later = random_studio.generation.submit(QUICK, model="one")
    gate.set()
    assert waiting.result(WAIT_S)[0].recipe.numerics.memory == {}
    assert later.result(WAIT_S)[0].recipe.numerics.memory == {"feed_forward_chunks": 2}
    assert draw(random_studio, profile=EXACT) == {}


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"schema": 9}', '{"schema": 1, "chosen": {"warp": 1}, "saved": []}', "\ud800"]
)
def test_a_damaged_file_is_left_out_and_said_in_the_log(settings, caplog, content):
    settings.data.mkdir(parents=True)
    (settings.data / "memory.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    studio = build_studio(settings)
    assert (studio.memory.profile, studio.memory.saved()) == (EXACT, {})
    assert "memory.json cannot be read" in caplog.text
    studio.memory.choose(MINE)
    assert studio.memory.profile == MINE


# --- saved profiles


def test_saved_profiles_are_listed_found_exported_and_deleted(settings):
    memory = build_studio(settings).memory
    memory.save(MINE)
    memory.save(MINE, "other")
    again = build_studio(settings).memory
    assert list(again.profiles()) == [*PRESETS, "mine", "other"]
    assert again.find("other") == replace(MINE, name="other")
    assert again.read(again.export("mine")) == MINE
    again.delete("mine")
    assert list(memory.saved()) == ["other"]
    with pytest.raises(InvalidInputError, match="mine"):
        again.delete("mine")


def test_saving_again_replaces(settings):
    memory = build_studio(settings).memory
    memory.save(MINE)
    memory.save(replace(MINE, feed_forward_chunks=8))
    assert memory.saved()["mine"].feed_forward_chunks == 8


@pytest.mark.parametrize("name", ["", "  ", "exact", "x" * 61, "a\0b", 7])
def test_a_name_that_cannot_be_is_refused(settings, name):
    memory = build_studio(settings).memory
    with pytest.raises(InvalidInputError):
        memory.save(MINE, name)
    assert memory.saved() == {}


def test_not_more_than_a_hundred_are_kept(settings):
    memory = build_studio(settings).memory
    for number in range(100):
        memory.save(MINE, f"p{number}")
    with pytest.raises(InvalidInputError, match="at most 100"):
        memory.save(MINE, "one more")
    memory.save(MINE, "p7")


def test_strangers_name_no_files(settings, tmp_path):
    (tmp_path / "p.json").write_text(MINE.to_json(), encoding="utf-8")
    memory = build_studio(settings).memory
    with pytest.raises(InvalidInputError):
        memory.find(str(tmp_path / "p.json"))
    with pytest.raises(InvalidInputError, match="at most"):
        memory.read("x" * 2**19)


def test_a_replay_keeps_the_numbers_of_its_recipe_and_the_places_of_the_profile_in_use(random_studio):
    from zimage_studio.records.progress import silent
    from zimage_studio.services.replay import read_original

    (made,) = random_studio.generation.submit(QUICK, model="one", profile=PRESETS["chunked"]).result(WAIT_S)
    random_studio.memory.choose(replace(PRESETS["from_disk"], vae_tile_px=64))
    job = random_studio.replay.start(read_original(made.path), silent, session="x")
    assert job.profile.changed == {
        "feed_forward_chunks": 4, "evict_text_encoder": True, "group_offload": "block", "group_offload_disk": True,
    }  # fmt: skip
    (again,) = job.result(WAIT_S)
    assert random_studio.replay.verdict(read_original(made.path), again).verdict == "identical"


def test_places_that_contradict_the_numbers_are_left_out():
    recorded = MemoryProfile(quantization="int8")
    assert placed_as(recorded, PRESETS["from_disk"]) == recorded
    assert placed_as(recorded, PRESETS["text_out"]).evict_text_encoder


# --- the states


def test_before_anything_is_loaded_it_says_so(settings):
    states = build_studio(settings).memory.states()
    assert (states.states, states.note) == ((), "memory.states.none")


def test_states_come_from_the_live_pipeline_and_a_choice_is_pending_until_applied(random_studio):
    draw(random_studio)
    random_studio.memory.choose(MINE)
    before = random_studio.memory.states((64, 64))
    assert before.pending and before.profile == EXACT and before.chosen == MINE
    assert {state.name: state.state for state in before.states}["feed_forward_chunks"] == "no_effect"
    random_studio.memory.apply().result(WAIT_S)
    after = random_studio.memory.states((64, 64))
    assert (after.pending, after.note, after.model, after.device) == (False, "", "one", "cpu")
    assert {state.name: state.state for state in after.states}["feed_forward_chunks"] == "applied"


def test_while_a_job_runs_the_last_states_are_given_at_once(random_studio):
    draw(random_studio)
    job = random_studio.generation.submit({**QUICK, "steps": 200, "guidance": 1}, model="one")
    while job.view.done < 1:
        job.wait_change(job.view.version, 1)
    states = random_studio.memory.states((64, 64))
    assert states.note == "memory.states.busy" and states.states
    job.stop()


# --- the planner


def test_the_plan_is_made_from_shapes_while_a_job_runs(random_studio):
    job = random_studio.generation.submit({**QUICK, "steps": 200, "guidance": 1}, model="one")
    while job.view.done < 1:
        job.wait_change(job.view.version, 1)
    plan = random_studio.memory.plan((64, 64), free_gib=16)
    assert not job.view.finished
    job.stop()
    assert plan.fits and plan.profile == EXACT
    assert [phase.phase for phase in plan.estimate.phases] == list(PHASES)
    assert plan.free_bytes == 16 * GIB
    less = random_studio.memory.estimate(PRESETS["from_disk"], (64, 64))
    assert less.peak_bytes < random_studio.memory.estimate(EXACT, (64, 64)).peak_bytes


def test_a_plan_for_a_single_file_and_for_weights_of_few_bits(settings, tmp_path):
    from tests import tiny_random

    tiny_random.pipeline().save_pretrained(tmp_path / "models" / "whole")
    tiny_random.write_comfy(tiny_random.transformer(), tmp_path / "models" / "single.safetensors")
    tiny_random.write_gguf(tiny_random.transformer(), tmp_path / "models" / "packed.gguf", "Q8_0")
    studio = build_studio(replace(settings, models=(tmp_path / "models",), model="whole"))
    studio.manager.start()
    try:
        keys = {model.kind: model.key for model in studio.models.list() if model.key != "tiny" and not model.missing}
        peaks = {
            kind: studio.memory.plan((64, 64), model=key, free_gib=16).estimate.phases[1].weights_bytes
            for kind, key in keys.items()
            if kind in ("folder", "single_file", "gguf")
        }
    finally:
        studio.close()
    assert peaks["single_file"] == peaks["folder"] > peaks["gguf"]


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ({"size": (100, 64)}, InvalidInputError),
        ({"free_gib": "nan"}, InvalidInputError),
        ({"free_gib": -1}, InvalidInputError),
        ({"guidance": 99}, InvalidInputError),
        ({"device": "tpu"}, InvalidInputError),
        ({"model": "nothing"}, UserError),
        ({"model": "z-image-turbo"}, UserError),
    ],
)
def test_what_cannot_be_planned_is_refused(random_studio, words, kind):
    with pytest.raises(kind):
        random_studio.memory.plan(**{"size": (64, 64), **words})


# --- measuring


def test_a_measurement_is_kept_and_exported(random_studio, settings):
    job = random_studio.memory.measure([EXACT, PRESETS["int4"], replace(MINE, name="")], SMALL, model="one")
    exact, packed, mine = job.result(WAIT_S)
    assert (exact.identical, exact.psnr_db, mine.identical) == (True, None, True)
    assert packed.psnr_db > 5 and packed.peak_bytes > 0
    assert {state.name: state.state for state in packed.states}["quantization"] == "applied"
    assert [row.name for row in build_studio(settings).memory.rows()] == ["custom", "int4", "exact"]
    kept = json.loads(random_studio.memory.export_rows("json"))
    assert [MeasuredRow.from_dict(row) for row in kept] == [exact, packed, mine]
    table = list(csv.DictReader(io.StringIO(random_studio.memory.export_rows("csv"))))
    assert [line["profile"] for line in table] == ["exact", "int4", "custom"]
    assert int(table[0]["peak_bytes_denoise"]) == exact.phase_peak_bytes["denoise"]
    with pytest.raises(InvalidInputError, match="xlsx"):
        random_studio.memory.export_rows("xlsx")
    assert random_studio.memory.clear_rows() == 3
    assert random_studio.memory.rows() == ()


def test_measuring_stops_at_its_next_step_and_keeps_its_rows(random_studio):
    job = random_studio.memory.measure([EXACT, EXACT], {**SMALL, "steps": 150}, model="one")
    with pytest.raises(BusyError, match="measurement is running"):
        random_studio.memory.measure([EXACT], SMALL, model="one")
    while not job.view.rows:
        assert not job.view.finished, job.view
        job.wait_change(job.view.version, 5)
    assert (random_studio.memory.stop("another"), random_studio.memory.stop("local")) == (0, 1)
    with pytest.raises(Cancelled):
        job.result(WAIT_S)
    assert len(job.view.rows) == len(random_studio.memory.rows()) == 1
    assert random_studio.memory.measure([EXACT], SMALL, model="one").result(WAIT_S)


def test_others_get_their_turn_between_two_profiles(random_studio):
    job = random_studio.memory.measure([EXACT] * 4, {**SMALL, "steps": 20}, model="one")
    while job.view.state == "waiting":
        job.wait_change(job.view.version, 1)
    image = random_studio.generation.submit(QUICK, model="one")
    image.result(WAIT_S)
    assert not job.view.finished
    assert len(job.result(WAIT_S)) == 4


def test_what_cannot_be_measured_is_refused_before_it_is_queued(random_studio):
    memory = random_studio.memory
    for profiles, values, kind in (
        ([], SMALL, InvalidInputError),
        ([EXACT] * 13, SMALL, InvalidInputError),
        ([EXACT], {**SMALL, "width": 100}, InvalidInputError),
        ([EXACT], {**SMALL, "source": "0" * 64, "strength": 0.5}, InvalidInputError),
        ([EXACT], {**SMALL, "warp": 1}, InvalidInputError),
    ):
        with pytest.raises(kind):
            memory.measure(profiles, values, model="one")
    with pytest.raises(UserError, match="no model called"):
        memory.measure([EXACT], SMALL, model="nothing")
    assert memory.measuring is None


def test_a_model_that_cannot_be_loaded_fails_by_name(settings, two_models, tmp_path):
    import shutil

    shutil.copytree(two_models / "one", tmp_path / "models" / "torn")
    weights = next((tmp_path / "models" / "torn" / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    studio = build_studio(replace(settings, models=(tmp_path / "models",)))
    studio.manager.start()
    try:
        with pytest.raises(UserError):
            studio.memory.measure([EXACT], SMALL, model="torn").result(WAIT_S)
    finally:
        studio.close()


def row(**changes: object) -> MeasuredRow:
    values = {
        "created": "2026-01-01T00:00:00.000+00:00", "job": "j", "model": "one", "device": "cpu", "profile": EXACT,
        "width": 64, "height": 64, "steps": 1, "guidance": 0.0,
    }  # fmt: skip
    return MeasuredRow(**{**values, **changes})


def test_a_name_that_a_spreadsheet_would_run_is_text(tmp_path):
    rows = Measurements(tmp_path / "m.sqlite")
    rows.add(row(profile=replace(EXACT, name="=1+1")))
    assert "'=1+1" in rows.export("csv")


def test_a_row_without_numbers_says_why(tmp_path):
    rows = Measurements(tmp_path / "m.sqlite")
    rows.add(row(error="out_of_memory", error_values={"width": "64", "height": "64"}))
    (kept,) = rows.newest(10)
    assert isinstance(kept.problem, UserError) and "64×64" in str(kept.problem)
    assert kept.public()["seconds"] is None
    assert OutOfMemoryError("out_of_memory", width=64, height=64).text("zh") == kept.problem.text("zh")


# --- readouts


def test_the_readouts_run_with_the_studio(random_studio):
    deadline = time.monotonic() + 20
    while random_studio.memory.telemetry.latest is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    reading = random_studio.memory.reading()
    assert reading.ram_total_bytes > reading.process_bytes > 0
    random_studio.begin_stop()
    random_studio.close()
    assert not random_studio.memory.telemetry.running


def test_without_a_thread_a_reading_is_taken_when_asked(settings):
    assert build_studio(settings).memory.reading().ram_total_bytes > 0


def test_a_stopping_studio_measures_no_more(random_studio):
    random_studio.begin_stop()
    with pytest.raises(BusyError, match="stopping"):
        random_studio.memory.measure([EXACT], SMALL, model="one")


def test_a_measuring_that_waits_is_stopped_before_it_begins(random_studio):
    gate = threading.Event()
    random_studio.manager.submit(lambda: gate.wait(WAIT_S))
    job: MeasureJob = random_studio.memory.measure([EXACT], SMALL, model="one")
    job.stop()
    gate.set()
    with pytest.raises(Cancelled):
        job.result(WAIT_S)
    assert job.view.rows == ()
