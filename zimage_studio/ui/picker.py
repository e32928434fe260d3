"""Two ways to hand an image in: drop a file, or pick one of the newest. Shared by the tabs that begin with an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from zimage_studio.errors import UserError
from zimage_studio.services.studio import Studio
from zimage_studio.ui import present
from zimage_studio.ui.doors import Update, shown
from zimage_studio.ui.texts import Texts

NEWEST = 6


@dataclass(frozen=True, slots=True)
class Picker:
    """The drop zone, and the strip with the newest images."""

    drop: gr.File
    recent: gr.Gallery
    ids: gr.State

    @property
    def outputs(self) -> list[Any]:
        """What `newest` changes."""
        return [self.recent, self.ids]

    def newest(self, studio: Studio) -> Update:
        """The strip as it is now."""
        images, _ = studio.images.page(rows=NEWEST)
        entries = [(shown(studio.images.thumbnail(image)), present.alt_text(image)) for image in images]
        return {
            self.recent: gr.update(value=entries, selected_index=None, visible=bool(images)),
            self.ids: [image.id for image in images],
        }


def add_picker(elem_id: str, recent_id: str, t: Texts) -> Picker:
    """Add the widgets, with these ids. Our words stand over the drop zone: Gradio has its own in one language only."""
    with gr.Group(elem_classes="zs-drop"):
        gr.HTML(_drop_words(t))
        drop = gr.File(
            label=t("drop"), show_label=False, type="filepath", height=120, elem_id=elem_id, elem_classes="zs-drop-file"
        )
    recent = gr.Gallery(
        label=t("recent"), show_label=False, interactive=False, allow_preview=False, columns=NEWEST, height="auto",
        object_fit="cover", buttons=[], fit_columns=False, visible=False, elem_id=recent_id,
        elem_classes="zs-recent",
    )  # fmt: skip
    return Picker(drop, recent, gr.State([]))


def picked(ids: Sequence[str], index: object) -> str:
    """The image at `index` of the strip. Raises UserError when the server has forgotten what the strip showed."""
    if not isinstance(index, int) or not 0 <= index < len(ids):
        raise UserError("replay_lost")
    return ids[index]


def _drop_words(t: Texts) -> str:
    """What stands in the drop zone; its button takes its name from here (assets/studio.js)."""
    words, hint = present.escape(t("drop")), present.escape(t("drop_hint"))
    return f'<p class="zs-drop-words" aria-hidden="true"><b>{words}</b> <span>{hint}</span></p>'
