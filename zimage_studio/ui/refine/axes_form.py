"""The two axes of a grid as widgets: which field, and which values."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from zimage_studio.errors import UserError
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.grid import FIELDS, Axis, parse_axis
from zimage_studio.records.memory import PRESETS
from zimage_studio.ui import present
from zimage_studio.ui.doors import PRIVATE
from zimage_studio.ui.texts import Texts

NO_AXIS = ""
FIRST_X, FIRST_Y = "seed", "guidance"
SUGGESTED = 3
_FIXED = {
    "variation_seed": ("1", "2", "3"), "variation_strength": ("0.1", "0.2", "0.4"), "variety": ("0", "0.5", "1"),
    "strength": ("0.2", "0.4", "0.6"), "shift": ("1", "3", "6"), "guidance": ("0", "2", "4"),
}  # fmt: skip
_NOTES = ("prompt", "negative_prompt", "strength", "variation_seed", "model", "profile", "size")


@dataclass(frozen=True, slots=True)
class AxesForm:
    """The widgets."""

    x_field: gr.Dropdown
    x_values: gr.Textbox
    y_field: gr.Dropdown
    y_values: gr.Textbox
    note: gr.HTML

    @property
    def widgets(self) -> list[Any]:
        """Those that hold something, in the order in which `axes` takes their values."""
        return [self.x_field, self.x_values, self.y_field, self.y_values]

    def wire(
        self, request: list[Any], held: Callable[[Sequence[object]], Mapping[str, object]],
        models: Callable[[], tuple[ModelArtifact, ...]], t: Texts,
    ) -> None:  # fmt: skip
        """A chosen field brings values around those of the `request` (`held` names them); what is written, a note."""

        def on_field(field: object, last: object, *widgets: object) -> Any:
            if field == last:  # Gradio tells of one choice twice, and what was typed meanwhile would be lost
                return gr.skip(), field
            texts = suggested(str(field), held(widgets), models())
            return gr.update(value=written(texts), interactive=field != NO_AXIS), field

        def on_values(*values: object) -> str:
            return note(values, models(), t)

        for field, values, first in (
            (self.x_field, self.x_values, FIRST_X), (self.y_field, self.y_values, FIRST_Y),
        ):  # fmt: skip
            last = gr.State(first)
            field.input(on_field, [field, last, *request], [values, last], **PRIVATE)
            # "change", as Gradio's "input" is silent on what comes by the clipboard
            gr.on(
                [field.input, values.change], on_values, self.widgets, self.note, trigger_mode="always_last", **PRIVATE
            )


def add_axes_form(t: Texts) -> AxesForm:
    """Add the widgets."""
    names = [(present.field_name(name, t), name) for name in FIELDS]
    with gr.Group(elem_classes="zs-axes"):
        made: dict[str, Any] = {}
        for axis, first, choices, label, values in (
            ("x", FIRST_X, names, t("axis_x"), t("axis_x_values")),
            ("y", FIRST_Y, [(t("axis_none"), NO_AXIS), *names], t("axis_y"), t("axis_y_values")),
        ):
            with gr.Row():
                made[f"{axis}_field"] = gr.Dropdown(
                    choices, value=first, label=label, filterable=False, scale=2, min_width=110,
                    elem_id=f"zs-{axis}-field",
                )  # fmt: skip
                made[f"{axis}_values"] = gr.Textbox(
                    written(suggested(first, {}, ())), label=values, placeholder=t("axis_placeholder"), max_lines=4,
                    scale=3, min_width=140, elem_id=f"zs-{axis}-values",
                )  # fmt: skip
        made["note"] = gr.HTML(present.note(t("axis_hint")), elem_id="zs-axes-note")
    return AxesForm(**made)


def axes(x_field: object, x_values: object, y_field: object, y_values: object) -> tuple[Axis, Axis | None]:
    """What the widgets hold. Raises InvalidInputError."""
    x = parse_axis(x_field, x_values)
    return x, None if y_field in (NO_AXIS, None) else parse_axis(y_field, y_values)


def note(held: Iterable[object], models: tuple[ModelArtifact, ...], t: Texts) -> str:
    """How many images that makes, or what is wrong; and what a person must know of the fields that are varied."""
    try:
        x, y = axes(*held)
    except UserError as error:
        return present.note(error.text(t.lang))
    columns, rows = len(x.values), len(y.values) if y else 1
    words = [
        t("axis_count", columns=columns, rows=rows, count=columns * rows) if y else t("axis_count_row", count=columns)
    ]
    varied = [axis.field for axis in (x, y) if axis is not None]
    keys = {"model": _keys(models), "profile": tuple(PRESETS)}
    words += [t(f"axis_note_{field}", keys=", ".join(keys.get(field, ()))) for field in _NOTES if field in varied]
    return "".join(present.note(line) for line in words)


def suggested(field: str, around: Mapping[str, object], models: tuple[ModelArtifact, ...]) -> tuple[str, ...]:
    """Values to begin with."""
    if field in _FIXED:
        return _FIXED[field]
    if field == "seed":
        seed = str(around.get("seed") or "1")
        first = int(seed) if seed.isdecimal() else 1
        return tuple(str(first + place) for place in range(3))
    if field == "steps":
        steps = around.get("steps")
        middle = steps if isinstance(steps, int) and steps > 1 else 8
        return tuple(str(count) for count in (middle // 2, middle, middle * 2))
    if field == "model":
        return _keys(models)
    if field == "profile":
        return tuple(PRESETS)[:SUGGESTED]
    if field == "size":
        chosen = next((model for model in models if model.key == around.get("model")), None)
        sizes = () if chosen is None else chosen.defaults.sizes[:SUGGESTED]
        return tuple(f"{width}x{height}" for width, height in sizes)
    return ()


def _keys(models: tuple[ModelArtifact, ...]) -> tuple[str, ...]:
    return tuple(model.key for model in models if not model.missing)


def written(texts: Iterable[str]) -> str:
    """As `parse_axis` reads them: with commas between, a value with a comma in quotes."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(texts)
    return buffer.getvalue().replace(",", ", ") if '"' not in buffer.getvalue() else buffer.getvalue()
