"""The Refine tab without a browser: what a base is, an unedited form changes nothing, who may see a grid, escaping."""

import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.core import foreign_samples as foreign
from tests.recipes import recipes
from tests.ui.test_forms import HOSTILE, stored
from zimage_studio.core.metadata.png import write_png
from zimage_studio.errors import UserError
from zimage_studio.messages import LANGS
from zimage_studio.records.grid import FIELDS, GridPlan, parse_axis, plan_grid, plan_neighbourhood
from zimage_studio.records.progress import Preview
from zimage_studio.records.request import (
    MAX_ASPECT,
    MAX_PIXELS,
    MAX_SIDE_PX,
    MIN_SIDE_PX,
    SIDE_STEP_PX,
    GenerationRequest,
    ModelDefaults,
    Variation,
    parse_batch,
)
from zimage_studio.services.generation import JobView
from zimage_studio.services.grids import Grid, GridView
from zimage_studio.services.studio import Studio
from zimage_studio.ui import family, sizes, trail
from zimage_studio.ui.refine import axes_form, grid_view, grid_watch
from zimage_studio.ui.refine import form as refine_form
from zimage_studio.ui.refine import view as refine_view
from zimage_studio.ui.refine.base import NOISE, PICTURE, RECORDED, Base, Bases, changes, shown_values
from zimage_studio.ui.refine.grid_requests import Begin, around_plan, xy_plan
from zimage_studio.ui.refine.quick import quick_updates, quick_values
from zimage_studio.ui.refine.tab import RefineTab
from zimage_studio.ui.texts import Texts

EN = Texts("en")
SMALL = {
    "prompt": "a red circle on a white background",
    "seed": 7,
    "width": 64,
    "height": 64,
    "steps": 2,
    "guidance": 0,
}
REQUEST = GenerationRequest(prompt="a red fish", seed=7, width=128, height=128, steps=8, guidance=2.0)
SIDES = st.integers(1, 20_000)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gradio's folder for files it serves."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    yield


def base_of(request: GenerationRequest, *, sha256: str = "a" * 64) -> Base:
    return Base("ref", sha256, request.to_dict(), "tiny", (request.width, request.height), "words")


# --- sizes


@given(SIDES, SIDES, st.sampled_from([1.0, 1.5, 2.0]))
def test_an_enlarged_size_can_be_drawn_and_is_near(width: int, height: int, factor: float):
    size = sizes.enlarged((width, height), factor)
    if size is None:
        assert max(width, height) * factor > 1000 or max(width, height) > 4 * min(width, height)
        return
    assert GenerationRequest(prompt="x", seed=1, width=size[0], height=size[1], steps=1, guidance=0)
    for exact, side in zip((width * factor, height * factor), size, strict=True):
        assert abs(side - exact) <= SIDE_STEP_PX / 2 or side == MIN_SIDE_PX


@given(SIDES, SIDES, st.sampled_from([(128, 128), (1024, 1024), (1536, 1024)]))
def test_any_picture_gets_a_size_that_can_be_drawn(width: int, height: int, wanted: tuple[int, int]):
    drawn = sizes.drawable((width, height), wanted)
    assert GenerationRequest(prompt="x", seed=1, width=drawn[0], height=drawn[1], steps=1, guidance=0)
    assert drawn[0] * drawn[1] <= MAX_PIXELS
    assert max(drawn) <= min(MAX_SIDE_PX, MAX_ASPECT * min(drawn))


# --- the way from image to image


@given(
    st.lists(st.tuples(st.from_regex(r"[0-9a-f-]{4,20}", fullmatch=True), st.sampled_from(["", "ab" * 8])), max_size=9)
)
def test_a_trail_is_read_as_it_was_written(steps: list[tuple[str, str]]):
    whole = [trail.Step(*step) for step in steps]
    assert trail.read_trail(trail.written(whole)) == whole


def test_going_to_a_place_on_the_way_goes_back_to_it():
    way = trail.onward(trail.onward(trail.onward([], "a"), "b", "grid1"), "c")
    assert way == [trail.Step("a", "grid1"), trail.Step("b"), trail.Step("c")]
    assert trail.onward(way, "a") == [trail.Step("a", "grid1")]
    assert trail.read_trail(None) == trail.read_trail(["a"]) == []


# --- what the form shows, and what it asks for


@given(recipes())
def test_an_unedited_form_asks_for_the_same_image(recipe):
    request = replace(recipe.request, variations=tuple(link for link in recipe.request.variations if link.strength))
    base = base_of(request)
    held = shown_values(base.values, "tiny", base.sha256)
    assert changes(held, {**held, "seed": str(request.seed)}) == {}
    assert parse_batch(refine_form.values_of(held, base), ModelDefaults()).first == request


def test_a_picture_to_start_from_is_kept_taken_or_left():
    recorded = replace(REQUEST, source="b" * 64, strength=0.4)
    base = base_of(recorded)
    held = shown_values(base.values, "tiny", base.sha256)
    assert (held["start"], held["strength"]) == (RECORDED, 0.4)
    over = refine_form.values_of({**held, "start": PICTURE, "strength": 0.3}, base)
    assert (over["source"], over["strength"]) == (base.sha256, 0.3)
    anew = parse_batch(refine_form.values_of({**held, "start": NOISE}, base), ModelDefaults()).first
    assert (anew.source, anew.strength) == (None, None)


def test_a_variation_is_put_on_top_of_earlier_ones():
    chain = (Variation(seed=1, strength=0.5), Variation(seed=2, strength=0.25))
    base = base_of(replace(REQUEST, variations=chain))
    held = shown_values(base.values, "tiny", base.sha256)
    assert (held["variation_seed"], held["variation_strength"]) == ("2", 0.25)
    other = parse_batch(refine_form.values_of({**held, "variation_seed": "9"}, base), ModelDefaults()).first
    assert other.variations == (chain[0], Variation(seed=9, strength=0.25))
    less = parse_batch(refine_form.values_of({**held, "variation_strength": 0}, base), ModelDefaults()).first
    assert less.variations == chain[:1]


def test_only_what_differs_is_called_changed():
    held = shown_values(REQUEST.to_dict(), "tiny", "a" * 64)
    sent = {**held, "guidance": 2, "seed": " 7 ", "prompt": "a red fish"}
    assert changes(held, sent) == {}
    assert changes(held, {**held, "steps": 12, "variation_seed": "3"}) == {"steps": (8, 12)}
    assert changes(held, {**held, "start": PICTURE, "strength": 0.3}) == {
        "start": (NOISE, PICTURE),
        "strength": (None, 0.3),
    }
    assert changes({**held, "start": PICTURE, "strength": 0.3}, held) == {"start": (PICTURE, NOISE)}


@pytest.mark.parametrize("lang", LANGS)
def test_changes_are_said_in_words_and_hostile_ones_as_text(lang: str):
    t = Texts(lang)  # type: ignore[arg-type]
    found = {"prompt": (HOSTILE, "x"), "seed": ("7", None), "start": (NOISE, PICTURE), "shift": (None, HOSTILE)}
    html = refine_form.changes_html(found, t)
    assert "<img" not in html
    assert t("start_picture") in html
    assert t("seed_placeholder") in html


def test_enlarging_fills_in_fields_and_says_what_was_rounded():
    base = base_of(replace(REQUEST, width=144, height=128))
    values, words = quick_values(2, base, EN)
    assert values == {"width": 224, "height": 192, "start": PICTURE, "strength": 0.3}
    assert "216×192" in words
    assert "216" not in quick_values(3, base, EN)[1]
    assert quick_values(0, None, EN)[0] == {"seed": ""}
    wide = base_of(replace(REQUEST, width=2048, height=1024))
    assert quick_values(3, wide, EN)[0] == {}
    assert [update.get("interactive") for update in quick_updates(wide, EN)] == [None, True, False, False]


# --- bases


@pytest.fixture
def bases(studio: Studio) -> Bases:
    return Bases(studio, EN)


def test_an_image_of_the_history_keeps_its_recipe(studio: Studio, bases: Bases):
    image = studio.generation.submit(SMALL, model="tiny").result(60)[0]
    base = bases.find(image.id, {})
    assert (base.sha256, base.model, base.notes) == (image.recipe.outcome.pixels_sha256, "tiny", ())
    assert base.values == image.recipe.request.to_dict()
    assert bases.of_file(image.path, "copy.png") == base  # its own file is recognised by its pixels


def test_a_picture_that_says_nothing_is_drawn_over_at_a_size_that_is_told(bases: Bases, tmp_path: Path):
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (1000, 750), "teal").save(path)
    base = bases.of_file(path, "photo.jpg")
    assert (base.values["source"], base.values["width"], base.values["height"]) == (base.sha256, 144, 112)
    assert shown_values(base.values, base.model, base.sha256)["start"] == PICTURE
    assert any("1000×750" in note and "144×112" in note for note in base.notes)
    assert bases.find(base.ref, {base.ref: base}) == base
    with pytest.raises(UserError, match="restarted"):
        bases.find(base.ref, {})


def test_a_picture_of_another_program_brings_its_fields_along(bases: Bases, tmp_path: Path):
    path = tmp_path / "cat.jpg"
    path.write_bytes(foreign.jpeg(foreign.exif({}, inner={0x9286: foreign.user_comment(foreign.A1111)})))
    base = bases.of_file(path, "cat.jpg")
    assert base.values["seed"] == 123456789
    assert base.values["source"] == base.sha256
    assert base.notes[0] == EN("base_says")


def test_our_own_picture_that_history_does_not_have_is_begun_with_as_recorded(
    studio: Studio, bases: Bases, tmp_path: Path
):
    recipe = stored().recipe
    pixels_HWC = np.full((64, 128, 3), 7, np.uint8)
    path = tmp_path / "ours.png"
    path.write_bytes(write_png(pixels_HWC, recipe))
    edited = bases.of_file(path, "ours.png")  # its recipe records other pixels
    assert edited.values["source"] == edited.sha256
    honest = replace(recipe, outcome=replace(recipe.outcome, pixels_sha256=edited.sha256))
    path.write_bytes(write_png(pixels_HWC, honest))
    base = bases.of_file(path, "ours.png")
    assert (base.values["source"], base.values["seed"]) == (None, recipe.request.seed)
    studio.generation.submit(SMALL, model="tiny").result(60)  # from now on its hash is known
    assert "is not here" in bases.of_file(path, "ours.png").notes[0]


@pytest.mark.parametrize("ref", ["", "nobody", "../../etc/passwd", "f" * 64, "F" * 64, "x" * 10_000])
def test_a_ref_that_leads_nowhere_is_refused(bases: Bases, ref: str):
    with pytest.raises(UserError):
        bases.find(ref, {})


# --- lineage


def test_parents_and_children_are_found_and_oneself_is_neither(studio: Studio):
    parent = studio.generation.submit(SMALL, model="tiny").result(60)[0]
    sha256 = parent.recipe.outcome.pixels_sha256
    for seed in (8, 9, 9, 7):  # 9 twice, and 7 is a replay
        studio.generation.submit({**SMALL, "seed": seed}, model="tiny", parent=sha256).result(60)
    found = family.family_of(studio, sha256, None)
    assert (found.parent, found.count) == (None, 2)
    assert [child.recipe.request.seed for child in found.children] == [9, 8]  # the newest first
    child = found.children[0].recipe
    assert family.family_of(studio, child.outcome.pixels_sha256, child.parent).parent == parent
    html = family.family_html(found, studio, EN)
    assert html.count("data-pick=") == 2
    studio.images.delete(parent.id)
    gone = studio.images.with_pixels(sha256)[0]  # the replay stands in for it
    assert family.family_of(studio, child.outcome.pixels_sha256, child.parent).parent == gone


@pytest.mark.parametrize("value", [None, 7, ["x"], {"pick": None}, {"pick": {"path": "/etc/passwd"}}, {}])
def test_a_click_that_carries_no_text_is_refused(value: object):
    with pytest.raises(UserError):
        family.pick_of(gr.EventData(None, value))


# --- axes


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_that_can_be_varied_has_a_name_and_a_first_try(studio: Studio, field: str):
    models = studio.models.list()
    around = {**shown_values(REQUEST.to_dict(), "tiny", ""), "model": "tiny"}
    texts = axes_form.suggested(field, around, models)
    if texts:
        assert parse_axis(field, axes_form.written(texts)).values == texts
    for lang in LANGS:
        t = Texts(lang)
        assert axes_form.note((field, "1, 2", "", ""), models, t)
    assert axes_form.present.field_name(field, EN) != field


@given(
    st.lists(
        st.text("ab,\" '", min_size=1, max_size=6).map(str.strip).filter(bool), min_size=1, max_size=32, unique=True
    )
)
def test_values_with_commas_and_quotes_are_read_as_they_were_written(texts: list[str]):
    assert parse_axis("prompt", axes_form.written(texts)).values == tuple(texts)


def test_the_note_counts_and_says_what_is_wrong(studio: Studio):
    models = studio.models.list()
    assert "2 × 3 = 6 images" in axes_form.note(("seed", "1, 2", "steps", "2, 4, 8"), models, EN)
    assert "has no values" in axes_form.note(("seed", "", "", ""), models, EN)
    assert "looked for" in axes_form.note(("prompt", "red, blue", "", ""), models, EN)
    assert "tiny" in axes_form.note(("model", "tiny", "", ""), models, EN)


def test_a_seed_is_kept_when_its_strength_is_what_varies(studio: Studio):
    begin = Begin({**SMALL, "variation_seed": "5", "variation_strength": 0}, "tiny")
    plan = xy_plan(studio, begin, parse_axis("variation_strength", "0,0.2,0.4"), None)
    assert [[link.seed for link in cell.request.variations] for cell in plan.cells] == [[], [5], [5]]
    drawn = xy_plan(studio, Begin(SMALL, "tiny"), parse_axis("variation_strength", "0.2,0.4"), None)
    assert len({cell.request.variations[0].seed for cell in drawn.cells}) == 1


def test_a_grid_asks_for_what_is_here_before_it_begins(studio: Studio):
    with pytest.raises(UserError, match="no model called nothing"):
        xy_plan(studio, Begin(SMALL, "tiny"), parse_axis("model", "tiny,nothing"), None)
    gone = {**SMALL, "source": "0" * 64, "strength": 0.5}
    with pytest.raises(UserError, match="is not here"):
        around_plan(studio, Begin(gone, "tiny"), strength=0.2, side=3)


# --- grids on the page


def plan_of(x: tuple[str, object], y: tuple[str, object] | None = None) -> GridPlan:
    axes = [parse_axis(*axis) if axis else None for axis in (x, y)]
    return plan_grid(REQUEST, "tiny", axes[0], axes[1], defaults=ModelDefaults())  # type: ignore[arg-type]


@pytest.mark.parametrize("lang", LANGS)
def test_a_table_has_its_axes_and_hostile_values_are_text(lang: str):
    t = Texts(lang)  # type: ignore[arg-type]
    plan = plan_of(("prompt", ["red", HOSTILE]), ("steps", "2,4"))
    grid = Grid("ab" * 8, plan, "", {})
    made = {(0, 0): grid_view.CellShown(stored(HOSTILE), "gradio_api/file=/x.webp")}
    html = grid_view.table(grid, made, (1, 0), t)
    assert "onerror=alert" not in html.replace("&lt;img src=x onerror=alert", "")
    assert "\u202e" not in html
    assert html.count('scope="col"') == 2
    assert html.count('scope="row"') == 2
    assert html.count("<button") == 1
    assert html.count("zs-cell-forming") == 1
    assert html.count("zs-cell-empty") == 2
    assert t("steps") in html


def test_a_neighbourhood_names_its_middle_and_its_seeds():
    plan = plan_neighbourhood(REQUEST, "tiny", strength=0.2, seed=100)
    html = grid_view.table(Grid("ab" * 8, plan, "", {}), {}, None, EN)
    assert EN("cell_middle") in html
    assert "Variation seed 100, strength 0.2" in html


@pytest.mark.parametrize("lang", LANGS)
def test_every_state_of_a_grid_can_be_told(lang: str):
    t = Texts(lang)  # type: ignore[arg-type]
    job = JobView(state="running", note="note.denoising", done=4, total=8, preview=Preview(2, 1, bytes(6)))
    running = grid_view.progress(GridView(state="running", total=4), job, 75, t)
    assert 'aria-valuenow="12"' in running
    assert "data:image/jpeg;base64," in running
    failed = GridView(state="failed", total=4, error=UserError("unknown_image", value=HOSTILE))
    assert "<img" not in grid_view.progress(failed, None, None, t)
    assert t("stage_bug") in grid_view.progress(GridView(state="failed", total=4, bug="x"), None, None, t)
    for state in ("running", "stopped", "done", "failed"):
        grid = Grid("ab" * 8, plan_of(("seed", "1,2")), "", {})
        grid.update(state=state)
        assert grid_view.listed(grid, t)


def test_a_grid_is_seen_by_its_owner_and_by_all_when_it_has_ended(studio: Studio):
    grid = studio.grids.start(
        xy_plan(studio, Begin({**SMALL, "steps": 60}, "tiny"), parse_axis("seed", "1,2,3"), None), session="a"
    )
    assert grid_watch.visible_grid(studio, grid.id, "a") is grid
    with pytest.raises(UserError, match="There is no grid"):
        grid_watch.visible_grid(studio, grid.id, "b")
    assert grid_watch.visible_grids(studio, "b") == ()
    grid.stop()
    list(grid_watch.grid_moments(grid, lambda: True))
    assert grid_watch.visible_grids(studio, "b") == (grid,)


def test_a_browser_owns_its_grids_by_a_name_that_cannot_be_guessed_or_forged():
    assert grid_watch.owner("ab" * 16, "page") == "visitor " + "ab" * 16
    for value in ("", None, "AB" * 16, "ab" * 15, "ab" * 17, "ab" * 16 + "\n", 7, ["ab" * 16]):
        assert grid_watch.owner(value, "page") == "page"


def test_the_moments_of_a_grid_end_with_it_or_when_the_page_shows_something_else(studio: Studio):
    grid = studio.grids.start(xy_plan(studio, Begin(SMALL, "tiny"), parse_axis("seed", "1,2,3"), None))
    seen = list(grid_watch.grid_moments(grid, lambda: True))
    assert (seen[-1].view.state, seen[-1].view.done) == ("done", 3)
    assert all(one.view.done <= later.view.done for one, later in itertools.pairwise(seen))
    turns = grid_watch.Turns()
    mine = turns.take("page")
    assert mine()
    turns.take("other page")
    assert mine()
    turns.take("page")
    assert list(grid_watch.grid_moments(grid, mine)) == []


def test_turns_do_not_pile_up():
    turns = grid_watch.Turns()
    first = turns.take("first")
    for number in range(grid_watch.MAX_PAGES):
        turns.take(str(number))
    assert not first()
    assert len(turns._newest) == grid_watch.MAX_PAGES


# --- the tab


@pytest.fixture
def page(studio: Studio) -> RefineTab:
    with gr.Blocks(), gr.Tabs() as tabs, gr.Tab("x") as tab:
        return RefineTab(studio, tabs, tab, EN)


def test_arriving_at_an_image_shows_it_and_fills_the_form(studio: Studio, page: RefineTab):
    image = studio.generation.submit({**SMALL, "variety": 0.5}, model="tiny").result(60)[0]
    base = page._bases.of_image(image)
    update = page._arrived(base, [trail.Step(base.ref)], {})
    form = page._asked.form
    assert update[form.request.fields["seed"]] == "7"
    assert update[form.own["variety"]] == 0.5
    assert update[page._held.trail] == image.id
    assert "a red circle" in update[page._out.card]["value"]
    assert update[form.undo]["visible"] is False


def test_one_image_is_made_and_laid_over_its_base(studio: Studio, page: RefineTab):
    image = studio.generation.submit(SMALL, model="tiny").result(60)[0]
    base = page._bases.of_image(image)
    held = {**shown_values(base.values, "tiny", base.sha256), "seed": "8"}
    *_, last = page._runs.one(held, base, "page")
    made = studio.images.get(last[page._held.result])
    assert made.recipe.parent == base.sha256
    assert last[page._out.compare.slider]["value"]
    assert "<b>Seed</b> <s>7</s> → 8" in last[page._out.changes]["value"]
    *_, last = page._runs.one(shown_values(base.values, "tiny", base.sha256), base, "page")
    assert "Every pixel is the same" in last[page._out.changes]["value"]


def test_other_weights_of_the_same_name_are_told(studio: Studio, page: RefineTab):
    image = studio.generation.submit(SMALL, model="tiny").result(60)[0]
    base = replace(page._bases.of_image(image), weights="ab" * 32)  # its model was not hashed when it was chosen
    other = studio.generation.submit({**SMALL, "seed": 8}, model="tiny").result(60)[0]
    update = page._stage.opened(other, base)
    assert "<b>Model</b>" in update[page._out.changes]["value"]
    assert "abababab" in update[page._out.changes]["value"]


def test_a_grid_that_is_left_runs_on_and_is_found_again(studio: Studio, page: RefineTab):
    base = page._bases.of_image(studio.generation.submit(SMALL, model="tiny").result(60)[0])
    held = {**shown_values(base.values, "tiny", base.sha256), "steps": 20}
    plan = page._runs.plan("grid", held, base, (), ("seed", "1,2,3", "", ""))
    watching = page._runs.start(plan, "page", "me")
    first = next(watching)
    page._runs.turn("page")  # the page goes elsewhere
    assert list(watching) == []
    grid = studio.grids.get(first[page._held.grid])
    assert page._runs.earlier("me")["choices"][0][1] == grid.id
    assert page._runs.earlier("somebody")["choices"] == []
    grid.result(60)
    *_, last = page._runs.follow(grid, "page", "somebody")
    assert "3 of 3 images" in last.get(page._out.progress, first[page._out.progress])["value"]


def test_stop_reaches_the_grid_of_its_owner_only(studio: Studio, page: RefineTab):
    plan = xy_plan(studio, Begin({**SMALL, "steps": 60}, "tiny"), parse_axis("seed", "1,2,3,4"), None)
    grid = studio.grids.start(plan, session="me")
    page._runs.stop("page", "somebody")
    assert not grid.stopping
    done = threading.Event()
    threading.Thread(target=lambda: (list(grid_watch.grid_moments(grid, lambda: True)), done.set())).start()
    page._runs.stop("page", "me")
    assert done.wait(30)
    assert grid.view.state == "stopped"


@pytest.mark.parametrize("lang", LANGS)
def test_a_card_shows_what_came_from_outside_as_text(studio: Studio, lang: str):
    t = Texts(lang)  # type: ignore[arg-type]
    image = studio.generation.submit({**SMALL, "prompt": HOSTILE}, model="tiny").result(60)[0]
    base = replace(Bases(studio, t).of_image(image), notes=(HOSTILE,))
    html = refine_view.card(base, [image, None, image], studio, t) + refine_view.idle(t)
    assert "onerror=alert(1)&gt;" in html
    assert "<img src=x" not in html
    assert "\u202e" not in html
