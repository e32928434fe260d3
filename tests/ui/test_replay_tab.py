"""The Replay tab: what was read is shown whole, an unedited form changes nothing, and a verdict says what it means."""

import dataclasses
import itertools
import json
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np
import pytest

from tests.core import foreign_samples as foreign
from tests.ui.test_forms import HOSTILE, stored
from zimage_studio.core.metadata.png import write_png
from zimage_studio.errors import UserError
from zimage_studio.messages import LANGS
from zimage_studio.records.request import MAX_SEED, GenerationRequest, ModelDefaults, parse_batch
from zimage_studio.records.verdict import Difference, Verdict
from zimage_studio.services.replay import Original, read_pasted, read_picture
from zimage_studio.services.studio import Studio
from zimage_studio.ui import doors, request_form
from zimage_studio.ui.replay import view as replay_view
from zimage_studio.ui.replay.run import Finished, Missing, ReplayRuns
from zimage_studio.ui.replay.tab import ReplayTab
from zimage_studio.ui.texts import Texts
from zimage_studio.ui.watching import Moment

EN = Texts("en")
DEFAULTS = ModelDefaults(width=128, height=128, steps=8, guidance=2.0)


# --- the form


def test_every_field_of_a_request_has_a_widget_or_is_a_list():
    names = {field.name for field in dataclasses.fields(GenerationRequest)}
    assert names - request_form.kinds().keys() <= {"variations"}
    laid_out = list(itertools.chain.from_iterable(itertools.chain.from_iterable(request_form.groups())))
    assert sorted(laid_out) == sorted(request_form.kinds())


def test_what_the_form_shows_first_is_a_request_of_the_model():
    values = {**request_form.defaults_of(DEFAULTS), "prompt": "a fish", "seed": ""}
    request = parse_batch(values, ModelDefaults()).first
    assert (request.width, request.height, request.steps, request.guidance, request.shift) == (128, 128, 8, 2.0, None)


def test_a_form_that_nobody_touched_changes_nothing():
    request = GenerationRequest(
        prompt="a\r\nfish\u2028", seed=MAX_SEED, width=128, height=64, steps=8, guidance=2.0, shift=3.0
    )
    shown = request.to_dict()
    with gr.Blocks():
        form = request_form.add_request_form(DEFAULTS, [("Tiny", "tiny")], "tiny", EN)
    updates = form.show(shown)
    assert updates[form.fields["seed"]] == str(MAX_SEED)
    # as a browser sends it back: line breaks of one kind, 2.0 as 2, emptied texts as ""
    sent = ["a\nfish\u2028" if name == "prompt" else updates[widget] for name, widget in form.fields.items()]
    sent = [2 if value == 2.0 else value for value in sent]
    values, model = form.values([*sent, "tiny"])
    assert model == "tiny"
    assert request_form.changed(shown, values) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", "8"), ("seed", ""), ("steps", 9), ("prompt", "a fish\n"), ("shift", "2"), ("width", None)],
)
def test_a_field_that_was_edited_is_the_one_that_changed(name: str, value: object):
    shown = GenerationRequest(prompt="a fish", seed=7, width=128, height=64, steps=8, guidance=2.0).to_dict()
    now = {field: shown[field] for field in request_form.kinds()} | {name: value}
    assert request_form.changed(shown, now) == {name: value}


# --- what was read


def own(tmp_path: Path, prompt: str = "a fish") -> Path:
    path = tmp_path / "own.png"
    path.write_bytes(write_png(np.zeros((64, 128, 3), np.uint8), stored(prompt).recipe))
    return path


def test_our_own_picture_is_shown_whole(tmp_path: Path):
    original = read_picture(own(tmp_path), name="my fish.png")
    html = replay_view.reading(original, EN)
    assert "Made by Z-Image Studio" in html and "my fish.png" in html
    assert html.count(str(MAX_SEED)) == 2  # among the first facts and in the table of all
    for name in ("numerics.sequence_length", "outcome.pixels_sha256", "request.guidance", "created"):
        assert f"<th scope=row>{name}</th>" in html


@pytest.mark.parametrize("lang", LANGS)
@pytest.mark.parametrize("sample", ["A1111", "SDNEXT", "SWARM", "INVOKE", "FOOOCUS", "FOOOCUS_A1111"])
def test_another_programs_text_is_shown_with_its_conversions_and_gaps(lang: str, sample: str):
    original = read_pasted(getattr(foreign, sample))
    html = replay_view.reading(original, Texts(lang))  # type: ignore[arg-type]
    assert original.recipe is None and original.found.converted
    assert foreign.CHINESE in html
    for conversion in original.found.to_dict(lang)["converted"]:  # type: ignore[arg-type, attr-defined]
        assert replay_view.escape(conversion["why"]) in html
    for key in original.found.unknown:
        assert replay_view.escape(key) in html


def test_a_graph_is_read_from_a_picture(tmp_path: Path):
    path = tmp_path / "x.png"
    path.write_bytes(foreign.png(prompt=json.dumps(foreign.ksampler_graph())))
    assert "Made by ComfyUI" in replay_view.reading(read_picture(path), EN)


def test_what_says_nothing_is_told_so():
    html = replay_view.reading(read_pasted("just some words"), EN)
    assert "Nothing here says how it was made" in html and "just some words" in html


@pytest.mark.parametrize("lang", LANGS)
def test_what_came_from_outside_is_shown_as_text(tmp_path: Path, lang: str):
    t = Texts(lang)  # type: ignore[arg-type]
    made = stored(HOSTILE)
    ours = read_picture(own(tmp_path, HOSTILE), name=HOSTILE)
    texts = [HOSTILE, f"{HOSTILE}\nSteps: 8, Seed: 4, Size: 64x64, {HOSTILE}, Model: {HOSTILE}, Sampler: {HOSTILE}"]
    verdict = Verdict(
        verdict="differs", reason="replay.changed", details={"fields": (HOSTILE,)}, changed=(HOSTILE,),
        differences=(Difference(HOSTILE, HOSTILE, [HOSTILE]), Difference(f"stack.{HOSTILE}", {HOSTILE: 1}, None)),
    )  # fmt: skip
    for html in (
        replay_view.reading(ours, t, picture=f'/tmp/"{HOSTILE}', chosen=HOSTILE),
        *(replay_view.reading(read_pasted(text), t, chosen=HOSTILE) for text in texts),
        replay_view.reading(read_pasted(made.recipe.to_json()), t),
        replay_view.unreadable(HOSTILE),
        replay_view.only_a_seed(HOSTILE, t),
        replay_view.model_missing(HOSTILE, HOSTILE, t),
        replay_view.verdict(verdict, ours, made, t),
        replay_view.new_recipe(made, t),
    ):
        assert "<img src=x" not in html
        assert "\u202e" not in html


def test_a_recipe_with_a_time_that_is_none_is_shown_all_the_same():
    odd = replace(stored().recipe, created="yesterday <b>")
    assert "yesterday &lt;b&gt;" in replay_view.reading(read_pasted(odd.to_json()), EN)


# --- the verdict


def test_each_verdict_is_told_apart():
    made = stored()
    seen = Original(made.recipe, Path("x.png"))
    html = replay_view.verdict(Verdict(verdict="identical", reason="replay.identical"), seen, made, EN)
    assert 'data-verdict="identical"' in html and made.recipe.outcome.pixels_sha256 in html
    apart = Verdict(
        verdict="differs", reason="replay.differs", psnr_db=31.2, ssim=0.91234, max_difference=40,
        differences=(Difference("stack.torch", "2.0", "2.1"), Difference("request.seed", 1, 2)),
    )  # fmt: skip
    html = replay_view.verdict(apart, seen, made, EN)
    for words in ("zs-verdict-differs", "31.2 dB", "0.9123", "40 of 255", "Version of torch", "2.1", "request.seed"):
        assert words in html
    assert "changed by you" not in html
    mine = replace(apart, reason="replay.changed", details={"fields": ("seed",)}, changed=("seed",))
    html = replay_view.verdict(mine, seen, made, EN)
    assert "zs-verdict-changed" in html and "Changed by you: seed." in html and "changed by you" in html


def test_numbers_that_differ_never_look_the_same():
    assert replay_view.recorded_value(0.1 + 0.2) != replay_view.recorded_value(0.3)
    assert replay_view.recorded_value(2.0) == "2"
    long = replay_view.recorded_value([0.5] * 500)
    assert long.endswith("…</span>") and 'title="[0.5' in long


def test_the_caption_of_the_map_says_how_much_is_amplified():
    assert "amplified 42 times" in replay_view.difference_caption(42, 6, EN)
    assert "not amplified" in replay_view.difference_caption(1, 200, EN)
    assert "all black" in replay_view.difference_caption(1, 0, EN)


# --- files from outside


def test_only_uploads_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    inside, outside = tmp_path / "cache" / "ab" / "x.png", tmp_path / "y.png"
    inside.parent.mkdir(parents=True)
    inside.write_bytes(b"x")
    outside.write_bytes(b"y")
    (inside.parent / "link.png").symlink_to(outside)
    assert doors.uploaded({"path": str(inside), "orig_name": "名.png"}) == (inside.resolve(), "名.png")
    assert doors.uploaded({"path": str(inside)}) == (inside.resolve(), "x.png")
    for value in (
        str(inside), None, 7, [], {}, {"path": None}, {"path": str(outside)}, {"path": str(inside.parent / "link.png")},
        {"path": str(inside.parent)}, {"path": str(tmp_path / "cache" / ".." / "y.png")}, {"path": "a\0b"},
        {"path": "x" * 9000}, {"path": str(inside.with_name("gone.png"))},
    ):  # fmt: skip
        with pytest.raises(UserError, match="not one that was uploaded"):
            doors.uploaded(value)


# --- a run


def run(studio: Studio, original: Original, model: str | None = None, **overrides: object) -> list[object]:
    return list(ReplayRuns(studio, EN).run(original, overrides, model, "s"))


QUICK = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 2, "guidance": 0, "seed": 3}


def test_a_run_ends_in_its_verdict_with_both_pictures(studio: Studio):
    (image,) = studio.generation.submit(QUICK, model="tiny").result(60)
    end = run(studio, read_picture(image.path))[-1]
    assert isinstance(end, Finished)
    assert end.judgement.verdict.verdict == "identical"
    assert end.judgement.pictures is not None
    assert not end.judgement.pictures.map_HWC.any()
    by_hash = run(studio, read_pasted(image.recipe.to_json()))[-1]
    assert isinstance(by_hash, Finished)
    assert (by_hash.judgement.verdict.verdict, by_hash.judgement.pictures) == ("identical", None)


def test_a_run_whose_weights_are_not_here_names_the_nearest(studio: Studio, tmp_path: Path):
    (image,) = studio.generation.submit(QUICK, model="tiny").result(60)
    elsewhere = replace(image.recipe, model=replace(image.recipe.model, sha256="ab" * 32, key="gone", name="Gone"))
    end = run(studio, Original(elsewhere))[-1]
    assert isinstance(end, Missing)
    assert (end.wanted, end.nearest) == ("ab" * 32, "tiny")
    anyway = run(studio, Original(elsewhere), "tiny", seed="4")[-1]
    assert isinstance(anyway, Finished)
    assert anyway.judgement.verdict.changed == ("seed", "model")


def test_a_refused_value_raises_and_a_stop_ends_it(studio: Studio):
    (image,) = studio.generation.submit(QUICK, model="tiny").result(60)
    with pytest.raises(UserError, match="The seed is 'x'"):
        run(studio, read_picture(image.path), seed="x")
    runs = ReplayRuns(studio, EN)
    seen = []
    for news in runs.run(read_picture(image.path), {"steps": 200}, None, "s"):
        seen.append(news)
        if isinstance(news, Moment) and news.view.note == "note.denoising":
            runs.stop("s")
    assert isinstance(seen[-1], Moment) and seen[-1].view.state == "stopped"
    assert "Stopped at step" in seen[-1].html


def test_what_a_restarted_server_has_forgotten_is_told(studio: Studio):
    with gr.Blocks(), gr.Tabs() as tabs, gr.Tab("x") as tab:
        page = ReplayTab(studio, tabs, tab, EN)
    with pytest.raises(UserError, match="Studio was restarted"):
        page._source(None, "read")
    assert page._source(None, "") == Original(None)
