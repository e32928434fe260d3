"""A training as HTML: the loss as a line, and the same pictures at the beginning and now."""

import base64
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from zimage_studio.records.job import JobRecord
from zimage_studio.ui import present
from zimage_studio.ui.present import escape
from zimage_studio.ui.texts import Texts

LOG, SAMPLES = "log.jsonl", "samples"
"""What core.recovery keeps in the folder of a job; read here without importing torch."""
MAX_LOG_BYTES = 20_000_000
MAX_POINTS = 400
WIDTH, HEIGHT = 600, 180
SMOOTHED = 8
"""The line of the loss is a running mean over this part of all steps so far."""
SAMPLE_PX = 192
_SAMPLE = re.compile(r"(.+-\d{6})-(\d+)\.png")


@dataclass(frozen=True, slots=True)
class LossPoint:
    """A line of the log: `step` counts on over all phases, `seconds` are those of its phase."""

    step: int
    loss: float | None
    validation: float | None
    phase: str


def recovery(job: JobRecord, folder: Path, t: Texts) -> str:
    """What there is to see of a training, whether it runs or has ended."""
    points = read_points(folder / LOG)
    parts = [_ended(job, points, t), plot(points, t) if points else _waiting(job, t), pictures(folder / SAMPLES, t)]
    return f'<div class="zs-recovery">{"".join(parts)}</div>'


def read_points(path: Path) -> list[LossPoint]:
    """The log so far, up to the first line that is not whole."""
    try:
        if path.stat().st_size > MAX_LOG_BYTES:
            return []
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    points: list[LossPoint] = []
    before, phase = 0, ""
    for line in lines:
        try:
            found = json.loads(line)
            values = int(found["step"]), found["loss"], found["validation"], str(found["phase"])
        except (ValueError, TypeError, KeyError):
            break
        if values[3] != phase:
            before, phase = (points[-1].step if points else 0), values[3]
        points.append(LossPoint(before + values[0], _real(values[1]), _real(values[2]), phase))
    return points


def plot(points: Sequence[LossPoint], t: Texts) -> str:
    """The loss of training and of the pictures kept aside, over the steps."""
    losses = [(point.step, point.loss) for point in points if point.loss is not None]
    checks = [(point.step, point.validation) for point in points if point.validation is not None]
    values = [value for _, value in (*losses, *checks)]
    if not values:
        return present.note(t("recover_no_loss_yet"))
    last = max(point.step for point in points)
    low, high = min(values), max(values)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    bounds = (low - room, high + room)
    lines = _line(losses, last, bounds, "zs-loss-raw") + _line(smooth(losses), last, bounds, "zs-loss")
    lines += _line(checks, last, bounds, "zs-validation", dots=True)
    words = [t("recover_plot_loss", value=_short(smooth(losses)[-1][1]))] if losses else []
    words += [t("recover_plot_validation", value=_short(checks[-1][1]))] if checks else []
    kinds = ["zs-loss"] * bool(losses) + ["zs-validation"] * bool(checks)
    legend = "".join(f'<span class="{kind}">{escape(word)}</span>' for kind, word in zip(kinds, words, strict=True))
    return (
        f'<figure class="zs-loss-plot"><div class="zs-loss-y" aria-hidden="true"><span>{_short(high)}</span>'
        f'<span>{_short(low)}</span></div><svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img"'
        f' aria-label="{escape(t("recover_plot_label"))}">{lines}</svg>'
        f'<div class="zs-loss-x" aria-hidden="true"><span>0</span><span>{escape(t("recover_plot_steps", step=last))}'
        f'</span></div><figcaption class="zs-legend">{legend}</figcaption></figure>'
    )


def smooth(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Each loss as the mean of it and what came shortly before: a batch says little about the model."""
    width = max(1, len(points) // SMOOTHED)
    values = [value for _, value in points]
    windows = (values[max(0, end - width) : end] for end in range(1, len(values) + 1))
    return [(step, sum(window) / len(window)) for (step, _), window in zip(points, windows, strict=True)]


def pictures(folder: Path, t: Texts) -> str:
    """The first and the newest sample pictures, the same prompts and seeds one above the other."""
    rounds: dict[str, dict[int, Path]] = {}
    for path in folder.glob("*.png") if folder.is_dir() else ():
        if found := _SAMPLE.fullmatch(path.name):
            rounds.setdefault(found[1], {})[int(found[2])] = path
    if not rounds:
        return ""
    order = sorted(rounds, key=lambda name: min(path.stat().st_mtime_ns for path in rounds[name].values()))
    rows = "".join(
        _row(t(key, step=int(name.rsplit("-", 1)[1])), rounds[name], t)
        for key, name in dict.fromkeys(
            [("recover_samples_first", order[0]), ("recover_samples_now", order[-1])][: len(order)]
        )
    )
    return f'<h3 class="zs-part-title">{escape(t("recover_samples_title"))}</h3><div class="zs-samples">{rows}</div>'


def _row(title: str, paths: dict[int, Path], t: Texts) -> str:
    images = "".join(
        f'<img src="{_uri(path)}" alt="{escape(t("recover_sample", number=number + 1))}">'
        for number, path in sorted(paths.items())
    )
    return f'<figure><figcaption>{escape(title)}</figcaption><div class="zs-sample-row">{images}</div></figure>'


def _uri(path: Path) -> str:
    with Image.open(path, formats=("PNG",)) as image:
        small = image.convert("RGB")
    small.thumbnail((SAMPLE_PX, SAMPLE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _line(
    points: Sequence[tuple[int, float]], last: int, bounds: tuple[float, float], kind: str, *, dots: bool = False
) -> str:
    thin = points[:: max(1, len(points) // MAX_POINTS)]
    if points and thin[-1] != points[-1]:
        thin = [*thin, points[-1]]
    low, high = bounds
    places = [(WIDTH * step / max(1, last), HEIGHT * (high - value) / (high - low)) for step, value in thin]
    line = f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>'
    if not dots and len(places) > 1:
        return line
    return line + "".join(f'<path class="{kind}" d="M{x:.1f} {y:.1f}h0"/>' for x, y in places)


def _waiting(job: JobRecord, t: Texts) -> str:
    return "" if job.finished else present.note(t("recover_no_loss_yet"))


def _ended(job: JobRecord, points: Sequence[LossPoint], t: Texts) -> str:
    """How it ended, in a sentence; nothing while it runs."""
    if job.state == "done":
        result = job.result
        checks = [point.validation for point in points if point.validation is not None]
        words = t("recover_made", name=result.get("model", ""), steps=result.get("steps", 0),
                  time=present.duration(_real(result.get("seconds")) or 0.0, t))  # fmt: skip
        if len(checks) > 1:
            went = t("recover_went", first=_short(checks[0]), last=_short(checks[-1]))
            words = f"{words}{' ' if t.lang == 'en' else ''}{went}"
        return f'<p class="zs-made">{escape(words)}</p>'
    if job.finished:
        if job.problem is None:
            return f'<p class="zs-halted">{escape(t("recover_stopped"))}</p>'
        return f'<p class="zs-clash">{escape(job.problem.text(t.lang))}</p>'
    return ""


def _real(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _short(value: float) -> str:
    return f"{value:.4g}"
