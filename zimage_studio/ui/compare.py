"""Two pictures laid over each other, with a slider that needs no mouse."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageOps

from zimage_studio.ui.doors import LOCAL, Update, shown

FORMATS = ("PNG", "JPEG", "WEBP")
SAME_SHAPE = 0.02
"""Share by which two aspects may differ and still be laid over each other: sides are multiples of 16 px."""


@dataclass(frozen=True, slots=True)
class Compare:
    """The slider, and the column with its buttons that appears with it."""

    column: gr.Column
    slider: gr.ImageSlider

    @property
    def outputs(self) -> list[Any]:
        """What `show` changes."""
        return [self.column, self.slider]

    def show(self, before: Any, after: str) -> Update:
        """Both pictures, half and half; each a file that Gradio serves, or pixels."""
        return {
            self.column: gr.update(visible=True),
            self.slider: gr.update(value=(before, after), slider_position=50),
        }


def add_compare(elem_id: str, sides: tuple[str, str, str], label: str, *, scale: int = 1) -> Compare:
    """Add the widgets; `sides` are the words for the left picture, both, the right one."""
    with gr.Column(visible=False, scale=scale, min_width=260, elem_classes="zs-slider") as column:
        slider = gr.ImageSlider(
            label=label, show_label=False, type="filepath", format="png", interactive=False, buttons=["fullscreen"],
            max_height=560, elem_id=elem_id, elem_classes="zs-slider-box",
        )  # fmt: skip
        with gr.Row(elem_classes="zs-sides"):
            for words, position in zip(sides, (100, 50, 0), strict=True):
                gr.Button(words, size="sm", min_width=60).click(
                    None, None, slider, js=f"() => ({_nudged(position)})", **LOCAL
                )
    return Compare(column, slider)


def fitted_to(before: Path, after: Path, *, drawn_over: bool = False) -> Any:
    """`before` as it can be laid over `after`: scaled to its size; None when their shapes differ.

    What was `drawn_over` is fitted as it was for that: scaled to cover the size, cut around the centre.
    """
    with Image.open(after, formats=FORMATS) as image:
        size = image.size
    with Image.open(before, formats=FORMATS) as image:
        if image.size == size:
            return shown(before)
        apart = abs(image.width * size[1] / (image.height * size[0]) - 1)
        if apart > SAME_SHAPE and not drawn_over:
            return None
        return ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS)


def _nudged(position: int) -> str:
    """Gradio would not see the same position set twice."""
    return f'{{__type__: "update", slider_position: {position} + Math.random() / 1e4}}'
