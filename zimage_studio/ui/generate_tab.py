"""The Generate tab: the controls on the left, the stage with the image on the right."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from zimage_studio.errors import UserError
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.recipe import Recipe
from zimage_studio.records.request import ModelDefaults
from zimage_studio.services.generation import GenerationJob
from zimage_studio.services.images import StoredImage
from zimage_studio.services.studio import Studio
from zimage_studio.ui import forms, present
from zimage_studio.ui.doors import LOCAL, PRIVATE, Update, errors_as_toasts, session_of, shown, toast
from zimage_studio.ui.texts import Texts
from zimage_studio.ui.watching import moments, raise_failure


@dataclass(frozen=True, slots=True)
class Controls:
    """The widgets of a request, and what stands around them."""

    prompt: gr.Textbox
    generate: gr.Button
    stop: gr.Button
    examples: tuple[gr.Button, ...]
    negative: gr.Textbox
    negative_note: gr.HTML
    sizes: gr.Radio
    width: gr.Number
    height: gr.Number
    steps: gr.Number
    guidance: gr.Number
    count: gr.Number
    seed: gr.Textbox
    seed_random: gr.Button
    seed_keep: gr.Button
    seed_note: gr.HTML
    variety: gr.Slider
    last_seed: gr.Textbox
    model: gr.Dropdown
    model_note: gr.HTML

    @property
    def fields(self) -> list[Any]:
        """The widgets of forms.FIELDS, in that order."""
        return [
            self.prompt, self.negative, self.width, self.height,
            self.steps, self.guidance, self.seed, self.count, self.variety,
        ]  # fmt: skip

    def show(self, recipe: Recipe) -> Update:
        """Set the widgets to the recipe of an image."""
        values = forms.from_recipe(recipe)
        updates: Update = {widget: values[name] for name, widget in zip(forms.FIELDS, self.fields, strict=True)}
        return {**updates, self.model: recipe.model.key}


@dataclass(frozen=True, slots=True)
class Stage:
    """The right side: what is happening, then what came out."""

    html: gr.HTML
    gallery: gr.Gallery
    actions: gr.Row
    download: gr.DownloadButton
    again: gr.Button
    replay: gr.Button
    refine: gr.Button
    recipe: gr.HTML
    ids: gr.State
    chosen_id: gr.State

    def working(self) -> Update:
        """The outcome of the last run makes room for the one that is forming."""
        return {
            self.gallery: gr.update(visible=False, value=None),
            self.actions: gr.update(visible=False),
            self.recipe: gr.update(visible=False),
        }

    def done(self, images: tuple[StoredImage, ...], t: Texts) -> Update:
        """The images large, and the first one's recipe."""
        entries = [(shown(image.path), present.alt_text(image)) for image in images]
        return {
            self.html: gr.update(visible=False, value=""),
            self.gallery: gr.update(value=entries, visible=True, selected_index=0),
            self.actions: gr.update(visible=True),
            self.ids: [image.id for image in images],
            **self.chosen(images[0], t),
        }

    def chosen(self, image: StoredImage, t: Texts) -> Update:
        """The recipe and the file of the image that is looked at."""
        return {
            self.recipe: gr.update(value=present.recipe(image, t), visible=True),
            self.download: gr.update(value=shown(image.path)),
            self.chosen_id: image.id,
        }

    @property
    def outputs(self) -> list[Any]:
        """Everything on this side."""
        return [self.html, self.gallery, self.actions, self.ids, *self.chosen_outputs]

    @property
    def chosen_outputs(self) -> list[Any]:
        """What changes with the image that is looked at."""
        return [self.recipe, self.download, self.chosen_id]


def add_generate_tab(studio: Studio, t: Texts) -> tuple[Controls, Stage]:
    """Add widgets and wiring to the Blocks that is being built."""
    models = studio.models.list()
    default = _find(models, studio.settings.model) or models[0]
    with gr.Row(elem_classes="zs-columns", equal_height=False):
        with gr.Column(scale=0, min_width=300, elem_classes="zs-controls"):
            controls = _controls(models, default, t)
        with gr.Column(scale=1, min_width=300, elem_classes="zs-stage-column"):
            stage = _stage(t)
    _wire_local(controls, t)
    _wire_model(studio, controls, t)
    _wire_generation(studio, controls, stage, t)
    return controls, stage


def refresh_models(models: tuple[ModelArtifact, ...], seen: object = None) -> tuple[Any, list[list[str]]]:
    """The choices of the model picker as they are now, and what to compare with next time: `seen` is left alone."""
    choices = _choices(models)
    mark = [list(choice) for choice in choices]
    return gr.skip() if mark == seen else gr.update(choices=choices), mark


def _find(models: tuple[ModelArtifact, ...], key: object) -> ModelArtifact | None:
    return next((model for model in models if model.key == key), None)


def _choices(models: tuple[ModelArtifact, ...]) -> list[tuple[str, str]]:
    return [(model.name, model.key) for model in models]


def _controls(models: tuple[ModelArtifact, ...], default: ModelArtifact, t: Texts) -> Controls:
    defaults = default.defaults
    with gr.Group(elem_classes="zs-ask"):
        prompt = gr.Textbox(
            label=t("prompt"), placeholder=t("prompt_placeholder"), lines=3, max_lines=10,
            elem_id="zs-prompt", autofocus=True,
        )  # fmt: skip
    with gr.Row(elem_classes="zs-go"):
        generate = gr.Button(t("generate"), variant="primary", elem_id="zs-generate", scale=3, min_width=120)
        stop = gr.Button(t("stop"), elem_id="zs-stop", scale=1, min_width=80, interactive=False)
    with gr.Row(elem_classes="zs-examples"):
        prompts = forms.examples(default, t.lang)
        examples = tuple(gr.Button(text, size="sm", min_width=0, elem_classes="zs-example") for text in prompts)
    with gr.Column(elem_classes="zs-settings"):
        settings = _settings(models, default, defaults, t)
    return Controls(prompt=prompt, generate=generate, stop=stop, examples=examples, **settings)


def _settings(
    models: tuple[ModelArtifact, ...], default: ModelArtifact, defaults: ModelDefaults, t: Texts
) -> dict[str, Any]:
    """The numbers have no bounds here: records.request refuses in the page's language, Gradio would in English."""
    made: dict[str, Any] = {}
    with gr.Group():
        made["sizes"] = gr.Radio(
            forms.size_choices(defaults), value=forms.size_key(defaults.width, defaults.height),
            label=t("size"), elem_classes="zs-sizes",
        )  # fmt: skip
        with gr.Row():
            made["width"] = gr.Number(defaults.width, label=t("width"), step=16, min_width=80)
            made["height"] = gr.Number(defaults.height, label=t("height"), step=16, min_width=80)
        with gr.Row():
            made["steps"] = gr.Number(defaults.steps, label=t("steps"), min_width=80, elem_id="zs-steps")
            made["guidance"] = gr.Number(defaults.guidance, label=t("guidance"), step=0.5, min_width=80)
            made["count"] = gr.Number(1, label=t("count"), min_width=80, elem_id="zs-count")
    with gr.Group(elem_classes="zs-seed-group"):
        with gr.Row(elem_classes="zs-seed-row"):
            made["seed"] = gr.Textbox(
                "", label=t("seed"), placeholder=t("seed_placeholder"), max_lines=1, min_width=100, scale=3,
                elem_id="zs-seed",
            )  # fmt: skip
            made["seed_random"] = gr.Button(t("seed_random"), size="sm", min_width=60, scale=1)
            made["seed_keep"] = gr.Button(t("seed_keep"), size="sm", min_width=60, scale=1)
        made["seed_note"] = gr.HTML(present.seed_note(None, t), elem_id="zs-seed-note")
        made["variety"] = gr.Slider(0, 1, 0, step=0.05, label=present.field_name("variety", t), elem_id="zs-variety")
        gr.HTML(present.note(t("variety_note")))
        made["last_seed"] = gr.Textbox("", visible=False)
    with gr.Group():
        made["negative"] = gr.Textbox(
            label=t("negative_prompt"), placeholder=t("negative_placeholder"), lines=1, max_lines=5
        )
        made["negative_note"] = gr.HTML(_negative_note(defaults.guidance, t))
    with gr.Group():
        made["model"] = gr.Dropdown(_choices(models), value=default.key, label=t("model"), elem_id="zs-model")
        made["model_note"] = gr.HTML(present.model_note(default, t))
    return made


def _stage(t: Texts) -> Stage:
    html = gr.HTML(present.stage_idle(t), elem_id="zs-stage")
    gallery = gr.Gallery(
        label=t("result_label"), show_label=False, visible=False, format="png", interactive=False, preview=True,
        object_fit="contain", height="auto", buttons=["fullscreen"], elem_id="zs-gallery",
    )  # fmt: skip
    with gr.Row(visible=False, elem_classes="zs-actions") as actions:
        download = gr.DownloadButton(t("download"), size="md", min_width=140, elem_id="zs-download")
        again = gr.Button(t("again"), size="md", min_width=140, elem_id="zs-again")
        replay = gr.Button(t("replay"), size="md", min_width=100, elem_id="zs-to-replay")
        refine = gr.Button(t("refine"), size="md", min_width=100, elem_id="zs-to-refine")
    recipe = gr.HTML(visible=False, elem_id="zs-recipe")
    return Stage(
        html=html, gallery=gallery, actions=actions, download=download, again=again, replay=replay, refine=refine,
        recipe=recipe, ids=gr.State([]), chosen_id=gr.State(""),
    )  # fmt: skip


def _negative_note(guidance: float, t: Texts) -> str:
    return present.note(t("negative_on" if guidance > 0 else "negative_off"))


def _wire_local(controls: Controls, t: Texts) -> None:
    """What needs no server happens in the browser, at once."""
    for example in controls.examples:
        example.click(None, example, controls.prompt, js="(text) => text", **LOCAL)
    on, off = json.dumps(_negative_note(1, t)), json.dumps(_negative_note(0, t))
    controls.guidance.change(
        None, controls.guidance, controls.negative_note, js=f"(g) => Number(g) > 0 ? {on} : {off}", **LOCAL
    )
    sides = [controls.width, controls.height]
    controls.sizes.input(None, controls.sizes, sides, js="(size) => size.split('×').map(Number)", **LOCAL)
    for side in sides:
        side.change(None, sides, controls.sizes, js="(w, h) => `${w}×${h}`", **LOCAL)
    controls.seed_random.click(None, None, controls.seed, js="() => ''", **LOCAL)
    controls.seed_keep.click(None, controls.last_seed, controls.seed, js="(seed) => seed", **LOCAL)


def use_model(
    studio: Studio, controls: Controls, tabs: gr.Tabs, button: gr.Button, model: gr.Dropdown, t: Texts
) -> None:
    """A click on `button` goes to this tab with the model that `model` holds, and its own settings."""

    def on_use(key: object) -> Update:
        models = studio.models.list()
        if _find(models, key) is None:
            known = ", ".join(artifact.key for artifact in models)
            raise toast(UserError("unknown_model", value=str(key)[:80], known=known), t)
        return {controls.model: gr.update(choices=_choices(models), value=key), tabs: gr.Tabs(selected="generate")}

    on_model, outputs = _model_shower(studio, controls, t)
    button.click(on_use, model, [controls.model, tabs], **PRIVATE).success(on_model, model, outputs, **PRIVATE)


def _wire_model(studio: Studio, controls: Controls, t: Texts) -> None:
    on_model, outputs = _model_shower(studio, controls, t)
    controls.model.input(on_model, controls.model, outputs, **PRIVATE)


def _model_shower(studio: Studio, controls: Controls, t: Texts) -> tuple[Callable[[object], Update], list[Any]]:
    """What sets the controls to what a model wants, and the controls that it sets."""

    def on_model(key: object) -> Update:
        artifact = _find(studio.models.list(), key)
        if artifact is None:
            return {controls.model_note: gr.skip()}
        defaults = artifact.defaults
        prompts = forms.examples(artifact, t.lang)
        return {
            controls.model_note: present.model_note(artifact, t),
            controls.sizes: gr.update(
                choices=forms.size_choices(defaults), value=forms.size_key(defaults.width, defaults.height)
            ),
            controls.width: defaults.width,
            controls.height: defaults.height,
            controls.steps: defaults.steps,
            controls.guidance: defaults.guidance,
            controls.negative_note: _negative_note(defaults.guidance, t),
            **dict(zip(controls.examples, prompts, strict=False)),
        }

    outputs = [controls.model_note, controls.sizes, controls.width, controls.height, controls.steps]
    outputs += [controls.guidance, controls.negative_note, *controls.examples]
    return on_model, outputs


def _wire_generation(studio: Studio, controls: Controls, stage: Stage, t: Texts) -> None:
    def on_generate(request: gr.Request, *values: Any) -> Iterator[Update]:
        *fields, model = values
        with errors_as_toasts(t):
            job = studio.generation.submit(
                forms.to_values(*fields), model=forms.text_or_refuse("model", model), session=session_of(request)
            )
        yield from _watch(job, controls, stage, t)

    def on_stop(request: gr.Request) -> None:
        studio.generation.stop(session_of(request))

    def on_select(ids: list[str], event: gr.SelectData) -> Update:
        with errors_as_toasts(t):
            return stage.chosen(studio.images.get(ids[event.index]), t)

    def on_again(ids: list[str]) -> Update:
        with errors_as_toasts(t):
            return {**controls.show(studio.images.get(ids[0]).recipe), controls.seed: ""}

    outputs = [*stage.outputs, controls.last_seed, controls.seed_note, controls.stop]
    inputs = [*controls.fields, controls.model]
    controls.generate.click(on_generate, inputs, outputs, trigger_mode="once", **PRIVATE)
    controls.stop.click(on_stop, None, None, **PRIVATE)
    stage.gallery.select(on_select, stage.ids, stage.chosen_outputs, **PRIVATE)
    stage.again.click(on_again, stage.ids, inputs, **PRIVATE).success(on_generate, inputs, outputs, **PRIVATE)


def _watch(job: GenerationJob, controls: Controls, stage: Stage, t: Texts) -> Iterator[Update]:
    started = {**stage.working(), **_started(job, controls, t)}
    for moment in moments(job, t):
        if not moment.view.finished:
            yield {**started, stage.html: gr.update(value=moment.html, visible=True)}
            started = {}
            continue
        images = moment.view.images
        outcome = stage.done(images, t) if images else {stage.html: gr.update(value=moment.html, visible=True)}
        yield {**started, **outcome, controls.stop: gr.update(interactive=False)}
        raise_failure(moment.view, t)


def _started(job: GenerationJob, controls: Controls, t: Texts) -> Update:
    """The seed is known before the first step; Stop can be pressed."""
    seed = job.batch.first.seed
    return {
        controls.last_seed: str(seed),
        controls.seed_note: present.seed_note(seed, t),
        controls.stop: gr.update(interactive=True),
    }
