"""The family tree of the models: each under its parent with a bar of its size and what its report card says."""

from collections.abc import Sequence

from zimage_studio.records.report import ReportCard
from zimage_studio.services.family import FamilyMember
from zimage_studio.ui import present
from zimage_studio.ui.present import escape
from zimage_studio.ui.texts import Texts

SCORES = ("judge_accuracy", "clip_score")
"""What a card is summed up by: the first of these that was measured."""


def tree(members: Sequence[FamilyMember], chosen: object, t: Texts) -> str:
    """All models that are here; the chosen one is marked, a click chooses another."""
    if not members:
        return present.note(t("family_empty"))
    roots = _roots(members)
    largest: dict[str, int] = {}
    for member in members:
        largest[roots[member.key]] = max(member.artifact.bytes or 1, largest.get(roots[member.key], 1))
    rows = "".join(_row(member, largest[roots[member.key]], member.key == chosen, t) for member in members)
    return f'<ul class="zs-family" aria-label="{escape(t("family_title"))}">{rows}</ul>'


def note(members: Sequence[FamilyMember], model: object, t: Texts) -> str:
    """What a model is, in one line, with the name of its parent where that is here."""
    found = next((member for member in members if member.key == model), None)
    if found is None:
        return present.note(t("compress_no_model"))
    parent = next((member.artifact.name for member in members if member.key == found.parent), "")
    return present.model_note(found.artifact, t, parent)


def _roots(members: Sequence[FamilyMember]) -> dict[str, str]:
    """For each model the eldest of its family: only relatives are compared by size."""
    parents = {member.key: member.parent for member in members}
    roots: dict[str, str] = {}
    for key in parents:
        eldest = key
        for _ in members:
            eldest = parents.get(eldest) or eldest
        roots[key] = eldest
    return roots


def _row(member: FamilyMember, largest: int, is_chosen: bool, t: Texts) -> str:
    artifact = member.artifact
    share = 100 * (artifact.bytes or 0) / largest
    size = present.size(artifact.bytes, t) if artifact.bytes else ""
    words = " · ".join(part for part in (size, _card_words(member.card, t)) if part)
    return (
        f'<li style="--zs-depth:{min(member.depth, 6)}" data-depth="{member.depth}">'
        f'<button type="button" data-pick="{escape(artifact.key)}" aria-pressed="{str(is_chosen).lower()}">'
        f'<span class="zs-family-name">{escape(artifact.name)}</span>'
        f'<span class="zs-family-words">{escape(words)}</span>'
        f'<span class="zs-family-bar" aria-hidden="true"><i style="width:{share:.2f}%"></i></span></button></li>'
    )


def _card_words(card: ReportCard | None, t: Texts) -> str:
    """What was found about its quality, in a few words; empty where nothing was."""
    if card is None:
        return ""
    found = next((m for name in SCORES if (m := card.metric(name)) is not None and m.value is not None), None)
    if found is None or found.value is None:
        return t("family_judged")
    if found.name == "judge_accuracy":
        return t("family_judge", percent=f"{100 * found.value:.0f}")
    return t("family_clip", value=f"{found.value:.3f}")
