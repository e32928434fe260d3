"""The base of a refinement as HTML: the way that led to it, what it is, its family. Escaped here."""

from collections.abc import Sequence

from zimage_studio.errors import UserError
from zimage_studio.services.images import StoredImage
from zimage_studio.services.studio import Studio
from zimage_studio.ui.family import family_html, family_of, thumb
from zimage_studio.ui.present import escape
from zimage_studio.ui.refine.base import Base
from zimage_studio.ui.texts import Texts

MAX_TRAIL = 8
"""Thumbnails of the way here; older ones are only counted."""


def idle(t: Texts) -> str:
    """Before an image is chosen."""
    return (
        '<div class="zs-stage zs-stage-idle">'
        f'<p class="zs-big">{escape(t("refine_idle"))}</p><p>{escape(t("refine_idle_hint"))}</p>'
        f'<p class="zs-quiet">{escape(t("refine_idle_more"))}</p></div>'
    )


def card(base: Base, trail: Sequence[StoredImage | str | None], studio: Studio, t: Texts) -> str:
    """The base: the way here (its last entry is the base; None is deleted), what it is, where it comes from."""
    facts = [t("base_size_only", width=base.size[0], height=base.size[1])]
    if base.image is not None:
        request = base.image.recipe.request
        facts = [t("base_seed", seed=request.seed), *facts, t("base_steps", steps=request.steps)]
        facts += [
            t("base_variation", seed=link.seed, strength=f"{link.strength:g}") for link in request.variations[-1:]
        ]
        facts.append(base.image.recipe.model.name)
    notes = "".join(f'<p class="zs-remark">{escape(words)}</p>' for words in base.notes)
    picture = thumb(base.image or base.sha256, studio, t, current=True)
    parent = base.image.recipe.parent if base.image is not None else None
    family = family_html(family_of(studio, base.sha256, parent), studio, t)
    return (
        f'<section class="zs-card zs-base" aria-label="{escape(t("base"))}">{_trail(trail, studio, t)}'
        f'<div class="zs-base-head">{picture}<div><p class="zs-base-words">{escape(base.words)}</p>'
        f'<p class="zs-quiet">{escape(" · ".join(facts))}</p></div></div>{notes}{family}</section>'
    )


def opened_note(changes: str, t: Texts, *, same: bool) -> str:
    """Over a result: what is different from the base."""
    if same:
        return f'<div class="zs-card zs-changed"><p>{escape(t("result_same"))}</p></div>'
    unchanged = escape(t("result_unchanged"))
    inner = changes or f"<p>{unchanged}</p>"
    return f'<div class="zs-card zs-changed">{escape(t("result_changed"))}{inner}</div>'


def _trail(trail: Sequence[StoredImage | str | None], studio: Studio, t: Texts) -> str:
    if len(trail) < 2:
        return ""
    left_out = max(0, len(trail) - MAX_TRAIL)
    steps = [f'<li class="zs-quiet">{escape(t("trail_more", count=left_out))}</li>'] if left_out else []
    for number, who in enumerate(trail[left_out:], left_out + 1):
        if who is not None:
            steps.append(f"<li>{_safe_thumb(who, studio, t, current=number == len(trail))}</li>")
    return f'<nav aria-label="{escape(t("trail"))}"><ol class="zs-trail">{"".join(steps)}</ol></nav>'


def _safe_thumb(who: StoredImage | str, studio: Studio, t: Texts, *, current: bool) -> str:
    try:
        return thumb(who, studio, t, current=current)
    except (UserError, OSError):
        return f'<span class="zs-thumb" title="{escape(t("family_gone"))}"></span>'
