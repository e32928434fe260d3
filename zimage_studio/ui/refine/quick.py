"""Shortcuts of the Refine tab: they fill fields in, where everybody sees it, and make nothing."""

from typing import Any

import gradio as gr

from zimage_studio.ui import sizes
from zimage_studio.ui.refine.base import PICTURE, Base
from zimage_studio.ui.texts import Texts

ENLARGE_STRENGTH, REDRAW_STRENGTH = 0.3, 0.5
FACTORS = (1.5, 2.0)


def quick_values(number: int, base: Base | None, t: Texts) -> tuple[dict[str, object], str]:
    """The fields that quick button `number` sets, and what to say of it."""
    if number == 0 or base is None:
        return {"seed": ""}, t("quick_seed_set")
    if number == 1:
        return {"start": PICTURE, "strength": REDRAW_STRENGTH}, t("quick_redraw_set")
    factor = FACTORS[number - 2]
    size = sizes.enlarged(base.size, factor)
    if size is None:
        return {}, t("quick_too_large", factor=f"{factor:g}")
    exact = (base.size[0] * factor, base.size[1] * factor)
    words = t("quick_enlarge_set", width=size[0], height=size[1])
    if exact != size:
        words += t("quick_rounded", width=f"{exact[0]:g}", height=f"{exact[1]:g}")
    return {"width": size[0], "height": size[1], "start": PICTURE, "strength": ENLARGE_STRENGTH}, words


def quick_updates(base: Base, t: Texts) -> list[Any]:
    """The buttons name the size that comes out; one that would be too large cannot be pressed."""
    updates = [gr.update(), gr.update(interactive=True)]
    for factor in FACTORS:
        size = sizes.enlarged(base.size, factor)
        words = t("quick_enlarge", factor=f"{factor:g}")
        to = t("quick_large") if size is None else f"{size[0]}×{size[1]}"
        updates.append(gr.update(value=f"{words} · {to}", interactive=size is not None))
    return updates
