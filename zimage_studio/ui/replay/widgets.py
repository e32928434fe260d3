"""The widgets of the Replay tab: the ways in on the left, what happens and came out on the right."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.services.replay import Original
from zimage_studio.services.studio import Studio
from zimage_studio.ui import present
from zimage_studio.ui.compare import Compare, add_compare
from zimage_studio.ui.doors import Update
from zimage_studio.ui.picker import Picker, add_picker
from zimage_studio.ui.replay import view as replay_view
from zimage_studio.ui.request_form import RequestForm, add_request_form
from zimage_studio.ui.texts import Texts

RECORDED = ""
"""The choice of the model picker that means: the weights of the recipe, by hash."""


@dataclass(frozen=True, slots=True)
class Ways:
    """The left side: the ways in, the buttons, the fields."""

    picker: Picker
    paste: gr.Textbox
    replay: gr.Button
    stop: gr.Button
    form: RequestForm


@dataclass(frozen=True, slots=True)
class Outcome:
    """The right side: what happens or came out above, what was read below."""

    stage: gr.HTML
    verdict: gr.HTML
    anyway_row: gr.Row
    anyway: gr.Button
    pictures: gr.Row
    compare: Compare
    map: gr.Image
    map_words: gr.HTML
    image: gr.Image
    actions: gr.Row
    download: gr.DownloadButton
    refine: gr.Button
    made_id: gr.State
    recipe: gr.HTML
    reading: gr.HTML

    def cleared(self) -> Update:
        """Nothing has come out (yet)."""
        hidden = (self.verdict, self.anyway_row, self.pictures, self.image, self.actions, self.recipe)
        return {widget: gr.update(visible=False) for widget in hidden}

    @property
    def outputs(self) -> list[Any]:
        """What a run changes."""
        return [
            self.stage, self.verdict, self.anyway_row, self.anyway, self.pictures, *self.compare.outputs, self.map,
            self.map_words, self.image, self.actions, self.download, self.made_id,
            self.recipe,
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Held:
    """What the page remembers: the original and what the form showed of it (on the server), and that there is one
    (in the browser, so that a restart of the server in between is noticed)."""

    original: gr.State
    shown: gr.State
    mark: gr.Textbox
    nearest: gr.State

    @property
    def outputs(self) -> list[Any]:
        """All of it."""
        return [self.original, self.shown, self.mark, self.nearest]


def add_ways(studio: Studio, t: Texts) -> Ways:
    """Add the left side, with the values of the default model."""
    models = studio.models.list()
    default = next((model for model in models if model.key == studio.settings.model), models[0])
    with gr.Column(elem_classes="zs-ways"):
        picker = add_picker("zs-drop", "zs-recent", t)
        with gr.Group():
            paste = gr.Textbox(
                label=t("paste"), placeholder=t("paste_placeholder"), lines=2, max_lines=6, elem_id="zs-paste"
            )
    with gr.Row(elem_classes="zs-go", elem_id="zs-replay-go"):
        run = gr.Button(t("replay"), variant="primary", elem_id="zs-replay", scale=3, min_width=120)
        stop = gr.Button(t("stop"), elem_id="zs-replay-stop", scale=1, min_width=80, interactive=False)
    with gr.Column(elem_classes="zs-settings zs-replay-form"):
        gr.HTML(present.note(t("replay_fields")))
        form = add_request_form(default.defaults, model_choices(models, None, t), default.key, t)
    return Ways(picker, paste, run, stop, form)


def add_outcome(t: Texts) -> Outcome:
    """Add the right side, idle."""
    made: dict[str, Any] = {"stage": gr.HTML(replay_view.idle(t), elem_id="zs-replay-stage")}
    made["verdict"] = gr.HTML(visible=False, elem_id="zs-verdict")
    with gr.Row(visible=False, elem_classes="zs-actions") as anyway_row:
        made["anyway"] = gr.Button("", size="md", min_width=140, elem_id="zs-anyway")
    with gr.Row(visible=False, equal_height=False, elem_classes="zs-pictures") as pictures:
        sides = (t("show_then"), t("show_both"), t("show_now"))
        made["compare"] = add_compare("zs-slider", sides, t("slider_label"), scale=2)
        with gr.Column(scale=1, min_width=160, elem_classes="zs-map"):
            made["map"] = gr.Image(
                label=t("map_label"), show_label=False, format="png", interactive=False, buttons=["fullscreen"],
                alt_text=t("map_label"), elem_id="zs-map",
            )  # fmt: skip
            made["map_words"] = gr.HTML("")
    made["image"] = gr.Image(
        label=t("result_label"), show_label=False, visible=False, type="filepath", format="png", interactive=False,
        buttons=["fullscreen"], elem_id="zs-replay-image",
    )  # fmt: skip
    with gr.Row(visible=False, elem_classes="zs-actions") as actions:
        made["download"] = gr.DownloadButton(t("download_new"), size="md", min_width=140, elem_id="zs-replay-download")
        made["refine"] = gr.Button(t("refine"), size="md", min_width=90, elem_id="zs-replay-refine")
    made["reading"] = gr.HTML(visible=False, elem_id="zs-reading")
    made["recipe"] = gr.HTML(visible=False, elem_id="zs-new-recipe")
    return Outcome(anyway_row=anyway_row, pictures=pictures, actions=actions, made_id=gr.State(""), **made)


def model_choices(models: tuple[ModelArtifact, ...], original: Original | None, t: Texts) -> list[tuple[str, str]]:
    """What the picker offers: every model, and before them the recorded weights when the recipe is ours."""
    listed = [(model.name, model.key) for model in models]
    if original is None or original.recipe is None:
        return listed
    recorded = original.recipe.model
    return [(t("model_recorded", name=recorded.name, sha256=recorded.sha256[:8]), RECORDED), *listed]
