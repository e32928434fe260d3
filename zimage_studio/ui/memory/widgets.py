"""The widgets of the Memory tab: what there is and what fits on the left, the profile and its proof on the right."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.memory import MemoryProfile
from zimage_studio.ui import forms, present
from zimage_studio.ui.memory import view as memory_view
from zimage_studio.ui.memory.form import ProfileForm, add_profile_form
from zimage_studio.ui.texts import Texts

SIDE_STEP = 16


@dataclass(frozen=True, slots=True)
class Planner:
    """The picture that is to be made, and what fits for it."""

    sizes: gr.Radio
    width: gr.Number
    height: gr.Number
    guidance: gr.Number
    html: gr.HTML
    use: gr.Button
    choice: gr.State

    @property
    def picture(self) -> list[Any]:
        """Width, height, guidance."""
        return [self.width, self.height, self.guidance]


@dataclass(frozen=True, slots=True)
class Chooser:
    """The profile: which one, what it says of itself, its switches, and what can be done with it."""

    pick: gr.Dropdown
    shown: gr.Textbox
    """Which pick the switches in the form belong to: who clicks on before they have followed means the pick."""
    use: gr.Button
    about: gr.HTML
    live: gr.HTML
    clash: gr.HTML
    form: ProfileForm
    name: gr.Textbox
    save: gr.Button
    delete: gr.Button
    take_in: gr.UploadButton
    export: gr.Button

    @property
    def outputs(self) -> list[Any]:
        """Everything that shows a profile."""
        return [self.pick, self.shown, self.name, self.delete, *self.form.widgets, *self.told]

    @property
    def told(self) -> list[Any]:
        """What is said about the profile in the form."""
        return [self.about, self.live, self.clash, *self.form.cells]


@dataclass(frozen=True, slots=True)
class Measuring:
    """Which profiles to measure on what, how far it is, and what came out."""

    profiles: gr.Dropdown
    prompt: gr.Textbox
    start: gr.Button
    stop: gr.Button
    progress: gr.HTML
    result: gr.HTML
    earlier: gr.Dropdown
    csv: gr.Button
    json: gr.Button
    exports: gr.Row

    @property
    def outputs(self) -> list[Any]:
        """What a run changes."""
        return [self.start, self.stop, self.progress, self.result, self.earlier, self.exports]


def title(words: str) -> gr.HTML:
    """The heading of a card."""
    return gr.HTML(f'<h2 class="zs-box-title">{present.escape(words)}</h2>')


def add_planner(model: ModelArtifact, t: Texts) -> Planner:
    """Add the card; it is filled when the tab is opened."""
    defaults = model.defaults
    with gr.Column(elem_classes="zs-box"):
        title(t("plan_title"))
        with gr.Column(elem_classes="zs-plan-picture"):
            sizes = gr.Radio(
                forms.size_choices(defaults), value=forms.size_key(defaults.width, defaults.height),
                label=t("plan_size"), elem_classes="zs-sizes",
            )  # fmt: skip
            with gr.Row(elem_classes="zs-plan-size"):
                width = gr.Number(
                    defaults.width, label=t("width"), step=SIDE_STEP, min_width=80, elem_id="zs-plan-width"
                )
                height = gr.Number(
                    defaults.height, label=t("height"), step=SIDE_STEP, min_width=80, elem_id="zs-plan-height"
                )
                guidance = gr.Number(
                    defaults.guidance, label=t("guidance"), step=0.5, min_width=60, elem_id="zs-plan-guidance"
                )
        html = gr.HTML(memory_view.plan_failed(t("plan_working")), elem_id="zs-plan")
        use = gr.Button(t("plan_use"), variant="primary", size="md", interactive=False, elem_id="zs-plan-use")
    return Planner(sizes, width, height, guidance, html, use, gr.State(""))


def add_chooser(profile: MemoryProfile, choices: list[tuple[str, str]], t: Texts) -> Chooser:
    """Add what shows a profile, set to `profile`; what it says of itself comes when the tab is opened."""
    with gr.Row(elem_classes="zs-profile-row"):
        pick = gr.Dropdown(
            choices, value=choices[0][1], label=t("profile_pick"), filterable=False, min_width=160,
            elem_id="zs-profile",
        )  # fmt: skip
        use = gr.Button(t("profile_use"), variant="primary", size="md", min_width=140, elem_id="zs-profile-use")
    shown = gr.Textbox(choices[0][1], visible=False)
    about = gr.HTML(memory_view.description(profile, profile, t), elem_id="zs-profile-about")
    clash = gr.HTML("", elem_id="zs-profile-clash")
    live = gr.HTML("", elem_id="zs-profile-live")
    form = add_profile_form(profile, t)
    with gr.Row(elem_classes="zs-profile-row zs-profile-keep"):
        name = gr.Textbox(
            "", label=t("profile_name"), placeholder=t("profile_name_placeholder"), max_lines=1, min_width=140,
            elem_id="zs-profile-name",
        )  # fmt: skip
        save = gr.Button(t("profile_save"), size="md", min_width=70, elem_id="zs-profile-save")
        delete = gr.Button(t("profile_delete"), size="md", min_width=70, interactive=False, elem_id="zs-profile-delete")
        take_in = gr.UploadButton(t("profile_import"), size="md", min_width=70, elem_id="zs-profile-import")
        export = gr.Button(t("profile_export"), size="md", min_width=70, elem_id="zs-profile-export")
    return Chooser(pick, shown, use, about, live, clash, form, name, save, delete, take_in, export)


def add_measuring(choices: list[tuple[str, str]], first: list[str], t: Texts) -> Measuring:
    """Add the card, with nothing measured."""
    gr.HTML(present.note(t("measure_intro")))
    profiles = gr.Dropdown(
        choices, value=first, multiselect=True, label=t("measure_profiles"), elem_id="zs-measure-profiles"
    )
    prompt = gr.Textbox(t("measure_prompt"), label=t("prompt"), lines=1, max_lines=4, elem_id="zs-measure-prompt")
    with gr.Row(elem_classes="zs-go"):
        start = gr.Button(t("measure_start"), variant="primary", elem_id="zs-measure", scale=3, min_width=120)
        stop = gr.Button(t("stop"), elem_id="zs-measure-stop", scale=1, min_width=80, interactive=False)
    progress = gr.HTML("", elem_id="zs-measure-progress")
    result = gr.HTML(present.note(t("measure_empty")), elem_id="zs-measured")
    with gr.Row(visible=False, elem_classes="zs-actions") as exports:
        csv = gr.Button(t("measure_csv"), size="md", min_width=110, elem_id="zs-measure-csv")
        json = gr.Button(t("measure_json"), size="md", min_width=110, elem_id="zs-measure-json")
    earlier = gr.Dropdown([], label=t("measure_earlier"), visible=False, filterable=False, elem_id="zs-measure-earlier")
    return Measuring(profiles, prompt, start, stop, progress, result, earlier, csv, json, exports)
