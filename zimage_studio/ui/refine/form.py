"""The whole request as a form, with what was changed against the base marked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.ui import present
from zimage_studio.ui.doors import Update
from zimage_studio.ui.present import escape
from zimage_studio.ui.refine.base import NOISE, PICTURE, RECORDED, Base, changes, earlier_links, shown_values
from zimage_studio.ui.request_form import WORDS, RequestForm, add_request_form
from zimage_studio.ui.texts import Texts

PREFIX = "zs-refine"
OWN = ("variety", "source", "strength")
"""Fields with widgets of their own here."""
MAX_SHOWN = 40


@dataclass(frozen=True, slots=True)
class RefineForm:
    """The widgets. `request` holds the fields that every form has, `own` those that only this one shows, by name."""

    request: RequestForm
    own: Mapping[str, Any]
    start_row: gr.Group
    strength_note: gr.HTML
    chain: gr.HTML
    marks: gr.HTML
    undo: gr.Button

    @property
    def widgets(self) -> list[Any]:
        """All that hold something; the model is the last."""
        return [*self.request.fields.values(), *self.own.values(), self.request.model]

    @property
    def outputs(self) -> list[Any]:
        """What `show` changes."""
        return [*self.widgets, self.start_row, self.strength_note, self.chain, self.marks, self.undo]

    @property
    def edits(self) -> list[Any]:
        """The events of a person who edits; "change" of texts, as Gradio's "input" is silent on the clipboard."""
        return [one.change if isinstance(one, gr.Textbox) else one.input for one in self.widgets]

    def held(self, widgets: Sequence[object]) -> dict[str, object]:
        """What the widgets hold, by name."""
        names = [*self.request.fields, *self.own, "model"]
        return dict(zip(names, widgets, strict=True))

    def show(
        self, held: Mapping[str, object], base: Base | None, models: tuple[ModelArtifact, ...], t: Texts
    ) -> Update:
        """Set all widgets."""
        own: Update = {
            widget: held[name] for name, widget in self.own.items() if name not in ("start", "variation_seed")
        }
        return {
            **self.request.show(held),
            **own,
            self.own["variation_seed"]: held["variation_seed"] or "",
            self.own["start"]: gr.update(choices=_starts(base, t), value=held["start"]),
            self.own["strength"]: gr.update(value=held["strength"], visible=held["start"] != NOISE),
            self.strength_note: gr.update(visible=held["start"] != NOISE),
            self.request.model: gr.update(choices=[(model.name, model.key) for model in models], value=held["model"]),
            self.start_row: gr.update(visible=base is not None),
            self.chain: gr.update(value=_chain_words(base, t), visible=bool(base and earlier_links(base.values))),
            **self.mark(held, base, t),
        }

    def mark(self, held: Mapping[str, object], base: Base | None, t: Texts) -> Update:
        """Say what differs from the base, beside its widgets and in words."""
        found = {} if base is None else changes(shown_values(base.values, base.model, base.sha256), held)
        return {self.marks: _marks(found, t), self.undo: gr.update(visible=bool(found))}


def values_of(held: Mapping[str, object], base: Base | None) -> dict[str, object]:
    """The values of a request; records.request checks them. An emptied field means the model's own."""
    start = held["start"] if base is not None else NOISE
    values: dict[str, object] = {
        name: None if value == "" and name not in WORDS else value
        for name, value in held.items()
        if name not in ("model", "start", "strength")
    }
    if base is not None:
        values["variations"] = earlier_links(base.values)
    if start == PICTURE and base is not None:
        values |= {"source": base.sha256, "strength": held["strength"]}
    elif start == RECORDED and base is not None:
        values |= {"source": base.values.get("source"), "strength": held["strength"]}
    return values


def add_marks(t: Texts) -> tuple[gr.HTML, gr.Button]:
    """Add the line that says what is changed, and the button that takes it back."""
    with gr.Row(elem_classes="zs-changed-row"):
        marks = gr.HTML("", elem_id=f"{PREFIX}-marks")
        undo = gr.Button(t("undo"), size="sm", visible=False, min_width=60, elem_id=f"{PREFIX}-undo")
    return marks, undo


def add_refine_form(
    model: ModelArtifact, choices: list[tuple[str, str]], marks: tuple[gr.HTML, gr.Button], t: Texts
) -> RefineForm:
    """Add the other widgets."""
    request = add_request_form(model.defaults, choices, model.key, t, prefix=PREFIX, without=OWN)
    own: dict[str, Any] = {}
    with gr.Group():
        chain = gr.HTML("", visible=False, elem_classes="zs-chain")
        own["variation_seed"] = gr.Textbox(
            "", label=present.field_name("variation_seed", t), placeholder=t("seed_placeholder"), max_lines=1,
            elem_id=f"{PREFIX}-variation-seed",
        )  # fmt: skip
        own["variation_strength"] = _slider("variation_strength", 0, 0, t)
        own["variety"] = _slider("variety", 0, 0, t)
        gr.HTML(present.note(t("variety_note")))
    with gr.Group(visible=False) as start_row:
        own["start"] = gr.Radio(
            _starts(None, t), value=NOISE, label=t("start"), elem_id=f"{PREFIX}-start", elem_classes="zs-sizes"
        )
        own["strength"] = _slider("strength", 0.01, 0.6, t, visible=False)
        note = gr.HTML(present.note(t("strength_note")), visible=False)
    return RefineForm(request, own, start_row, note, chain, *marks)


def field_text(name: str, value: object, t: Texts) -> str:
    """A value of the form in words."""
    if name == "start":
        return t({NOISE: "start_noise", PICTURE: "start_picture", RECORDED: "start_recorded"}.get(str(value), "start"))
    if value is None or value == "":
        return t("shift_own" if name == "shift" else "seed_placeholder" if name.endswith("seed") else "nothing")
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def changes_html(found: Mapping[str, tuple[object, object]], t: Texts) -> str:
    """Each change as before → after; of a prompt only that it is another one."""
    parts = []
    for name, (before, after) in found.items():
        words = f"<b>{escape(_name(name, t))}</b>"
        if name not in WORDS:
            words += f" <s>{escape(field_text(name, before, t))}</s> → {escape(field_text(name, after, t))}"
        parts.append(f"<li>{words}</li>")
    return f'<ul class="zs-changes">{"".join(parts)}</ul>' if parts else ""


def _marks(found: Mapping[str, tuple[object, object]], t: Texts) -> str:
    """The style marks the widgets; the words say the same to who does not see it."""
    if not found:
        return ""
    ids = ",".join(f"#{PREFIX}-{name.replace('_', '-')}" for name in found)
    style = f"<style>{ids}{{box-shadow:inset 3px 0 0 var(--primary-500)!important}}</style>"
    return f'{style}<div class="zs-changed" role="status">{escape(t("changed"))}{changes_html(found, t)}</div>'


def _name(name: str, t: Texts) -> str:
    return t("start") if name == "start" else present.field_name(name, t)


def _starts(base: Base | None, t: Texts) -> list[tuple[str, str]]:
    starts = [(t("start_noise"), NOISE), (t("start_picture"), PICTURE)]
    if base is not None and base.values.get("source") not in (None, base.sha256):
        starts.append((t("start_recorded"), RECORDED))
    return starts


def _chain_words(base: Base | None, t: Texts) -> str:
    links = earlier_links(base.values) if base is not None else []
    words = ", ".join(t("chain_link", seed=link["seed"], strength=f"{link['strength']:g}") for link in links)  # type: ignore[index,call-overload]
    return present.note(t("chain", links=words))


def _slider(name: str, low: float, value: float, t: Texts, **options: Any) -> gr.Slider:
    return gr.Slider(
        low, 1, value, step=0.01, label=present.field_name(name, t), min_width=120,
        elem_id=f"{PREFIX}-{name.replace('_', '-')}", **options,
    )  # fmt: skip
