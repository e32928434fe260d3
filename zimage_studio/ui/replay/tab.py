"""The Replay tab: hand in what an image was made with, make it again, read the verdict."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from zimage_studio.errors import UserError
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.services.images import StoredImage
from zimage_studio.services.replay import Original, read_pasted, read_picture
from zimage_studio.services.studio import Studio
from zimage_studio.ui import present, request_form
from zimage_studio.ui.doors import LOCAL, PRIVATE, Update, errors_as_toasts, session_of, shown, uploaded
from zimage_studio.ui.picker import picked
from zimage_studio.ui.replay import view as replay_view
from zimage_studio.ui.replay.run import Finished, Missing, ReplayRuns
from zimage_studio.ui.replay.widgets import RECORDED, Held, add_outcome, add_ways, model_choices
from zimage_studio.ui.texts import Texts
from zimage_studio.ui.watching import raise_failure

_SEED = re.compile(r"\d{1,20}", re.ASCII)
SCROLL_TO_READING = """() => { if (innerWidth <= 860)
    setTimeout(() => document.querySelector("#zs-replay-go")?.scrollIntoView({behavior: "smooth"}), 150); }"""


class ReplayTab:
    """Widgets and wiring. Other tabs hand an image over with `offer`."""

    def __init__(self, studio: Studio, tabs: gr.Tabs, tab: gr.Tab, t: Texts) -> None:
        self._studio = studio
        self._tabs = tabs
        self._t = t
        self._runs = ReplayRuns(studio, t)
        self._held = Held(gr.State(None), gr.State({}), gr.Textbox("", visible=False), gr.State(""))
        with gr.Row(elem_classes="zs-columns", equal_height=False):
            with gr.Column(scale=0, min_width=300, elem_classes="zs-controls"):
                self._ways = add_ways(studio, t)
            with gr.Column(scale=1, min_width=300, elem_classes="zs-stage-column"):
                self._out = add_outcome(t)
        self._wire_ways(tab)
        self._wire_run()

    def offer(self, button: gr.Button, image_id: gr.State) -> None:
        """Let `button` of another tab bring the image `image_id` here."""

        def on_offer(chosen: str) -> Update:
            return {**self._pick(chosen), self._tabs: gr.update(selected="replay")}

        button.click(on_offer, image_id, [*self._read_outputs, self._tabs], **PRIVATE).success(
            None, None, None, js=SCROLL_TO_READING, **LOCAL
        )

    @property
    def refine(self) -> tuple[gr.Button, gr.State]:
        """The button that hands the new image on, and its id."""
        return self._out.refine, self._out.made_id

    @property
    def _read_outputs(self) -> list[Any]:
        ways, out = self._ways, self._out
        return [ways.picker.drop, ways.paste, *ways.form.widgets, *out.outputs, out.reading, *self._held.outputs]

    def _wire_ways(self, tab: gr.Tab) -> None:
        ways, outputs = self._ways, self._read_outputs

        def on_drop(file: object) -> Update:
            try:
                path, name = uploaded(file)
                original = read_picture(path, name=name)
            except UserError as error:
                return self._refused(error)
            return {**self._loaded(original, str(path)), ways.paste: ""}

        def on_paste(text: object) -> Update:
            return self._pasted(text if isinstance(text, str) else "")

        def on_recent(ids: list[str], event: gr.SelectData) -> Update:
            with errors_as_toasts(self._t):
                return self._pick(picked(ids, event.index))

        def on_open() -> Update:
            return ways.picker.newest(self._studio)

        scroll = {"fn": None, "inputs": None, "outputs": None, "js": SCROLL_TO_READING, **LOCAL}
        gr.on([tab.select, self._out.verdict.change], on_open, None, ways.picker.outputs, **PRIVATE)
        ways.picker.drop.upload(on_drop, ways.picker.drop, outputs, **PRIVATE).success(**scroll)
        ways.picker.recent.select(on_recent, ways.picker.ids, outputs, **PRIVATE).success(**scroll)
        # "change", as Gradio's "input" is silent on what comes by the clipboard
        ways.paste.change(on_paste, ways.paste, outputs, trigger_mode="always_last", **PRIVATE)
        ways.form.model.input(self._on_model, [ways.form.model, self._held.original], ways.form.widgets, **PRIVATE)

    def _wire_run(self) -> None:
        ways, held = self._ways, self._held

        def on_replay(request: gr.Request, original: object, seen: object, mark: object, *widgets: Any) -> Any:
            values, model = ways.form.values(widgets)
            with errors_as_toasts(self._t):
                source = self._source(original, mark)
                overrides = values if source.recipe is None else request_form.changed(_mapping(seen), values)
                key = None if model == RECORDED and source.recipe is not None else _text(model)
                yield from self._run(source, overrides, key, session_of(request))

        def on_anyway(
            request: gr.Request, nearest: str, original: object, seen: object, mark: object, *widgets: Any
        ) -> Any:
            yield from on_replay(request, original, seen, mark, *widgets[:-1], nearest)

        def on_stop(request: gr.Request) -> None:
            self._runs.stop(session_of(request))

        inputs = [held.original, held.shown, held.mark, *ways.form.widgets]
        outputs = [*self._out.outputs, ways.stop, held.nearest]
        ways.replay.click(on_replay, inputs, outputs, trigger_mode="once", **PRIVATE)
        self._out.anyway.click(on_anyway, [held.nearest, *inputs], outputs, trigger_mode="once", **PRIVATE)
        ways.stop.click(on_stop, None, None, **PRIVATE)

    # --- what was handed in

    def _pick(self, image_id: str) -> Update:
        with errors_as_toasts(self._t):
            image = self._studio.images.get(image_id)
            original = read_picture(image.path)
        thumbnail = shown(self._studio.images.thumbnail(image))
        return {**self._loaded(original, thumbnail), self._ways.paste: ""}

    def _pasted(self, text: str) -> Update:
        if not text.strip():  # also when another way in has cleared it
            return {self._ways.paste: gr.skip()}
        if _SEED.fullmatch(text.strip()):
            seed = text.strip()
            html = gr.update(value=replay_view.only_a_seed(seed, self._t), visible=True)
            return {**self._emptied(), **self._ways.form.show({"seed": seed}), self._out.reading: html}
        try:
            original = read_pasted(text)
        except UserError as error:
            return self._refused(error)
        kept = self._kept(original)
        return self._loaded(replace(original, path=None if kept is None else kept.path), _thumbnail(self._studio, kept))

    def _kept(self, original: Original) -> StoredImage | None:
        """The image of a pasted recipe, when History still has it."""
        if original.recipe is None:
            return None
        images = self._studio.images.with_pixels(original.recipe.outcome.pixels_sha256)
        return next((image for image in images if image.path.exists()), None)

    def _loaded(self, original: Original, picture: str) -> Update:
        models, form, t = self._studio.models.list(), self._ways.form, self._t
        chosen = _model_for(original, models, self._studio.settings.model)
        values = {**request_form.defaults_of(chosen.defaults), **original.values}
        filled = [name for name in ("width", "height", "steps", "guidance") if name not in original.values]
        other = chosen.name if original.recipe is None and not _is_named(chosen, original.model_name) else ""
        html = replay_view.reading(
            original, t, picture=picture, filled=filled, chosen=other if original.model_name else ""
        )
        own = original.recipe is not None
        return {
            **self._emptied(), **form.show(values),
            form.model: gr.update(choices=model_choices(models, original, t), value=RECORDED if own else chosen.key),
            self._out.reading: gr.update(value=html, visible=True),
            self._held.original: original, self._held.shown: values, self._held.mark: "read",
        }  # fmt: skip

    def _emptied(self) -> Update:
        """Nothing is held, and nothing has come out."""
        form = self._ways.form
        models = self._studio.models.list()
        picker = gr.update(choices=model_choices(models, None, self._t), value=self._studio.settings.model)
        return {
            **self._out.cleared(), form.model: picker,
            self._ways.picker.drop: None, self._out.stage: gr.update(visible=False),
            self._out.reading: gr.update(visible=False),
            self._held.original: None, self._held.shown: {}, self._held.mark: "", self._held.nearest: "",
        }  # fmt: skip

    def _refused(self, error: UserError) -> Update:
        html = replay_view.unreadable(error.text(self._t.lang))
        return {**self._emptied(), self._out.reading: gr.update(value=html, visible=True)}

    def _on_model(self, key: object, original: Original | None) -> Update:
        """What nothing that was read decides comes from the model that is chosen."""
        artifact = next((model for model in self._studio.models.list() if model.key == key), None)
        if artifact is None or (original is not None and original.recipe is not None):
            return {self._ways.form.model: gr.skip()}
        values = request_form.defaults_of(artifact.defaults)
        said = set() if original is None else original.values.keys()
        fresh = {name: values[name] for name in ("width", "height", "steps", "guidance") if name not in said}
        return self._ways.form.show(fresh)

    # --- what comes out

    def _source(self, original: object, mark: object) -> Original:
        if isinstance(original, Original):
            return original
        if mark:
            raise UserError("replay_lost")
        return Original(None)

    def _run(
        self, original: Original, overrides: dict[str, object], model: str | None, session: str
    ) -> Iterator[Update]:
        ways, out = self._ways, self._out
        start: Update = {**out.cleared(), ways.stop: gr.update(interactive=True)}
        end: Update = {**out.cleared(), ways.stop: gr.update(interactive=False)}
        try:
            for news in self._runs.run(original, overrides, model, session):
                if isinstance(news, Missing):
                    yield {**end, **self._missing(news)}
                elif isinstance(news, Finished):
                    yield {**end, **self._finished(news, original)}
                else:
                    now = end if news.view.finished else start
                    yield {**now, out.stage: gr.update(value=news.html, visible=True)}
                    raise_failure(news.view, self._t)
                    start = {}
        except UserError as error:
            if not start:  # it has been shown to work
                html = present.stage_failed(error.text(self._t.lang), self._t)
                yield {**end, out.stage: gr.update(value=html, visible=True)}
            raise

    def _missing(self, news: Missing) -> Update:
        out, t = self._out, self._t
        name = self._studio.models.get(news.nearest).name
        html = replay_view.model_missing(news.error.text(t.lang), news.wanted, t)
        return {
            out.stage: gr.update(visible=False),
            out.verdict: gr.update(value=html, visible=True),
            out.anyway_row: gr.update(visible=True),
            out.anyway: gr.update(value=t("replay_anyway", name=name)),
            self._held.nearest: news.nearest,
        }

    def _finished(self, news: Finished, original: Original) -> Update:
        out, made, verdict, pictures = self._out, news.made, news.judgement.verdict, news.judgement.pictures
        path = shown(made.path)
        common: Update = {
            out.stage: gr.update(visible=False),
            out.verdict: gr.update(value=replay_view.verdict(verdict, original, made, self._t), visible=True),
            out.actions: gr.update(visible=True),
            out.download: gr.update(value=path),
            out.made_id: made.id,
            out.recipe: gr.update(value=replay_view.new_recipe(made, self._t), visible=True),
        }
        if pictures is None:
            return {**common, out.image: gr.update(value=path, alt_text=present.alt_text(made), visible=True)}
        caption = replay_view.difference_caption(pictures.factor, verdict.max_difference, self._t)
        return {
            **common,
            out.pictures: gr.update(visible=True),
            **out.compare.show(pictures.before_HWC, path),
            out.map: gr.update(value=pictures.map_HWC),
            out.map_words: caption,
        }


def _model_for(original: Original, models: tuple[ModelArtifact, ...], default: str) -> ModelArtifact:
    """The model that draws: the one of the same name, else the default one."""
    named = (model for model in models if not model.missing and _is_named(model, original.model_name))
    return next(named, None) or next((model for model in models if model.key == default), models[0])


def _is_named(model: ModelArtifact, name: str) -> bool:
    return bool(name) and name.casefold() in (model.name.casefold(), model.key.casefold())


def _thumbnail(studio: Studio, image: StoredImage | None) -> str:
    return "" if image is None else shown(studio.images.thumbnail(image))


def _mapping(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else repr(value)
