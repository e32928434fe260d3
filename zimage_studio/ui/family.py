"""Lineage: what an image was made from, and what was made from it. Thumbnails that lead there."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from zimage_studio.errors import UserError
from zimage_studio.services.images import StoredImage
from zimage_studio.services.studio import Studio
from zimage_studio.ui import present
from zimage_studio.ui.doors import shown
from zimage_studio.ui.present import escape
from zimage_studio.ui.texts import Texts

MAX_CHILDREN = 24
PICK = """element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-pick]');
  if (!button) return;
  for (const other of element.querySelectorAll('.zs-chosen')) other.classList.remove('zs-chosen');
  button.classList.add('zs-chosen');
  trigger('click', {pick: button.dataset.pick});
});"""
"""For gr.HTML: a click on whatever carries data-pick reaches the server with it."""


@dataclass(frozen=True, slots=True)
class Family:
    """The relatives of an image.

    `parent` is an image of the history, or the pixel hash of a picture that was dropped; `children` are the newest of
    `count`, each picture once.
    """

    parent: StoredImage | str | None
    children: tuple[StoredImage, ...]
    count: int


def family_of(studio: Studio, sha256: str, parent: str | None) -> Family:
    """The relatives of what has the pixels `sha256`; `parent` is what its recipe names. Itself is none of them."""
    found: dict[str, StoredImage] = {}
    for image in reversed(studio.images.made_from(sha256)):
        found.setdefault(image.recipe.outcome.pixels_sha256, image)
    found.pop(sha256, None)  # replays, and the middle of a neighbourhood
    children = tuple(found.values())
    return Family(_parent(studio, parent, sha256), children[:MAX_CHILDREN], len(children))


def family_html(family: Family, studio: Studio, t: Texts, *, pick_sources: bool = True) -> str:
    """Both directions as rows of thumbnails; empty when there is nobody. `pick_sources`: dropped pictures lead on."""
    rows = []
    if family.parent is not None:
        rows.append(_row(t("family_parent"), [thumb(family.parent, studio, t, pick_source=pick_sources)]))
    if family.children:
        rows.append(_row(t("family_children", count=family.count), _thumbs(family.children, studio, t)))
    return f'<div class="zs-family">{"".join(rows)}</div>' if rows else ""


def thumb(who: StoredImage | str, studio: Studio, t: Texts, *, pick_source: bool = True, current: bool = False) -> str:
    """A small picture to click; `who` is an image, or the pixel hash of a dropped picture."""
    if isinstance(who, str):
        words, path, ref = t("family_dropped"), studio.sources.path(who), who
    else:
        words, path, ref = present.alt_text(who), studio.images.thumbnail(who), who.id
    picture = f'<img alt="" src="{served(path)}">'
    if current:
        return f'<span class="zs-thumb zs-current" aria-current="true" title="{escape(words)}">{picture}</span>'
    if isinstance(who, str) and not pick_source:
        return f'<span class="zs-thumb" title="{escape(words)}">{picture}</span>'
    name = escape(t("family_go", words=words))
    return f'<button type="button" class="zs-thumb" data-pick="{escape(ref)}" title="{name}">{picture}</button>'


def pick_of(event: gr.EventData) -> str:
    """What was clicked on. Raises UserError for anything but text: whoever knows the event can send what they like."""
    data: Any = event._data
    value = data.get("pick") if isinstance(data, dict) else None
    if not isinstance(value, str):
        raise UserError("unknown_image", value=repr(value)[:40])
    return value


def served(path: Path) -> str:
    """The address of a copy of `path`, for HTML."""
    return f"gradio_api/file={quote(shown(path))}"


def _parent(studio: Studio, sha256: str | None, own: str) -> StoredImage | str | None:
    if sha256 is None or sha256 == own:
        return None
    image = next((image for image in studio.images.with_pixels(sha256) if image.path.exists()), None)
    if image is not None:
        return image
    try:
        studio.sources.path(sha256)
    except UserError:
        return None  # deleted
    return sha256


def _thumbs(images: Iterable[StoredImage], studio: Studio, t: Texts) -> list[str]:
    return [thumb(image, studio, t) for image in images if image.path.exists()]


def _row(words: str, thumbs: list[str]) -> str:
    return f'<div class="zs-relatives"><p>{escape(words)}</p><div class="zs-thumbs">{"".join(thumbs)}</div></div>'
