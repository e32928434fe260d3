"""The frontier on the page: quality against size and against time, of cards whose numbers can be compared."""

from collections.abc import Sequence

from zimage_studio.core.evaluation import card_text, frontier
from zimage_studio.core.evaluation.frontier import Axis, Group, Point
from zimage_studio.messages import say
from zimage_studio.ui.compress.card_view import column
from zimage_studio.ui.present import escape
from zimage_studio.ui.texts import Texts

AXES: tuple[Axis, ...] = ("bytes", "time")


def choices(groups: Sequence[Group], t: Texts) -> list[tuple[str, str]]:
    """Each comparison with its key; the first is the most telling."""
    return [(_listed(group, t), key_of(group)) for group in groups]


def chosen(groups: Sequence[Group], key: str | None) -> Group | None:
    """The group of that key, else the first."""
    return next((group for group in groups if key_of(group) == key), groups[0] if groups else None)


def shown(group: Group, t: Texts) -> str:
    """Both plots, and every number in a table."""
    if len(group.points) < 2:
        return f'<p class="zs-note">{escape(t("frontier_few"))}</p>'
    plots = "".join(_figure(group, axis, t) for axis in AXES)
    better = t("better_higher" if group.better == "higher" else "better_lower")
    line = say("report.frontier_line", t.lang)
    note = t("frontier_note", better=better, line=line)
    return f'<div class="zs-frontiers">{plots}</div><p class="zs-remark">{escape(note)}</p>{_table(group, t)}'


def key_of(group: Group) -> str:
    """How a comparison is found again: nothing of its points, as cards may come."""
    return "|".join((group.metric, group.source, group.parent, str(group.prompts)))


def _listed(group: Group, t: Texts) -> str:
    name = card_text.name(group.metric, t.lang)
    count = sum(point.role == "model" for point in group.points)
    return t("frontier_listed", name=name, parent=group.parent, prompts=group.prompts, count=count)


def _figure(group: Group, axis: Axis, t: Texts) -> str:
    """A plot in a box of its own that scrolls: names on it must stay readable on a phone."""
    drawn = frontier.svg(group, axis, t.lang)
    title = escape(say("report.frontier_title", t.lang, x=_axis_name(axis, t)))
    return f'<figure class="zs-frontier"><figcaption>{title}</figcaption><div tabindex="0">{drawn}</div></figure>'


def _axis_name(axis: Axis, t: Texts) -> str:
    return say("report.frontier_bytes" if axis == "bytes" else "report.frontier_time", t.lang)


def _table(group: Group, t: Texts) -> str:
    best = {axis: group.frontier(axis) for axis in AXES}
    rows = "".join(_row(point, best["bytes"], best["time"], t) for point in sorted(group.points, key=lambda p: p.bytes))
    heads = (t("frontier_model"), *(_axis_name(axis, t) for axis in AXES), card_text.name(group.metric, t.lang))
    head = "".join(f'<th scope="col">{escape(word)}</th>' for word in (*heads, t("frontier_unbeaten")))
    summary = escape(t("frontier_table"))
    return (
        f'<details class="zs-fold"><summary>{summary}</summary><div class="zs-scroll" tabindex="0">'
        f'<table class="zs-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>'
    )


def _row(point: Point, by_size: Sequence[Point], by_time: Sequence[Point], t: Texts) -> str:
    name = column("quantised", t) if point.role == "quantised" else point.name
    around = "" if point.low is None or point.high is None else f" ({point.low:.4g} – {point.high:.4g})"
    time = "–" if point.time is None else f"×{point.time:.2f}"
    on = [t(key) for key, best in (("frontier_by_size", by_size), ("frontier_by_time", by_time)) if point in best]
    cells = (card_text.size(point.bytes), time, f"{point.quality:.4g}{around}", ", ".join(on) or "–")
    return (
        f'<tr data-role="{point.role}"><th scope="row">{escape(name)}</th>'
        f"{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
    )
