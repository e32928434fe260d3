"""The Memory tab: what is shown is what was read, and every switch of the record is there."""

import dataclasses
import re
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest

from zimage_studio.errors import InvalidInputError, UserError
from zimage_studio.messages import LANGS, say
from zimage_studio.records.measured import MeasuredRow
from zimage_studio.records.memory import (
    CHUNKED,
    EXACT,
    GIB,
    INT8,
    PRESETS,
    Estimate,
    MemoryProfile,
    PhasePeak,
    Plan,
    SwitchState,
)
from zimage_studio.records.telemetry import GpuReading, Reading, TorchUsage
from zimage_studio.services.measuring import MeasureView
from zimage_studio.services.memory import MemoryService, States
from zimage_studio.services.studio import build_studio
from zimage_studio.settings import Settings
from zimage_studio.ui.memory import form as memory_form
from zimage_studio.ui.memory import gauge as memory_gauge
from zimage_studio.ui.memory import profile as memory_profile
from zimage_studio.ui.memory import table as memory_table
from zimage_studio.ui.memory import view as memory_view
from zimage_studio.ui.texts import Texts

EN, ZH = Texts("en"), Texts("zh")
HOSTILE = "<img src=x onerror=alert(1)>"
GPU = GpuReading(
    index=0, id="GPU-a", name="Card", total_bytes=24 * GIB, free_bytes=12 * GIB, used_bytes=12 * GIB,
    ours_bytes=9 * GIB, utilisation_percent=97, temperature_c=61, power_w=250.4,
)  # fmt: skip
RAM = Reading(
    time_s=1000.0, ram_total_bytes=16 * GIB, ram_available_bytes=10 * GIB, process_bytes=GIB, children_bytes=GIB,
    note="telemetry.no_library",
)  # fmt: skip


def plain(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


# --- gauge


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0.0 MiB"), (2**20, "1.0 MiB"), (412 * 2**20, "412 MiB"), (3.14 * GIB, "3.1 GiB"), (139 * GIB, "139 GiB")],
)
def test_an_amount_is_short(count: float, words: str):
    assert memory_gauge.amount(count) == words


def test_without_a_gpu_the_ram_is_shown_and_one_sentence_says_why():
    html = memory_gauge.gauge([RAM], EN)
    assert html.count("zs-meter") == 1
    assert say("telemetry.no_library", "en") in html
    assert "Studio 2.0 GiB others 4.0 GiB free 10.0 GiB" in plain(html)
    assert "RAM 6.0 GiB of 16.0 GiB" in plain(memory_gauge.slim(RAM, EN))


def test_a_gpu_says_everything_it_knows():
    reading = replace(
        RAM, note="", gpus=(GPU,), torch=(TorchUsage(id="GPU-a", allocated_bytes=8 * GIB, reserved_bytes=9 * GIB),)
    )
    words = plain(memory_gauge.gauge([reading], EN))
    for said in ("GPU 0 · Card", "24.0 GiB", "Studio 9.0 GiB", "others 3.0 GiB", "97 % busy", "61 °C", "250 W"):
        assert said in words
    assert "torch: 8.0 GiB in tensors, 9.0 GiB reserved" in words
    assert "GPU 12.0 GiB of 24.0 GiB" in plain(memory_gauge.slim(reading, EN))


def test_a_gpu_that_went_away_is_told_and_the_header_falls_back_to_ram():
    reading = replace(RAM, gpus=(GpuReading(index=0, id="GPU-a", name="Card", lost=True),), note="")
    assert say("telemetry.gpu_lost", "en") in memory_gauge.gauge([reading], EN)
    assert "RAM" in memory_gauge.slim(reading, EN)


def test_nothing_known_is_no_exception():
    nothing = Reading(time_s=1.0, gpus=(GpuReading(index=0),))
    assert "does not say" in memory_gauge.gauge([nothing], EN)
    assert memory_gauge.slim(nothing, EN) == ""
    assert memory_gauge.slim(None, EN) == ""
    assert "zs-meter" not in memory_gauge.gauge([], EN)


def test_the_header_shows_the_gpu_that_torch_uses():
    other = replace(GPU, index=1, id="GPU-b", used_bytes=GIB)
    reading = replace(RAM, gpus=(GPU, other), torch=(TorchUsage(id="GPU-b", allocated_bytes=1, reserved_bytes=1),))
    assert memory_gauge.main_gpu(reading) == other


def test_the_line_stays_inside_its_box_is_thinned_and_breaks_at_gaps():
    readings = [replace(RAM, time_s=700.0 + i, gpus=(GPU,) if i != 150 else ()) for i in range(301)]
    assert len(memory_gauge.thinned(readings)) <= memory_gauge.LINE_POINTS + 1
    assert memory_gauge.thinned(readings)[-1] is readings[-1]
    html = memory_gauge.gauge(readings, EN)
    points = [p.split(",") for shape in re.findall(r'points="([^"]+)"', html) for p in shape.split()]
    assert points
    assert all(0 <= float(x) <= memory_gauge.LINE_WIDTH for x, _ in points)
    assert all(0 <= float(y) <= memory_gauge.LINE_HEIGHT for _, y in points)
    gone = [replace(reading, gpus=()) if 140 <= i <= 160 else reading for i, reading in enumerate(readings)]
    assert html.count("zs-load") < memory_gauge.gauge(gone, EN).count("zs-load")


# --- switches


def test_every_switch_has_a_widget_and_says_something_in_both_languages():
    laid_out = [name for _, names in memory_form.GROUPS for name in names]
    assert sorted(laid_out) == sorted(EXACT.switches)
    for t in (EN, ZH):
        with gr.Blocks():
            form = memory_form.add_profile_form(EXACT, t)
        assert list(form.switches) == laid_out
        assert all(t(f"hint_{name}") in cell.value.replace("&#x27;", "'") for name, cell in form.truths.items())


@pytest.mark.parametrize("name", PRESETS)
def test_a_form_that_nobody_touched_is_the_profile_it_shows(name: str):
    with gr.Blocks():
        form = memory_form.add_profile_form(EXACT, EN)
    updates = form.show(PRESETS[name])
    assert form.profile([updates[widget] for widget in form.widgets], name) == PRESETS[name]


def test_an_emptied_number_is_as_in_exact():
    with gr.Blocks():
        form = memory_form.add_profile_form(EXACT, EN)
    widgets = ["" if name == "embedding_cache" else None for name in form.switches]
    assert form.profile(widgets).same_switches(EXACT)


def test_a_contradiction_names_the_pair_in_the_language_of_the_page():
    with gr.Blocks():
        form = memory_form.add_profile_form(EXACT, ZH)
    values = {**EXACT.switches, "fp8_storage": True, "quantization": "int8"}
    with pytest.raises(InvalidInputError) as refused:
        form.profile([values[name] for name in form.switches])
    assert refused.value.text("zh").count("fp8") == 1
    assert "量化" in refused.value.text("zh")


def state(name: str, requested: object, kind: str, reason: str, **values: object) -> SwitchState:
    return SwitchState(name, requested, kind, reason, values)  # type: ignore[arg-type]


@pytest.mark.parametrize("t", [EN, ZH], ids=LANGS)
def test_a_switch_says_what_the_live_pipeline_said(t: Texts):
    tell = memory_view.truth
    applied = state("feed_forward_chunks", 4, "applied", "memory.chunks.is", count=34, value=4)
    assert 'data-state="applied"' in tell("feed_forward_chunks", 4, applied, t)
    assert say("memory.chunks.is", t.lang, count=34, value=4) in tell("feed_forward_chunks", 4, applied, t)
    idle = state("attention_slicing", True, "no_effect", "memory.slicing.no_hook")
    assert 'data-state="no_effect"' in tell("attention_slicing", True, idle, t)
    refused = state("compile", True, "refused", "memory.quantise_failed", value="x", why=HOSTILE)
    assert 'data-state="refused"' in tell("compile", True, refused, t)
    assert "<img" not in tell("compile", True, refused, t)


def test_a_switch_that_was_only_clicked_is_not_called_applied():
    live = state("compile", False, "no_effect", "memory.off")
    assert 'data-state="pending"' in memory_view.truth("compile", True, live, EN)
    assert 'data-state="off"' in memory_view.truth("compile", False, live, EN)
    assert 'data-state="none"' in memory_view.truth("compile", True, None, EN)


def test_the_summary_names_what_was_asked_for_in_vain():
    profile = replace(CHUNKED, attention_slicing=True, compile=True)
    states = [
        state("feed_forward_chunks", 4, "applied", "memory.chunks.is", count=1, value=4),
        state("attention_slicing", True, "no_effect", "memory.slicing.no_hook"),
        state("compile", True, "refused", "memory.compile.no_compiler"),
    ]
    words = plain(memory_view.summary(States(profile, profile, tuple(states)), EN))
    assert "under chunked; switches at work: 1." in words
    assert "without effect: Attention slicing" in words
    assert "Refused: Compilation" in words


def test_a_preset_says_what_it_gives_up_and_another_profile_what_it_switches():
    assert say("preset.int8", "en") in memory_view.description(INT8, INT8, EN)
    edited = memory_view.description(replace(INT8, compile=True), INT8, EN)
    assert "Changed against int8: Compilation on." in edited
    own = MemoryProfile(name=HOSTILE, vae_tile_px=256)
    assert "Changed against exact: VAE tile 256." in memory_view.description(own, own, EN)
    assert "<img" not in memory_view.description(replace(own, vae_tile_px=512), own, EN)


def test_a_saved_profile_that_took_the_name_of_a_preset_is_not_described_as_it():
    assert say("preset.int8", "en") not in memory_view.description(EXACT, replace(EXACT, name="int8"), EN)


# --- profiles by name


@pytest.fixture
def memory(settings: Settings) -> MemoryService:
    return build_studio(settings).memory


def test_the_profile_in_use_is_marked_and_listed_also_without_a_name(memory: MemoryService):
    choices = dict(memory_profile.profile_choices(memory, EN))
    assert choices["auto (what fits; now exact) · in use"] == memory_profile.AUTO
    memory.choose(EXACT)
    choices = dict(memory_profile.profile_choices(memory, EN))
    assert choices["exact · in use"] == "exact"
    assert choices["auto (what fits)"] == memory_profile.AUTO
    memory.save(replace(EXACT, embedding_cache=7), "mine")
    memory.choose(memory.find("mine"))
    choices = dict(memory_profile.profile_choices(memory, EN))
    assert choices["mine · yours · in use"] == "mine"
    assert choices["exact"] == "exact"
    memory.choose(MemoryProfile(embedding_cache=8))
    choices = dict(memory_profile.profile_choices(memory, EN))
    assert choices["an unnamed profile · in use"] == memory_profile.IN_USE
    assert choices["mine · yours"] == "mine"


def test_what_is_no_profile_is_refused(memory: MemoryService, tmp_path: Path):
    file = tmp_path / "x.json"
    for content in (b"\xff\xfe", b"{", b"[]", b'{"schema": 2}', b" " * (memory_profile.MAX_FILE_BYTES + 1)):
        file.write_bytes(content)
        with pytest.raises(InvalidInputError):
            memory.read(memory_profile.text_of(file))
    file.write_text(INT8.to_json(), "utf-8")
    assert memory.read(memory_profile.text_of(file)) == INT8


def test_the_file_of_a_profile_has_a_name_that_every_system_takes():
    assert memory_profile.file_name(MemoryProfile(name="../我的 card:1")) == "___我的_card_1"
    assert memory_profile.file_name(MemoryProfile()) == "memory_profile"


def test_a_size_that_is_none_does_not_keep_the_switches_from_speaking(memory: MemoryService):
    for side in (None, "", 12.5, -1, "x"):
        assert memory_profile.states_for(memory, side, 128).states == ()


# --- plan and measurements


def plan(**changes: object) -> Plan:
    phases = (PhasePeak("text", GIB, GIB), PhasePeak("denoise", 3 * GIB, 2 * GIB), PhasePeak("decode", 2 * GIB, GIB))
    values = {"profile": "exact", "peak_gib": "3.00", "phase": "phase_denoise", "free_gib": "6.00", "left_gib": "3.00"}
    made = Plan(
        profile=EXACT, fits=True, estimate=Estimate(phases), free_bytes=6 * GIB, headroom_bytes=3 * GIB,
        reason="plan.fits", values=values,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def test_the_plan_is_a_sentence_and_a_bar_for_each_phase():
    html = memory_view.plan(plan(), EN)
    assert "exact fits: 3.00 of 6.00 GiB at its peak (drawing)" in plain(html)
    assert html.count('scope="row"') == 3
    assert "width:33.33%" in html  # 2 of 6 GiB are weights
    assert "left:100.00%" in html  # the limit
    assert 'data-fits="false"' in memory_view.plan(plan(fits=False), EN)


def row(profile: MemoryProfile, **changes: object) -> MeasuredRow:
    peaks = {"text": GIB, "denoise": 4 * GIB, "decode": 2 * GIB}
    made = MeasuredRow(
        created="2026-01-01T00:00:00+00:00", job="j", model="tiny", device="cpu", profile=profile, width=128,
        height=64, steps=8, guidance=2.0, phase_peak_bytes=peaks, seconds=1.5,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def test_the_table_has_each_phase_the_peak_the_time_and_the_distance():
    rows = [row(EXACT, identical=True), row(INT8, identical=False, psnr_db=34.25)]
    words = plain(memory_table.measured(rows, EN))
    assert "128×64 px, 8 steps, guidance 2; tiny on cpu." in words
    assert "exact 1.0 GiB 4.0 GiB 2.0 GiB 4.0 GiB 1.5 s identical" in words
    assert "34.2 dB" in words
    assert memory_table.distance(row(INT8), EN) == "not compared"


def test_the_plot_has_a_bar_for_each_number_and_the_longest_is_full():
    html = memory_table.plot([row(EXACT), row(INT8, seconds=3.0)], EN)
    assert html.count("zs-plot-line") == 8
    assert html.count("width:100.00%") == 3  # two peaks of drawing, one time


@pytest.mark.parametrize("t", [EN, ZH], ids=LANGS)
def test_a_profile_that_could_not_be_run_says_why_and_has_no_bars(t: Texts):
    failed = row(
        EXACT, phase_peak_bytes={}, seconds=None, error="out_of_memory", error_values={"width": "128", "height": "64"}
    )
    html = memory_table.measured([failed], t)
    assert say("out_of_memory", t.lang, width="128", height="64") in plain(html)
    assert "zs-plot" not in html


def test_names_of_profiles_are_text():
    hostile = row(MemoryProfile(name=HOSTILE))
    assert "<img" not in memory_table.measured([hostile], EN)


@pytest.mark.parametrize("t", [EN, ZH], ids=LANGS)
def test_a_measuring_says_how_far_it_is_and_how_it_ended(t: Texts):
    waiting = memory_table.progress(MeasureView(total=2), t)
    assert t("measure_waiting") in waiting
    running = MeasureView(state="running", note="note.denoising", profile="int8", done=1, total=2)
    assert t("measure_forming", name="int8", number=2, total=2) in memory_table.progress(running, t)
    assert 'aria-valuenow="50"' in memory_table.progress(running, t)
    assert t("measure_stopped") in memory_table.progress(replace(running, state="stopped"), t)
    refused = replace(running, state="failed", error=UserError("measure_running"))
    assert say("measure_running", t.lang) in memory_table.progress(refused, t)
    assert memory_table.progress(replace(running, state="done"), t) == ""
