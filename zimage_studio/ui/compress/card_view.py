"""The report card as HTML: targets, numbers with their intervals, what was not measured, the pairs.

The sentences and numbers are those of the card's own files (core.evaluation.card_text): both say the same.
"""

from collections.abc import Mapping, Sequence

from zimage_studio.core.evaluation import card_text
from zimage_studio.messages import CATALOGUES as MESSAGES
from zimage_studio.messages import say
from zimage_studio.records.report import COLUMNS, Column, Metric, Pair, ReportCard, Subject, Target
from zimage_studio.ui import present
from zimage_studio.ui.present import escape
from zimage_studio.ui.texts import Texts

MARKS = {"better": "▲", "worse": "▼", "unclear": "≈", "same": "="}
TARGETS = {True: ("met", "✓"), False: ("missed", "✕"), None: ("unknown", "?")}
NOTHING = "–"
PAIR = "pair:"


def card(report: ReportCard, t: Texts) -> str:
    """All of it but the pairs."""
    parts = (_targets, _metrics, _missing, _facts)
    name = escape(say("report.title", t.lang, model=report.model.name))
    lead = escape(card_text.lead(report, t.lang))
    return (
        f'<article class="zs-card zs-report" aria-label="{name}"><p class="zs-big">{name}</p>'
        f'<p class="zs-quiet">{lead}</p>{"".join(part(report, t) for part in parts)}</article>'
    )


def idle(t: Texts, *, uncut: bool = False, working: bool = False) -> str:
    """Before the first card; a model that is `uncut` has no parent to be compared with."""
    key = "judge_idle_working" if working else "judge_idle_uncut" if uncut else "judge_idle_hint"
    head, hint = escape(t("judge_idle")), escape(t(key))
    return f'<div class="zs-stage zs-stage-idle"><p class="zs-big">{head}</p><p>{hint}</p></div>'


def metric_name(name: str, t: Texts) -> str:
    """What a metric is called; an unknown one as it is written."""
    return MESSAGES[t.lang].get(f"report.metric.{name}", name.replace("_", " "))


def pairs(report: ReportCard, thumbs: Mapping[str, str], chosen: int, t: Texts) -> str:
    """A contact sheet: each prompt with the pictures of the parent and the model; a click opens them in the slider.

    `thumbs` are addresses of small pictures by the card's file names.
    """
    cells = "".join(_pair(index, pair, thumbs, index == chosen, t) for index, pair in enumerate(report.pairs))
    if not cells:
        return f'<p class="zs-note">{escape(t("pairs_none"))}</p>'
    return f'<div class="zs-pairs" role="group" aria-label="{escape(t("pairs_label"))}">{cells}</div>'


def pair_words(report: ReportCard, pair: Pair, beside: Column, t: Texts) -> str:
    """Under the slider: the prompt, which side is which, and what was measured of this pair."""
    sides = t("pair_sides", left=column(beside, t), right=column("model", t), seed=pair.seed)
    lines = [_pair_line(metric, pair.values.get(metric.name, {}), t) for metric in report.metrics]
    return (
        f'<p class="zs-caption"><b>{escape(pair.prompt)}</b></p><p class="zs-caption">{escape(sides)}</p>'
        f'<ul class="zs-pair-values">{"".join(lines)}</ul>'
    )


def column(name: Column, t: Texts) -> str:
    """What a column is called."""
    return say(f"report.column.{name}", t.lang)


# --- parts


def _targets(report: ReportCard, t: Texts) -> str:
    tiles = "".join(_target(target, t) for target in report.targets)
    return (
        f"<h3>{_say('report.targets', t)}</h3><ul class='zs-targets'>{tiles}</ul>"
        f'<p class="zs-remark">{_say("report.targets_note", t)}</p>'
    )


def _target(target: Target, t: Texts) -> str:
    kind, mark = TARGETS[target.met]
    reached = "" if target.met is None else escape(card_text.reached(target, t.lang))
    return (
        f'<li class="zs-target zs-target-{kind}" data-state="{kind}"><p><i aria-hidden="true">{mark}</i>'
        f"<b>{escape(card_text.met(target, t.lang))}</b></p><p>{_say(f'report.target.{target.name}', t)}</p>"
        f'<p class="zs-quiet">{reached}</p></li>'
    )


def _metrics(report: ReportCard, t: Texts) -> str:
    keys = ("metric", "model", "parent", "difference", "quantised")
    words = [say(f"report.column.{key}", t.lang) for key in keys[: 5 if report.quantised is not None else 4]]
    head = "".join(f'<th scope="col">{escape(word)}</th>' for word in words)
    rows = "".join(_metric(metric, words, t) for metric in report.metrics)
    note = say("report.numbers_note", t.lang, resamples=report.resamples, seed=report.bootstrap_seed)
    remarks = [t("card_marks"), note, *card_text.rounding(report.quantised, t.lang), *card_text.rivals(report, t.lang)]
    return (
        f"<h3>{_say('report.numbers', t)}</h3><div class='zs-metrics-box'>"
        f'<table class="zs-table zs-metrics"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        + "".join(f'<p class="zs-remark">{escape(words)}</p>' for words in remarks)
    )


def _metric(metric: Metric, heads: Sequence[str], t: Texts) -> str:
    better = t("better_higher" if metric.better == "higher" else "better_lower")
    rival = metric.against_quantised
    said = f'<small class="zs-rival-{rival}">{escape(card_text.finding(rival, t.lang))}</small>' if rival else ""
    cells = (
        f"<b>{escape(card_text.number(metric, metric.value, t.lang))}</b>",
        escape(card_text.number(metric, metric.parent, t.lang)),
        _difference(metric, t),
        escape(card_text.number(metric, metric.quantised, t.lang)) + said,
    )
    columns = "".join(
        f'<td data-head="{escape(word)}"><div>{cell}</div></td>' for word, cell in zip(heads[1:], cells, strict=False)
    )
    source = escape(" · ".join(words for words in (better, card_text.source(metric, t.lang)) if words))
    return (
        f'<tr data-metric="{escape(metric.name)}"><th scope="row">{escape(metric_name(metric.name, t))}'
        f"<small>{source}</small></th>{columns}</tr>"
    )


def _difference(metric: Metric, t: Texts) -> str:
    """Mark, difference, its interval in numbers and as a line around zero."""
    around = escape(card_text.interval(metric, metric.interval, t.lang))
    small = f"<small>{around}</small>" if around else ""
    if metric.difference is None:
        return small or NOTHING
    shown = escape(card_text.number(metric, metric.difference, t.lang, signed=True))
    found = metric.finding
    if not found:
        return f"{shown}{small}"
    meaning = escape(card_text.finding(found, t.lang))
    mark = f'<i class="zs-finding-{found}" title="{meaning}" aria-hidden="true">{MARKS[found]}</i>'
    said = f'<span class="zs-unseen">{meaning}</span>'
    line = "" if metric.interval is None else _whisker(metric.interval, metric.difference, found)
    return f"{mark} {shown}{said}{small}{line}"


def _whisker(interval: tuple[float, float], middle: float, found: str) -> str:
    """The interval as a line, zero in the middle of the picture."""
    reach = max(abs(interval[0]), abs(interval[1]), abs(middle)) or 1.0
    low, high, x = (60 + 54 * value / reach for value in (*interval, middle))
    return (
        f'<svg class="zs-whisker zs-finding-{found}" viewBox="0 0 120 14" aria-hidden="true">'
        f'<line class="zs-zero" x1="60" x2="60" y1="0" y2="14"/><line x1="{low:.1f}" x2="{high:.1f}" y1="7" y2="7"/>'
        f'<circle cx="{x:.1f}" cy="7" r="3.4"/></svg>'
    )


def _missing(report: ReportCard, t: Texts) -> str:
    rows = "".join(
        f"<li><b>{escape(metric_name(item.name, t))}</b>"
        f"{f' ({escape(column(item.column, t))})' if item.column else ''}:"
        f" {escape(say(item.reason, t.lang, **item.values))}</li>"
        for item in report.not_measured
    )
    inner = f'<ul class="zs-missing">{rows}</ul>' if rows else f"<p>{_say('report.nothing_missing', t)}</p>"
    return f"<h3>{_say('report.not_measured', t)}</h3>{inner}"


def _facts(report: ReportCard, t: Texts) -> str:
    machine = [(MESSAGES[t.lang].get(f"report.machine.{key}", key), value) for key, value in report.machine.items()]
    models = [(column(name, t), f"{who.name} {who.sha256[:12]}…") for name, who in _subjects(report)]
    when = say("report.when", t.lang, created=present.local_minute(report.created), seconds=f"{report.seconds:g}")
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in (*models, *machine, *report.stack.items())
    )
    prompts = "".join(
        f"<li>{escape(pair.prompt)} <small>{escape(say('report.seed', t.lang, seed=pair.seed))}</small></li>"
        for pair in report.pairs
    )
    return (
        f"<details><summary>{_say('report.how', t)}</summary><p>{escape(when)}</p><dl>{cells}</dl>"
        f"<h3>{_say('report.prompts', t)}</h3><ol>{prompts}</ol></details>"
    )


def _subjects(report: ReportCard) -> tuple[tuple[Column, Subject], ...]:
    return (("model", report.model), ("parent", report.parent))


def _pair(index: int, pair: Pair, thumbs: Mapping[str, str], is_chosen: bool, t: Texts) -> str:
    name = escape(t("pair_open", prompt=pair.prompt, seed=pair.seed))
    both = "".join(
        f'<img alt="" src="{thumbs[file]}">'
        for side in ("parent", "model")
        if (file := pair.files.get(side, "")) in thumbs
    )
    state = ' class="zs-pair zs-chosen" aria-current="true"' if is_chosen else ' class="zs-pair"'
    return (
        f'<button type="button"{state} data-pick="{PAIR}{index}" title="{name}" aria-label="{name}">'
        f"<span>{both}</span><small>{escape(pair.prompt)}</small></button>"
    )


def _pair_line(metric: Metric, values: Mapping[str, float | None], t: Texts) -> str:
    """One metric of one pair in every column that was drawn; nothing for what was counted."""
    known = [(name, values[name]) for name in COLUMNS if values.get(name) is not None]
    if metric.to_parent:
        known = [(name, value) for name, value in known if name != "parent"]
    if not known:
        return ""
    numbers = " · ".join(f"{column(name, t)} {card_text.number(metric, value, t.lang)}" for name, value in known)
    return f"<li><b>{escape(metric_name(metric.name, t))}</b> {escape(numbers)}</li>"


def _say(key: str, t: Texts) -> str:
    return escape(say(key, t.lang))
