"""The widgets of the Refine tab: what is asked for on the left, the base and what comes of it on the right."""

import json
from dataclasses import dataclass
from typing import Any

import gradio as gr

from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.ui import present
from zimage_studio.ui.compare import Compare, add_compare
from zimage_studio.ui.doors import LOCAL, Update
from zimage_studio.ui.family import PICK
from zimage_studio.ui.picker import Picker, add_picker
from zimage_studio.ui.refine import view as refine_view
from zimage_studio.ui.refine.axes_form import AxesForm, add_axes_form
from zimage_studio.ui.refine.form import RefineForm, add_marks, add_refine_form
from zimage_studio.ui.refine.quick import FACTORS
from zimage_studio.ui.texts import Texts

CHANGE, VARIATIONS, GRID = "change", "variations", "grid"
SIDES = ("3", "5")
FIRST_SPREAD = 0.2
SCROLL_TO_GRID = '() => document.querySelector("#zs-grid")?.scrollIntoView({behavior: "smooth", block: "start"})'
_MODE_JS = """(mode) => [
  ...["change", "variations", "grid"].map((name) => ({__type__: "update", visible: name === mode})),
  {__type__: "update", value: WORDS[mode]}, {__type__: "update", open: mode === "change"}]"""


@dataclass(frozen=True, slots=True)
class Asked:
    """The left side. `quick` are the buttons that fill the form: a new seed, over this picture, larger by a factor."""

    picker: Picker
    settings: gr.Column
    go: gr.Row
    mode: gr.Radio
    panels: tuple[gr.Column, ...]
    quick: tuple[gr.Button, ...]
    quick_note: gr.HTML
    spread: gr.Slider
    side: gr.Radio
    axes: AxesForm
    fields: gr.Accordion
    form: RefineForm
    make: gr.Button
    stop: gr.Button
    earlier: gr.Dropdown

    @property
    def outputs(self) -> list[Any]:
        """What changes with the base."""
        return [self.settings, self.go, *self.form.outputs, *self.quick, self.quick_note, self.picker.drop]

    def ready(self, *, there_is_a_base: bool) -> Update:
        """Without a base there is nothing to ask for."""
        return {widget: gr.update(visible=there_is_a_base) for widget in (self.settings, self.go)}


@dataclass(frozen=True, slots=True)
class Shown:
    """The right side: the base above, below it what is being made or was made."""

    card: gr.HTML
    stage: gr.HTML
    picture: gr.Image
    progress: gr.HTML
    table: gr.HTML
    grid_actions: gr.Row
    resume: gr.Button
    sheet: gr.Button
    sheet_file: gr.DownloadButton
    changes: gr.HTML
    compare: Compare
    actions: gr.Row
    enter: gr.Button
    download: gr.DownloadButton
    to_grid: gr.Button
    recipe: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        """Everything but the card."""
        return [
            self.stage, self.progress, self.table, self.grid_actions, self.resume, self.sheet_file,
            *self.opened_outputs,
        ]  # fmt: skip

    @property
    def opened_outputs(self) -> list[Any]:
        """What shows one image."""
        return [
            self.changes, *self.compare.outputs, self.picture, self.actions, self.enter, self.download,
            self.to_grid, self.recipe,
        ]  # fmt: skip

    def cleared(self) -> Update:
        """Nothing is made, and nothing of a grid is shown."""
        hidden = (self.stage, self.progress, self.table, self.grid_actions)
        return {**{widget: gr.update(visible=False) for widget in hidden}, **self.closed()}

    def closed(self) -> Update:
        """No image is shown large."""
        hidden = (self.changes, self.compare.column, self.picture, self.actions, self.recipe)
        return {widget: gr.update(visible=False) for widget in hidden}


@dataclass(frozen=True, slots=True)
class Held:
    """What the page remembers, in the browser, so that it outlives a restart of the server.

    `trail`: the refs of the bases on the way here, each with `@` and the grid that was shown at it; `grid` and
    `result` what is shown now; `visitor` the secret name of the browser. On the server only: the `dropped` pictures.
    """

    trail: gr.Textbox
    grid: gr.Textbox
    result: gr.Textbox
    visitor: gr.Textbox
    dropped: gr.State


def add_held() -> Held:
    """Add them; nobody sees them."""
    trail, grid, result, visitor = (gr.Textbox("", visible=False) for _ in range(4))
    return Held(trail, grid, result, visitor, gr.State({}))


def add_asked(models: tuple[ModelArtifact, ...], default: ModelArtifact, t: Texts) -> Asked:
    """Add the left side."""
    words = {CHANGE: t("make"), VARIATIONS: t("make_variations"), GRID: t("make_grid")}
    with gr.Column(elem_classes="zs-ways"):
        picker = add_picker("zs-refine-drop", "zs-refine-recent", t)
    with gr.Column(visible=False, elem_classes="zs-settings zs-refine-settings") as settings:
        mode = gr.Radio(
            [(t("mode_change"), CHANGE), (t("mode_variations"), VARIATIONS), (t("mode_grid"), GRID)], value=CHANGE,
            label=t("mode"), show_label=False, container=False, elem_id="zs-mode", elem_classes="zs-mode",
        )  # fmt: skip
        with gr.Column(elem_id="zs-panel-change", elem_classes="zs-panel") as change:
            quick, quick_note = _quick(t)
        with gr.Column(visible=False, elem_id="zs-panel-variations", elem_classes="zs-panel") as around:
            spread, side = _around(t)
        with gr.Column(visible=False, elem_id="zs-panel-grid", elem_classes="zs-panel") as grid:
            axes = add_axes_form(t)
        marks = add_marks(t)
        with gr.Accordion(t("refine_fields"), open=True, elem_classes="zs-fields") as fields:
            form = add_refine_form(default, [(model.name, model.key) for model in models], marks, t)
    with gr.Row(visible=False, elem_classes="zs-go zs-sticky", elem_id="zs-refine-go") as go:
        make = gr.Button(words[CHANGE], variant="primary", elem_id="zs-make", scale=3, min_width=120)
        stop = gr.Button(t("stop"), elem_id="zs-refine-stop", scale=1, min_width=80, interactive=False)
    with gr.Column(elem_classes="zs-earlier"):
        earlier = gr.Dropdown([], label=t("earlier"), visible=False, filterable=False, elem_id="zs-earlier")
    panels = (change, around, grid)
    mode.input(None, mode, [*panels, make, fields], js=_mode_js(words), **LOCAL)
    return Asked(
        picker=picker, settings=settings, go=go, mode=mode, panels=panels, quick=quick, quick_note=quick_note,
        spread=spread, side=side, axes=axes, fields=fields, form=form, make=make, stop=stop, earlier=earlier,
    )  # fmt: skip


def add_shown(t: Texts) -> Shown:
    """Add the right side, idle."""
    made: dict[str, Any] = {"card": gr.HTML(visible=False, js_on_load=PICK, elem_id="zs-base")}
    with gr.Column(elem_id="zs-refine-result", elem_classes="zs-result"):
        made |= {
            "stage": gr.HTML(refine_view.idle(t), elem_id="zs-refine-stage"),
            "progress": gr.HTML(visible=False, elem_id="zs-grid-progress"),
            "table": gr.HTML(visible=False, js_on_load=PICK, elem_id="zs-grid"),
        }
        with gr.Row(visible=False, elem_classes="zs-actions") as made["grid_actions"]:
            made["resume"] = gr.Button(t("resume"), size="md", min_width=120, elem_id="zs-resume")
            made["sheet"] = gr.Button(t("sheet"), size="md", min_width=120, elem_id="zs-sheet")
            made["sheet_file"] = gr.DownloadButton(t("sheet"), elem_id="zs-sheet-file", elem_classes="zs-gone")
        made |= _opened(t)
    return Shown(**made)


def _opened(t: Texts) -> dict[str, Any]:
    made: dict[str, Any] = {"changes": gr.HTML(visible=False, elem_id="zs-result-changes")}
    sides = (t("show_base"), t("show_both"), t("show_result"))
    made["compare"] = add_compare("zs-refine-slider", sides, t("refine_slider"))
    made["picture"] = gr.Image(
        label=t("base"), show_label=False, visible=False, type="filepath", format="png", interactive=False,
        buttons=["fullscreen"], elem_id="zs-refine-image", elem_classes="zs-picture",
    )  # fmt: skip
    with gr.Row(visible=False, elem_classes="zs-actions") as made["actions"]:
        made["enter"] = gr.Button(t("enter"), size="md", min_width=140, elem_id="zs-enter")
        made["download"] = gr.DownloadButton(t("download"), size="md", min_width=140, elem_id="zs-refine-download")
        made["to_grid"] = gr.Button(t("to_grid"), size="md", min_width=100, elem_id="zs-to-grid")
        made["to_grid"].click(None, None, None, js=SCROLL_TO_GRID, **LOCAL)
    made["recipe"] = gr.HTML(visible=False, elem_id="zs-refine-recipe")
    return made


def _quick(t: Texts) -> tuple[tuple[gr.Button, ...], gr.HTML]:
    with gr.Row(elem_classes="zs-quick"):
        buttons = [
            gr.Button(t("quick_seed"), size="sm", min_width=90, elem_id="zs-new-seed"),
            gr.Button(t("quick_redraw"), size="sm", min_width=90, interactive=False, elem_id="zs-redraw"),
        ]
        buttons += [
            gr.Button(
                t("quick_enlarge", factor=f"{factor:g}"), size="sm", min_width=90, interactive=False,
                elem_id=f"zs-enlarge-{place}",
            )
            for place, factor in enumerate(FACTORS)
        ]  # fmt: skip
    return tuple(buttons), gr.HTML(present.note(t("quick_note")), elem_id="zs-quick-note")


def _around(t: Texts) -> tuple[gr.Slider, gr.Radio]:
    with gr.Group():
        spread = gr.Slider(
            0.01, 1, FIRST_SPREAD, step=0.01, label=t("spread"), info=t("spread_note"), elem_id="zs-spread"
        )
        side = gr.Radio(
            [(t("side_cells", side=side, count=int(side) ** 2), side) for side in SIDES], value=SIDES[0],
            label=t("side"), elem_id="zs-side", elem_classes="zs-sizes",
        )  # fmt: skip
    return spread, side


def _mode_js(words: dict[str, str]) -> str:
    return _MODE_JS.replace("WORDS", json.dumps(words))
