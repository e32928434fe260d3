"""The fields of a request as widgets, made from the record itself: a field that is new there appears here.

Fields that no single widget holds (lists, such as the variations) are not shown; whoever uses the form keeps them.
"""

import dataclasses
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_type_hints

import gradio as gr

from zimage_studio.records.request import GenerationRequest, ModelDefaults
from zimage_studio.ui import present
from zimage_studio.ui.doors import Update
from zimage_studio.ui.texts import Texts

Kind = Literal["words", "text", "number", "flag"]
WORDS = ("prompt", "negative_prompt")
GROUPS = ((("prompt",), ("negative_prompt",)), (("width", "height"), ("steps", "guidance", "shift")), (("seed",),))
"""Groups of rows of fields."""
ROW_FIELDS = 2
SIDE_STEP = 16


def kinds() -> dict[str, Kind]:
    """The fields that a widget can hold, and which.

    Seeds are text, as JavaScript rounds above 2^53; so are numbers that may be left out, as Gradio shows those as 0.
    """
    hints = get_type_hints(GenerationRequest)
    found = {field.name: _kind(field.name, hints[field.name]) for field in dataclasses.fields(GenerationRequest)}
    return {name: kind for name, kind in found.items() if kind is not None}


def groups(without: Container[str] = ()) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """How the fields are laid out: those that everybody knows first, then what is new, two in a row."""
    known = {name for group in GROUPS for row in group for name in row}
    more = [name for name in kinds() if name not in known and name not in without]
    pairs = tuple(tuple(more[at : at + ROW_FIELDS]) for at in range(0, len(more), ROW_FIELDS))
    return (*GROUPS, pairs) if pairs else GROUPS


def defaults_of(defaults: ModelDefaults) -> dict[str, object]:
    """What the form shows before anything is read: the model's own values, and those of the record."""
    own = {field.name: field.default for field in dataclasses.fields(GenerationRequest)}
    blank = {name: None if value is dataclasses.MISSING else value for name, value in own.items()}
    return {**blank, "prompt": "", **{name: getattr(defaults, name) for name in blank if hasattr(defaults, name)}}


@dataclass(frozen=True, slots=True)
class RequestForm:
    """One widget for each field, by name, and the picker of the model."""

    fields: Mapping[str, Any]
    model: gr.Dropdown

    @property
    def widgets(self) -> list[Any]:
        """All of them; the model is the last."""
        return [*self.fields.values(), self.model]

    def values(self, widgets: Sequence[object]) -> tuple[dict[str, object], object]:
        """What the widgets hold, in their order, as the values of a request, and the model.

        Emptied means the model's own.
        """
        *held, model = widgets
        named = dict(zip(self.fields, held, strict=True))
        return {name: None if value == "" and name not in WORDS else value for name, value in named.items()}, model

    def show(self, values: Mapping[str, object]) -> Update:
        """Set the widgets of the fields that `values` names."""
        kind = kinds()
        return {
            widget: "" if values[name] is None and kind[name] == "text" else _held(kind[name], values[name])
            for name, widget in self.fields.items()
            if name in values
        }


def changed(shown: Mapping[str, object], now: Mapping[str, object]) -> dict[str, object]:
    """The fields that a person set to something else than what the form showed.

    Browsers turn 2.0 into 2, every line break into one kind, and seeds are shown as text.
    """
    return {name: value for name, value in now.items() if _plain(name, value) != _plain(name, shown.get(name))}


def add_request_form(
    defaults: ModelDefaults,
    choices: list[tuple[str, str]],
    model: str,
    t: Texts,
    *,
    prefix: str = "zs-replay",
    without: Container[str] = (),
) -> RequestForm:
    """Add the widgets, with the values of a model; their ids begin with `prefix`. Whoever leaves fields out has them.

    The numbers have no bounds here: records.request refuses in the page's language, Gradio would in English.
    """
    made: dict[str, Any] = {}
    values, kind = defaults_of(defaults), kinds()
    for group in groups(without):
        with gr.Group():
            for row in group:
                with gr.Row():
                    for name in row:
                        made[name] = _widget(name, kind[name], values.get(name), prefix, t)
    with gr.Group():
        picker = gr.Dropdown(choices, value=model, label=t("model"), elem_id=f"{prefix}-model")
    return RequestForm({name: made[name] for name in kind if name in made}, picker)


def _widget(name: str, kind: Kind, value: object, prefix: str, t: Texts) -> Any:
    label, elem_id = present.field_name(name, t), f"{prefix}-{name.replace('_', '-')}"
    if kind == "flag":
        return gr.Checkbox(bool(value), label=label, elem_id=elem_id)
    if kind == "number":
        step = SIDE_STEP if name in ("width", "height") else 1 if name == "steps" else 0.1
        return gr.Number(value, label=label, step=step, min_width=80, elem_id=elem_id)  # type: ignore[arg-type]
    lines = {"prompt": 3}.get(name, 1)
    empty = {"seed": "seed_placeholder", "shift": "shift_own"}.get(name)
    return gr.Textbox(
        "" if value is None else str(value), label=label, lines=lines, max_lines=8 if kind == "words" else 1,
        placeholder=t(empty) if empty else None, min_width=80, elem_id=elem_id,
    )  # fmt: skip


def _kind(name: str, hint: object) -> Kind | None:
    """`hint` may be a union with None."""
    members = [member for member in get_args(hint) if member is not NoneType] or [hint]
    if name in WORDS:
        return "words"
    if len(members) != 1:
        return None
    if members[0] not in (str, bool, int, float):
        return None
    if members[0] is str or hint != members[0] or name.endswith("seed"):
        return "text"
    if members[0] is bool:
        return "flag"
    return "number"


def _held(kind: Kind, value: object) -> object:
    return str(value) if kind == "text" else value


def _plain(name: str, value: object) -> object:
    if value is None or value == "":
        return "" if name in WORDS else None
    if isinstance(value, str) and name in WORDS:
        return value.replace("\r\n", "\n").replace("\r", "\n")
    return str(value).strip() if kinds().get(name) == "text" else value
