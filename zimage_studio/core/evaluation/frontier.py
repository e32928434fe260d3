"""Quality against size and time over all models with a report card, as records and as a drawing. No torch here.

Cards are put into one plot only where their numbers can be compared: same parent, prompts, seeds and scorer. Time is
the share of the parent's, measured in the same run, for seconds of two machines cannot be compared.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Literal

from zimage_studio.core.evaluation.card_text import name as metric_name
from zimage_studio.core.evaluation.card_text import one_line, size
from zimage_studio.errors import InvalidInputError
from zimage_studio.messages import Lang, say
from zimage_studio.records.report import Better, Metric, ReportCard

Axis = Literal["bytes", "time"]
Role = Literal["model", "parent", "quantised"]
QUALITIES = (
    "judge_accuracy",
    "judge_all_right",
    "clip_score",
    "image_reward",
    "hps_v2",
    "ssim",
    "judge_distance",
    "lpips",
)
CARD = Path("report") / "card.json"

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 24, 24, 54
LABEL_CHARS = 28


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A model in the plot: `low` and `high` hold its quality with 95 %; `time` is its share of the parent's time."""

    name: str
    sha256: str
    role: Role
    bytes: float
    time: float | None
    quality: float
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, object]:
        """As the API prints it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Points that can be compared. `source` names who scored; `prompts` is how many pictures each was scored on."""

    parent: str
    metric: str
    better: Better
    source: str
    prompts: int
    points: tuple[Point, ...]

    def frontier(self, axis: Axis) -> tuple[Point, ...]:
        """Those that no other beats in both, from small to large."""
        placed = sorted((p for p in self.points if place(p, axis) is not None), key=lambda p: _order(p, axis, self))
        best: list[Point] = []
        for point in placed:
            if not best or _value(point, self) > _value(best[-1], self):
                best.append(point)
        return tuple(best)


def cards_in(folders: Iterable[Path]) -> list[ReportCard]:
    """The cards beside the models in `folders`; what has none or a damaged one is left out."""
    found = []
    for folder in folders:
        try:
            found.append(ReportCard.from_json((folder / CARD).read_text("utf-8")))
        except (OSError, UnicodeDecodeError, InvalidInputError):
            continue
    return found


def groups(cards: Sequence[ReportCard]) -> list[Group]:
    """All comparisons that the cards allow; those with the most models first."""
    together: dict[tuple[str, ...], list[tuple[ReportCard, Metric]]] = {}
    for card in cards:
        for metric in card.metrics:
            if metric.name in QUALITIES and metric.value is not None:
                key = (metric.name, metric.source, card.parent.sha256, _digest(card))
                together.setdefault(key, []).append((card, metric))
    made = [_group(listed) for listed in together.values()]
    return sorted(made, key=lambda group: (-len(group.points), QUALITIES.index(group.metric)))


def _digest(card: ReportCard) -> str:
    what = [card.prompts, card.seeds, card.width, card.height, card.steps, card.guidance]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _group(listed: Sequence[tuple[ReportCard, Metric]]) -> Group:
    card, metric = listed[0]
    points = {}
    for each, line in sorted(listed, key=lambda pair: pair[0].created):
        for point in _points(each, line):
            points[(point.role, point.sha256, point.bytes)] = point
    return Group(
        parent=card.parent.name, metric=metric.name, better=metric.better, source=metric.source,
        prompts=metric.samples, points=tuple(points.values()),
    )  # fmt: skip


def _points(card: ReportCard, metric: Metric) -> Iterable[Point]:
    time = card.metric("seconds_per_image")
    if metric.parent is not None:
        yield Point(
            name=card.parent.name, sha256=card.parent.sha256, role="parent", bytes=card.parent.bytes, time=1.0,
            quality=metric.parent,
        )  # fmt: skip
    if metric.value is not None:
        yield _around(metric, Point(
            name=card.model.name, sha256=card.model.sha256, role="model", bytes=card.model.bytes,
            time=_share(time, None if time is None else time.value), quality=metric.value,
        ), metric.interval)  # fmt: skip
    if metric.quantised is not None and card.quantised is not None:
        yield _around(metric, Point(
            name=say("report.column.quantised", "en"), sha256=card.parent.sha256, role="quantised",
            bytes=card.quantised.bytes, time=_share(time, None if time is None else time.quantised),
            quality=metric.quantised,
        ), metric.quantised_interval)  # fmt: skip


def _around(metric: Metric, point: Point, bounds: tuple[float, float] | None) -> Point:
    """The interval of a difference, moved to the parent's value; that of a distance stands for itself."""
    if bounds is None:
        return point
    base = 0.0 if metric.to_parent else metric.parent or 0.0
    data = asdict(point) | {"low": base + bounds[0], "high": base + bounds[1]}
    return Point(**data)


def _share(time: Metric | None, seconds: float | None) -> float | None:
    return None if time is None or seconds is None or not time.parent else seconds / time.parent


# --- drawing --------------------------------------------------------------------------------------------------------


def place(point: Point, axis: Axis) -> float | None:
    """Where a point lies on the horizontal axis."""
    return point.bytes if axis == "bytes" else point.time


def _value(point: Point, group: Group) -> float:
    return point.quality if group.better == "higher" else -point.quality


def _order(point: Point, axis: Axis, group: Group) -> tuple[float, float]:
    return place(point, axis) or 0.0, -_value(point, group)


STYLE = (
    "<style>.zs-f{font:13px system-ui,sans-serif;fill:currentColor}.zs-f .q{opacity:.65}"
    ".zs-f .grid{stroke:currentColor;opacity:.14}.zs-f .bar{stroke-width:2;opacity:.55}"
    ".zs-f .front{fill:none;stroke:#6366f1;stroke-width:2;stroke-dasharray:5 4}"
    ".zs-f .model{fill:#6366f1;stroke:#6366f1}.zs-f .parent{fill:#1a8f5f;stroke:#1a8f5f}"
    ".zs-f .quantised{fill:#c96a1b;stroke:#c96a1b}.zs-f text{stroke:none}</style>"
)


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to places in the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def svg(group: Group, axis: Axis, lang: Lang) -> str:
    """The plot: points with their intervals, the frontier as a dashed line, every point named when touched."""
    points = [point for point in group.points if place(point, axis) is not None]
    if not points:
        return ""
    x = _Scale(*_reach([place(p, axis) or 0.0 for p in points]), LEFT, WIDTH - RIGHT)
    heights = [value for p in points for value in (p.quality, p.low, p.high) if value is not None]
    y = _Scale(*_reach(heights), HEIGHT - BOTTOM, TOP)
    words = say("report.frontier_bytes" if axis == "bytes" else "report.frontier_time", lang)
    title = f"{metric_name(group.metric, lang)} – {words}"
    spots = [_Spot(point, _name(point, lang), x(place(point, axis) or 0.0), y(point.quality)) for point in points]
    parts = [_grid(group, axis, x, y), _line(group, axis, x, y)]
    parts += [_dot(spot, group, y) for spot in spots]
    parts += _labels(spots, group.frontier(axis))
    parts += _legend(points, lang)
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 12}" text-anchor="end">{escape(words)} →</text>')
    parts.append(f'<text x="{LEFT}" y="16">↑ {escape(metric_name(group.metric, lang))}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="zs-f" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{STYLE}<title>{escape(title)}</title>{"".join(parts)}</svg>'
    )


def _reach(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or max(abs(high), 1e-9) * 0.1
    return low - room, high + room


def _grid(group: Group, axis: Axis, x: _Scale, y: _Scale) -> str:
    parts = []
    for value in ticks(x.low, x.high):
        text = size(value) if axis == "bytes" else f"{value:g}"
        parts.append(f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text class="q" x="{x(value):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{text}</text>'
        )
    is_share = group.metric.startswith("judge_a")
    for value in ticks(y.low, y.high):
        if is_share and not 0 <= value <= 1:
            continue
        parts.append(f'<line class="grid" y1="{y(value):.1f}" y2="{y(value):.1f}" x1="{LEFT}" x2="{WIDTH - RIGHT}"/>')
        shown = f"{value * 100:g} %" if is_share else f"{value:.6g}"
        parts.append(f'<text class="q" x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{shown}</text>')
    return "".join(parts)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between `low` and `high`, about `count` of them."""
    raw = (high - low) / count
    step = 10.0 ** math.floor(math.log10(raw))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if factor * step >= raw)
    first = math.ceil(low / step)
    return [round(number * step, 12) for number in range(first, math.floor(high / step) + 1)]


def _line(group: Group, axis: Axis, x: _Scale, y: _Scale) -> str:
    spots = " ".join(f"{x(place(p, axis) or 0):.1f},{y(p.quality):.1f}" for p in group.frontier(axis))
    return f'<polyline class="front" points="{spots}"/>'


@dataclass(frozen=True, slots=True)
class _Spot:
    """A point in its place, in px."""

    point: Point
    name: str
    x: float
    y: float


def _dot(spot: _Spot, group: Group, y: _Scale) -> str:
    point = spot.point
    hint = f"{spot.name}: {group.metric} {point.quality:.4f}, {size(point.bytes)}"
    if point.time is not None:
        hint += f", ×{point.time:.2f}"
    bar = ""
    if point.low is not None and point.high is not None:
        ends = f'y1="{y(point.low):.1f}" y2="{y(point.high):.1f}"'
        bar = f'<line class="bar" x1="{spot.x:.1f}" x2="{spot.x:.1f}" {ends}/>'
    mark = f'<circle cx="{spot.x:.1f}" cy="{spot.y:.1f}" r="5.5"/>'
    return f'<g class="{point.role}"><title>{escape(hint)}</title>{bar}{mark}</g>'


def _labels(spots: Sequence[_Spot], front: Sequence[Point]) -> list[str]:
    """Names beside the points, those of the frontier first, where they cover no point and no other name."""
    taken = [(spot.x - 7, spot.y - 7, spot.x + 7, spot.y + 7) for spot in spots]
    parts = []
    for spot in sorted(spots, key=lambda spot: spot.point not in front):
        text = _short(spot.name)
        for anchor, x, y in (("start", 10, -8), ("end", -10, -8), ("start", 10, 18), ("end", -10, 18)):
            box = _box(text, anchor, spot.x + x, spot.y + y)
            if _free(box, taken):
                taken.append(box)
                at = f'x="{spot.x + x:.1f}" y="{spot.y + y:.1f}" text-anchor="{anchor}"'
                parts.append(f'<text class="{spot.point.role}" {at}>{escape(text)}</text>')
                break
    return parts


_Box = tuple[float, float, float, float]


def _box(text: str, anchor: str, x: float, y: float) -> _Box:
    """Where a text lies: left, top, right, bottom."""
    width = sum(7.2 if char.isascii() else 13.5 for char in text)
    left = x if anchor == "start" else x - width
    return left, y - 12, left + width, y + 4


def _free(box: _Box, taken: Sequence[_Box]) -> bool:
    left, top, right, bottom = box
    if left < LEFT or right > WIDTH or top < TOP - 8 or bottom > HEIGHT - BOTTOM + 6:
        return False
    return all(right < other[0] or left > other[2] or bottom < other[1] or top > other[3] for other in taken)


def _legend(points: Sequence[Point], lang: Lang) -> list[str]:
    parts, x = [], float(LEFT)
    for role, key in (("model", "report.frontier_model"), ("parent", "report.column.parent"),
                      ("quantised", "report.column.quantised")):  # fmt: skip
        if any(point.role == role for point in points):
            text = say(key, lang)
            parts.append(f'<circle class="{role}" cx="{x + 5:.1f}" cy="{HEIGHT - 16}" r="4.5"/>')
            parts.append(f'<text class="q" x="{x + 16:.1f}" y="{HEIGHT - 12}">{escape(text)}</text>')
            x += _box(text, "start", 0, 0)[2] + 34
    return parts


def _name(point: Point, lang: Lang) -> str:
    return say("report.column.quantised", lang) if point.role == "quantised" else one_line(point.name)


def _short(text: str) -> str:
    return text if len(text) <= LABEL_CHARS else text[: LABEL_CHARS - 1] + "…"


def table(found: Sequence[Group]) -> list[Mapping[str, object]]:
    """All groups as the API prints them, with the frontier by size and by time named by hash."""
    return [
        {
            **{key: value for key, value in asdict(group).items() if key != "points"},
            "points": [point.to_dict() for point in group.points],
            "frontier_bytes": [point.sha256 for point in group.frontier("bytes")],
            "frontier_time": [point.sha256 for point in group.frontier("time")],
        }
        for group in found
    ]
