"""Measurements as HTML: the table, the bars, and how far a measuring is."""

from collections.abc import Sequence

from zimage_studio.messages import CATALOGUES as MESSAGES
from zimage_studio.messages import say
from zimage_studio.records.measured import MeasuredRow
from zimage_studio.records.memory import PHASES
from zimage_studio.services.measuring import MeasureView
from zimage_studio.ui import present
from zimage_studio.ui.memory.gauge import amount
from zimage_studio.ui.memory.view import phase_name, profile_name, switch_name
from zimage_studio.ui.present import escape
from zimage_studio.ui.texts import Texts


def measured(rows: Sequence[MeasuredRow], t: Texts) -> str:
    """What one measuring found: on which picture, the table, the bars."""
    if not rows:
        return present.note(t("measure_empty"))
    first = rows[0]
    about = t(
        "measured_on", size=f"{first.width}×{first.height}", steps=first.steps, guidance=f"{first.guidance:g}",
        model=first.model, device=next((row.device for row in rows if row.device), ""),
    )  # fmt: skip
    return present.note(about) + table(rows, t) + plot(rows, t)


def table(rows: Sequence[MeasuredRow], t: Texts) -> str:
    """One row for each profile, in the order in which they were measured."""
    heads = [t("measured_profile"), *(phase_name(phase, t) for phase in PHASES), t("measured_peak")]
    heads += [t("measured_time"), t("measured_psnr")]
    head = "".join(f'<th scope="col">{escape(words)}</th>' for words in heads)
    body = "".join(_row(row, heads, t) for row in rows)
    return (
        '<div class="zs-scroll zs-measured-box"><table class="zs-table zs-measured">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(row: MeasuredRow, heads: Sequence[str], t: Texts) -> str:
    name = escape(profile_name(row.profile, t))
    problem = row.problem
    if problem is not None:
        span = f'<td colspan="{len(heads) - 1}" data-head="">{escape(problem.text(t.lang))}</td>'
        return f'<tr data-profile="{name}"><th scope="row">{name}</th>{span}</tr>'
    peaks = [*(row.phase_peak_bytes.get(phase) for phase in PHASES), row.peak_bytes]
    cells = ["" if peak is None else amount(peak) for peak in peaks]
    cells += ["" if row.seconds is None else present.duration(row.seconds, t), distance(row, t)]
    written = "".join(
        f'<td data-head="{escape(head)}">{escape(cell)}</td>' for head, cell in zip(heads[1:], cells, strict=True)
    )
    refused = [switch_name(state.name, t) for state in row.states if state.state == "refused"]
    names = MESSAGES[t.lang]["list_comma"].join(refused)
    note = "<small>" + escape(t("measured_refused", names=names)) + "</small>" if refused else ""
    return f'<tr data-profile="{name}"><th scope="row">{name}{note}</th>{written}</tr>'


def distance(row: MeasuredRow, t: Texts) -> str:
    """How far from the exact picture, in words where there is no number."""
    if row.identical:
        return t("measured_identical")
    if row.psnr_db is None:
        return t("measured_no_reference")
    return t("measure_psnr", db=f"{row.psnr_db:.1f}")


def plot(rows: Sequence[MeasuredRow], t: Texts) -> str:
    """The peak of each phase and the time, as bars; each kind against its own largest."""
    most = max((peak for row in rows for peak in row.phase_peak_bytes.values()), default=0)
    longest = max((row.seconds for row in rows if row.seconds), default=0.0)
    blocks = "".join(_block(row, most, longest, t) for row in rows if row.problem is None)
    if not blocks:
        return ""
    keys = "".join(f'<span class="zs-phase-{phase}">{escape(phase_name(phase, t))}</span>' for phase in PHASES)
    legend = f'<p class="zs-legend">{keys}<span class="zs-phase-time">{escape(t("measured_time"))}</span></p>'
    return f'<div class="zs-plot" role="img" aria-label="{escape(t("plot_label"))}">{blocks}{legend}</div>'


def _block(row: MeasuredRow, most: float, longest: float, t: Texts) -> str:
    peaks = row.phase_peak_bytes
    bars = [(phase, peaks[phase] / most, amount(peaks[phase])) for phase in PHASES if most and phase in peaks]
    lines = "".join(_bar(kind, share, words) for kind, share, words in bars)
    if row.seconds and longest:
        lines += _bar("time", row.seconds / longest, present.duration(row.seconds, t))
    return f'<div class="zs-plot-block"><p>{escape(profile_name(row.profile, t))}</p><div>{lines}</div></div>'


def _bar(kind: str, share: float, words: str) -> str:
    return (
        f'<div class="zs-plot-line"><i class="zs-phase-{kind}" style="width:{100 * share:.2f}%"></i>'
        f"<span>{escape(words)}</span></div>"
    )


def progress(view: MeasureView, t: Texts) -> str:
    """How far a measuring is, or how it ended."""
    if view.state == "done":
        return ""
    if view.finished:
        return f'<p class="zs-live">{escape(_ended(view, t))}</p>'
    words = t("measure_waiting")
    if view.state == "running":
        words = t("measure_forming", name=view.profile, number=min(view.done + 1, view.total), total=view.total)
        words += f" · {say(view.note, t.lang)}"
    percent = round(100 * view.done / view.total)
    return (
        f'<div class="zs-grid-progress"><p class="zs-count">{escape(words)}</p>'
        f'<div class="zs-bar" role="progressbar" aria-label="{escape(t("stage_progress_label"))}" aria-valuemin="0"'
        f' aria-valuemax="100" aria-valuenow="{percent}"><i style="width:{percent}%"></i></div></div>'
    )


def _ended(view: MeasureView, t: Texts) -> str:
    if view.error is not None:
        return view.error.text(t.lang)
    return t("measure_stopped") if view.state == "stopped" else t("stage_bug")


def listed(rows: Sequence[MeasuredRow], t: Texts) -> str:
    """One measuring in the list of those that were kept."""
    names = MESSAGES[t.lang]["list_comma"].join(profile_name(row.profile, t) for row in rows)
    first = rows[0]
    size = f"{first.width}×{first.height}"
    return t("measure_listed", time=present.local_minute(first.created), size=size, names=names)
