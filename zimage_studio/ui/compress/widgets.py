"""The widgets of the steps "understand" and "judge"."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from zimage_studio.records.request import ModelDefaults
from zimage_studio.services.studio import Studio
from zimage_studio.ui import forms
from zimage_studio.ui.compare import Compare, add_compare
from zimage_studio.ui.compress import heat as compress_heat
from zimage_studio.ui.compress import lab as compress_lab
from zimage_studio.ui.compress.lab import LabMoment
from zimage_studio.ui.doors import Update
from zimage_studio.ui.present import escape
from zimage_studio.ui.texts import Texts

PARTS = "parts"
"""The view of the board that shows all parts, beside one for each part step by step."""
DEFAULT_PROMPTS = 4
FIRST_SEED = "1"
FIELDS = ("prompt", "seed", "width", "height", "steps", "guidance")


def heading(words: str) -> gr.HTML:
    """The heading of a part of a card."""
    return gr.HTML(f'<h3 class="zs-part-title">{escape(words)}</h3>')


@dataclass(frozen=True, slots=True)
class LabBoard:
    """The board, how it is looked at, and the measuring of its colours."""

    view: gr.Dropdown
    html: gr.HTML
    about: gr.HTML
    prompts: gr.Number
    measure: gr.Button
    told: gr.HTML


@dataclass(frozen=True, slots=True)
class LabForm:
    """The picture that is drawn with and without."""

    prompt: gr.Textbox
    seed: gr.Textbox
    new_seed: gr.Button
    own: list[gr.Number]
    """Width, height, steps, guidance: each model has its own."""

    @property
    def fields(self) -> list[Any]:
        """In the order of FIELDS."""
        return [self.prompt, self.seed, *self.own]

    def values(self, held: Sequence[object]) -> dict[str, object]:
        """The fields as the values of a request; what was emptied is the model's own."""
        named = zip(FIELDS, held, strict=True)
        return {name: None if value == "" and name != "prompt" else value for name, value in named}

    def show(self, defaults: ModelDefaults) -> Update:
        """The model's own size and steps."""
        return {widget: getattr(defaults, name) for widget, name in zip(self.own, FIELDS[2:], strict=True)}


@dataclass(frozen=True, slots=True)
class LabPicture:
    """What is switched off, and the two pictures."""

    chips: gr.HTML
    all_on: gr.Button
    draw: gr.Button
    stop: gr.Button
    live: gr.Checkbox
    stage: gr.HTML
    compare: Compare
    words: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        """What `moment` and `cleared` change."""
        return [self.stage, self.stop, *self.compare.outputs, self.words]

    def cleared(self, t: Texts) -> Update:
        """Nothing was drawn."""
        return {
            self.stage: gr.update(value=compress_lab.idle(t), visible=True),
            self.stop: gr.update(interactive=False),
            self.compare.column: gr.update(visible=False),
            self.words: "",
        }

    def moment(self, now: LabMoment) -> Update:
        """One moment of a drawing."""
        if now.pictures is None:
            stage = gr.update(value=now.html, visible=True)
            return {self.stage: stage, self.stop: gr.update(interactive=now.running)}
        return {
            self.stage: gr.update(visible=False), self.stop: gr.update(interactive=False),
            **self.compare.show(*now.pictures), self.words: now.html,
        }  # fmt: skip


def add_lab_board(t: Texts) -> LabBoard:
    """Add the board, empty."""
    made: dict[str, Any] = {}
    heading(t("heat_title"))
    made["view"] = gr.Dropdown(
        [(t("heat_view_parts"), PARTS)], value=PARTS, label=t("heat_view"), filterable=False, visible=False,
        elem_id="zs-heat-view",
    )  # fmt: skip
    made["html"] = gr.HTML("", js_on_load=compress_heat.BRIDGE, elem_id="zs-heat")
    made["about"] = gr.HTML("", elem_id="zs-heat-about")
    with gr.Row(elem_classes="zs-heat-go"):
        made["prompts"] = gr.Number(
            DEFAULT_PROMPTS, label=t("heat_prompts"), step=1, min_width=110, elem_id="zs-heat-prompts"
        )
        made["measure"] = gr.Button(t("heat_measure"), size="md", min_width=150, elem_id="zs-heat-measure")
    made["told"] = gr.HTML("", elem_id="zs-heat-told")
    return LabBoard(**made)


def add_lab_form(studio: Studio, t: Texts) -> LabForm:
    """Add the fields of the picture with the values of the default model."""
    model = studio.models.get(studio.settings.model)
    first = next(iter(forms.examples(model, t.lang)), "")
    with gr.Row(elem_classes="zs-lab-form"):
        prompt = gr.Textbox(
            first, label=t("prompt"), lines=1, max_lines=4, scale=3, min_width=180, elem_id="zs-lab-prompt"
        )
        seed = gr.Textbox(FIRST_SEED, label=t("seed"), max_lines=1, scale=1, min_width=90, elem_id="zs-lab-seed")
        new_seed = gr.Button(t("lab_seed_new"), size="md", min_width=90, elem_id="zs-lab-seed-new")
    with gr.Accordion(t("lab_more"), open=False, elem_classes="zs-fields"), gr.Row():
        own = [
            gr.Number(getattr(model.defaults, name), label=t(name), step=step, min_width=80, elem_id=f"zs-lab-{name}")
            for name, step in zip(FIELDS[2:], (16, 16, 1, 0.5), strict=True)
        ]
    return LabForm(prompt, seed, new_seed, own)


def add_lab_picture(t: Texts) -> LabPicture:
    """Add the place where both pictures appear."""
    made: dict[str, Any] = {}
    made["chips"] = gr.HTML(compress_heat.chips((), t), js_on_load=compress_heat.ON, elem_id="zs-lab-out")
    made["all_on"] = gr.Button(t("lab_all_on"), size="sm", visible=False, elem_id="zs-lab-all-on")
    with gr.Row(elem_classes="zs-go"):
        made["draw"] = gr.Button(t("lab_draw"), variant="primary", scale=3, min_width=120, elem_id="zs-lab-draw")
        made["stop"] = gr.Button(t("stop"), scale=1, min_width=70, interactive=False, elem_id="zs-lab-stop")
    made["live"] = gr.Checkbox(True, label=t("lab_live"), elem_id="zs-lab-live")
    made["stage"] = gr.HTML(compress_lab.idle(t), elem_id="zs-lab-stage")
    sides = (t("lab_show_whole"), t("lab_show_both"), t("lab_show_without"))
    made["compare"] = add_compare("zs-lab-slider", sides, t("lab_slider"))
    made["words"] = gr.HTML("", elem_id="zs-lab-words")
    return LabPicture(**made)
