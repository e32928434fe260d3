"""The Compress tab: what a plan, a job, a training and the family look like, and what the forms ask for."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
from PIL import Image

from tests.conftest import TINY
from tests.pruning_plans import plan_of
from zimage_studio.errors import InvalidInputError, UserError
from zimage_studio.messages import LANGS
from zimage_studio.records.compress import parse_prune
from zimage_studio.records.job import JobRecord
from zimage_studio.records.plan import RUNTIMES, BlockCut, BlockShape, Calibration, PrunePlan
from zimage_studio.records.recover import RecoveryConfig, parse_recovery
from zimage_studio.services.family import FamilyMember
from zimage_studio.services.studio import Studio, build_studio
from zimage_studio.settings import Settings
from zimage_studio.ui import present
from zimage_studio.ui.compress import family as compress_family
from zimage_studio.ui.compress import jobs_view, recover_view
from zimage_studio.ui.compress import view as compress_view
from zimage_studio.ui.compress.frame import STEPS, Frame
from zimage_studio.ui.compress.jobs import place_of
from zimage_studio.ui.compress.plan import PlanCard, parse_edits
from zimage_studio.ui.compress.plan_form import PlanForm, add_plan_form, usual
from zimage_studio.ui.compress.recover_form import add_recover_form
from zimage_studio.ui.compress.tab import CARDS
from zimage_studio.ui.compress.tab import _changed as changed
from zimage_studio.ui.texts import Texts

EN, ZH = Texts("en"), Texts("zh")
HOSTILE = "<img src=x onerror=alert(1)>"
ID = "0123456789abcdef"


def plain(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html)).strip()


def job(**changes: object) -> JobRecord:
    values: dict[str, object] = {"id": ID, "kind": "prune", "state": "running", "request": {"model": "tiny"}}
    return JobRecord(**{**values, **changes})


@pytest.fixture(scope="module")
def plan() -> PrunePlan:
    return plan_of(TINY, "ffn,heads,depth", ratio=0.6)


@pytest.fixture
def quiet(settings: Settings) -> Studio:
    """A Studio that loads nothing."""
    return build_studio(settings)


# --- plans


@pytest.mark.parametrize("t", [EN, ZH], ids=LANGS)
def test_a_plan_says_what_goes_what_is_left_and_where_it_loads(plan: PrunePlan, t: Texts):
    html = compress_view.plan(plan, t)
    words = plain(html)
    assert f"{100 * plan.bytes_after / plan.bytes_before:.0f}" in words
    assert f"{plan.predicted_speedup:.2f}" in words
    assert {"en": "a ceiling", "zh": "是上限"}[t.lang] in words
    assert html.count("data-verdict=") == len(RUNTIMES)
    assert compress_view.criterion_name(plan.criterion, t) in words


def test_the_picture_has_every_block_before_and_after(plan: PrunePlan):
    svg = compress_view.bars(plan, EN)
    dropped = sum(not cut.kept for cut in plan.cuts)
    assert dropped > 0
    assert svg.count("<title>") == len(plan.before.blocks)
    assert svg.count('class="zs-dropped"') == dropped
    heights = [float(value) for value in re.findall(r'class="zs-stays"[^>]* height="([\d.]+)"', svg)]
    shares = [row["ffn_after"] / row["ffn_before"] for row in plan.rows()]
    assert heights[::2] == pytest.approx([100 * share for share in shares], abs=0.01)


def test_many_blocks_are_numbered_only_here_and_there(plan: PrunePlan):
    def axis(refiners: int, layers: int) -> list[str]:
        stacks = [("noise_refiner", refiners), ("context_refiner", refiners), ("layers", layers)]
        places = [(stack, index) for stack, count in stacks for index in range(count)]
        shape = replace(plan.before, blocks=tuple(BlockShape(stack, index, 8, 2) for stack, index in places))
        cuts = tuple(BlockCut(stack, index) for stack, index in places)
        found = compress_view.bars(replace(plan, before=shape, cuts=cuts, dim_kept=""), EN)
        return re.findall(r"<span>([NC]?\d*)</span>", found.partition("zs-layers-axis")[2])

    assert axis(1, 4) == ["N0", "C0", "0", "1", "2", "3"]
    assert axis(2, 12) == ["N", "", "C", "", "0", "", "", "", "", "5", "", "", "", "", "10", ""]


def test_the_table_offers_each_number_and_says_how_many_there_were(plan: PrunePlan):
    html = compress_view.table(plan, EN)
    for row in plan.rows():
        line = re.search(rf'<tr data-stack="{row["stack"]}" data-index="{row["index"]}">.*?</tr>', html)
        assert line is not None
        assert ("checked" in line[0]) == row["kept"]
        shown = row["ffn_after"] if row["kept"] else row["ffn_before"]
        assert f'max="{row["ffn_before"]}" value="{shown}" data-part="ffn"' in line[0]


def test_a_plan_that_removes_nothing_says_so(plan: PrunePlan):
    nothing = replace(plan, cuts=tuple(replace(cut, kept=True, ffn_kept="", heads_kept="") for cut in plan.cuts))
    assert EN("plan_says_nothing") in compress_view.sentence(nothing, EN)


def test_words_of_a_plan_from_elsewhere_are_text(plan: PrunePlan):
    assert "<img" not in compress_view.plan(replace(plan, note=HOSTILE, model=HOSTILE), EN)


def test_how_a_plan_was_measured_is_said_in_the_language_of_the_page(plan: PrunePlan):
    measured = Calibration(prompts=8, states=64, width=128, height=96, guidance=2.5, seed=3)
    english, chinese = (compress_view.plan(replace(plan, calibration=measured), t) for t in (EN, ZH))
    assert "Measured on the drawings of 8 prompts" in english
    assert "8 条提示词" in chinese and "prompts" not in chinese


@pytest.mark.parametrize("edits", [None, "", "{", "{}", "[1]", '"x"', "NaN", " " * 300_000])
def test_edits_that_are_none_are_refused(edits: object):
    with pytest.raises(InvalidInputError):
        parse_edits(edits)


# --- forms


def values_of(form: PlanForm, **changes: object) -> dict[str, object]:
    widgets = [getattr(widget, "value", None) for widget in form.widgets]
    names = ("kinds", "criterion", "target", "amount", "dim", "allocation", "prompts", "seed", "protect")
    return form.values([changes.get(name, value) for name, value in zip(names, widgets, strict=True)])


def test_the_form_of_a_plan_asks_for_what_it_shows():
    with gr.Blocks():
        form = add_plan_form(EN)
    request = parse_prune({"model": "tiny", **values_of(form)})
    assert (request.kinds, request.criterion, request.target) == (("ffn",), "taylor", {"ratio": 0.4})
    request = parse_prune({"model": "tiny", **values_of(form, target="speedup", amount=1.5, dim=True, criterion="l1")})
    assert (request.kinds, request.target) == (("dim",), {"speedup": 1.5})


@pytest.mark.parametrize(
    "wrong",
    [
        {"amount": None},
        {"amount": 0},
        {"amount": 1},
        {"target": "x"},
        {"kinds": []},
        {"criterion": "x"},
        {"kinds": "y"},
    ],
)
def test_what_a_browser_may_send_is_refused_by_name(wrong: Mapping[str, object]):
    with gr.Blocks():
        form = add_plan_form(EN)
    with pytest.raises(InvalidInputError):
        parse_prune({"model": "tiny", **values_of(form, **wrong)})


def test_a_size_to_reach_begins_below_what_the_model_weighs(quiet: Studio):
    model = quiet.models.get("tiny")
    assert 0 < usual("gigabytes", model, EN)["value"] * 1e9 < (model.bytes or 0)


def test_the_form_of_a_recovery_asks_for_the_usual_and_a_path_only_where_it_may():
    with gr.Blocks():
        local, shared = add_recover_form(True, EN), add_recover_form(False, EN)
    values = [getattr(widget, "value", None) for widget in local.widgets]
    config = parse_recovery({name: value for name, value in local.values(values).items() if value != ""})
    assert config == RecoveryConfig()
    values[1:3] = ["folder", "/etc"]
    assert local.values(values)["data_set"] == "/etc"
    assert shared.values(values)["data_set"] == ""


def test_cuts_on_the_way_are_ratios_or_names_of_plans():
    with gr.Blocks():
        form = add_recover_form(True, EN)
    values = [getattr(widget, "value", None) for widget in form.widgets]
    values[form.widgets.index(form.folded["cuts"])] = "0.3， 0.5, my-plan,"
    assert form.values(values)["cuts"] == [0.3, 0.5, "my-plan"]


# --- jobs


@pytest.mark.parametrize("t", [EN, ZH], ids=LANGS)
def test_the_job_that_runs_says_how_far_it_is_and_how_long_it_takes(t: Texts):
    running = job(progress=0.42, done=3, total=8, eta_s=12.0, note="note.pruning")
    html = jobs_view.now(running, 2, "", t)
    assert 'aria-valuenow="42"' in html
    words = plain(html)
    assert t("jobs_of", done="3", total="8") in words
    assert t("stage_left", time=t("seconds", s=12)) in words
    assert t("jobs_waiting", count=2) in words


def test_each_state_offers_what_can_be_done_with_it():
    def verbs(state: str) -> set[str]:
        return set(re.findall(rf'data-pick="(\w+):{ID}"', jobs_view.listed([job(state=state)], EN)))

    assert verbs("queued") == verbs("running") == {"stop", "log"}
    assert verbs("stopping") == {"log"}
    assert verbs("stopped") == verbs("failed") == verbs("interrupted") == {"resume", "log", "delete"}
    assert verbs("done") == {"show", "log", "delete"}


def test_a_job_that_failed_says_why_and_its_words_are_text():
    failed = job(state="failed", reason="unknown_model", reason_values={"value": HOSTILE, "known": "tiny"})
    html = jobs_view.listed([failed], EN)
    assert "<img" not in html
    assert UserError("unknown_model", value=HOSTILE, known="tiny").text("en")[:12] in plain(html)
    assert "<img" not in jobs_view.log(job(request={"model": HOSTILE}), HOSTILE, EN)


def test_what_came_out_of_a_job_leads_to_its_step():
    assert place_of(job(result={"model": "small"})) == ("recover", "small")
    assert place_of(job(kind="recover", result={"model": "better"})) == ("judge", "better")
    assert place_of(job(kind="plan", result={"id": "p"})) == ("plan", "tiny")
    assert place_of(job(kind="evaluate")) == ("judge", "tiny")


def test_a_job_that_began_or_ended_is_seen():
    assert changed(f"{ID}:queued", [job(state="running")]) == [job(state="running")]
    assert changed(f"{ID}:running", [job(state="running")]) == []
    assert changed("", [job(state="done")]) == [job(state="done")]


# --- recovery


def write_log(path: Path, *lines: object) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def line(step: int, loss: float | None, validation: float | None = None, phase: str = "main") -> dict[str, object]:
    return {"phase": phase, "step": step, "loss": loss, "validation": validation, "lr": 1e-3, "seconds": 1, "share": 0}


def test_the_log_counts_on_over_the_phases_and_ends_at_the_first_broken_line(tmp_path: Path):
    log = tmp_path / "log.jsonl"
    write_log(log, line(1, 0.5), line(4, 0.25), line(2, 0.75, phase="second"))
    assert [point.step for point in recover_view.read_points(log)] == [1, 4, 6]
    with log.open("a", encoding="utf-8") as file:
        file.write('{"phase": "second", "st')
    assert len(recover_view.read_points(log)) == 3
    assert recover_view.read_points(tmp_path / "none") == []


@pytest.mark.parametrize("t", [EN, ZH], ids=LANGS)
def test_a_training_is_a_line_a_sentence_and_the_same_pictures_twice(tmp_path: Path, t: Texts):
    write_log(tmp_path / "log.jsonl", line(0, None, 0.5), line(10, 0.4), line(20, 0.2, 0.3))
    (tmp_path / "samples").mkdir()
    for step in (0, 10, 20):
        for number in (0, 1):
            Image.new("RGB", (8, 8)).save(tmp_path / "samples" / f"main-{step:06d}-{number}.png")
    result = {"model": "better", "steps": 20, "seconds": 3.0, "loss_first": 0.4, "loss_last": 0.2}
    html = recover_view.recovery(job(kind="recover", state="done", result=result), tmp_path, t)
    assert html.count("<polyline") == 3  # the loss as it is, its running mean, and on pictures kept aside
    assert html.count("<img") == 4
    assert t("recover_went", first="0.5", last="0.3") in plain(html)
    running = recover_view.recovery(job(kind="recover"), tmp_path / "nothing", t)
    assert t("recover_no_loss_yet") in plain(running)


def test_a_loss_is_smoothed_over_what_came_before():
    assert recover_view.smooth([]) == []
    few = [(step, float(step)) for step in range(1, 16)]
    assert recover_view.smooth(few) == few
    many = recover_view.smooth([(step, float(step % 2)) for step in range(160)])
    assert [step for step, _ in many] == list(range(160))
    assert {value for _, value in many[20:]} == {0.5}


def test_a_training_that_was_stopped_did_not_fail(tmp_path: Path):
    html = recover_view.recovery(job(kind="recover", state="stopped"), tmp_path, EN)
    assert EN("recover_stopped") in plain(html) and "zs-clash" not in html


def test_chinese_counts_parameters_in_ten_thousands_and_hundred_millions():
    assert [present.parameters(n, ZH) for n in (6_500_000, 110_600_000, 6_150_000_000)] == [
        "650 万参数", "1.1 亿参数", "62 亿参数",
    ]  # fmt: skip
    assert present.parameters(110_600_000, EN) == "110.6 M parameters"


# --- family and frame


def test_the_tree_marks_the_chosen_model_and_its_children_stand_under_it(quiet: Studio):
    tiny = quiet.models.get("tiny")
    child = replace(tiny, key="small", name=HOSTILE, bytes=(tiny.bytes or 0) // 2)
    members = [FamilyMember(tiny, "", 0, False, None), FamilyMember(child, "tiny", 1, True, None)]
    html = compress_family.tree(members, "small", EN)
    assert re.findall(r'data-pick="(\w+)" aria-pressed="(\w+)"', html) == [("tiny", "false"), ("small", "true")]
    assert 'data-depth="1"' in html
    assert "width:50.00%" in html
    assert "<img" not in html
    stranger = FamilyMember(replace(tiny, key="huge", bytes=10**12), "", 0, False, None)
    assert "width:50.00%" in compress_family.tree([*members, stranger], "small", EN)
    named = [members[0], replace(members[1], artifact=replace(child, parent="f" * 64))]
    assert f"made from {tiny.name}" in compress_family.note(named, "small", EN)
    assert "made from ffffffffffff" in compress_family.note(named[1:], "small", EN)


def test_the_path_has_all_its_steps_in_order():
    assert tuple(CARDS) == STEPS


def test_every_card_shows_a_model_that_is_unknown_and_one_that_nothing_was_done_with(quiet: Studio):
    with gr.Blocks():
        tabs = gr.Tabs()
        model, plan, fresh = gr.Dropdown([]), gr.Dropdown([], render=False), gr.State("")
        cards = [card(Frame(quiet, EN, model, tabs, tabs, fresh, plan)) for card in CARDS.values()]
    for card in cards:
        for key in ("", "nothing", "tiny"):
            assert set(card.shown(key, "")) <= set(card.outputs)
        if isinstance(card, PlanCard):
            assert card.listed("tiny", "", "gone")[plan]["value"] is None


def test_the_newest_plan_is_shown_unless_another_one_was_picked(quiet: Studio, plan: PrunePlan):
    model = quiet.models.get("tiny").key
    older = quiet.compression.save_plan(replace(plan, model="tiny", created="2026-01-01T00:00:00+00:00"), "older")
    newer = quiet.compression.save_plan(replace(plan, model="tiny", created="2026-01-02T00:00:00+00:00"), "newer")
    with gr.Blocks():
        tabs = gr.Tabs()
        picked = gr.Dropdown([], render=False)
        card = PlanCard(Frame(quiet, EN, gr.Dropdown([]), tabs, tabs, gr.State(""), picked))
    assert card.listed(model, "", None)[picked]["value"] == newer.id
    assert card.listed(model, "", older.id)[picked]["value"] == older.id
