"""The card as one page that needs nothing else: pictures inside, no address in it, a slider for each pair."""

import base64
import hashlib
import io
from collections.abc import Iterable
from html import escape
from pathlib import Path

from PIL import Image

from zimage_studio.core.evaluation import card_text as words
from zimage_studio.messages import Lang, say
from zimage_studio.records.report import Metric, Pair, ReportCard, Target

PAGE = Path(__file__).parent / "page"
EXACT_SIDE_PX, SHOWN_SIDE_PX, QUALITY = 256, 640, 86
"""Small pictures are kept exactly; large ones are shown smaller, so that a card can be mailed."""
HEADS = ("metric", "model", "parent", "quantised", "difference", "finding", "rival")
PAIR_METRICS = ("judge_accuracy", "clip_score", "psnr_db", "ssim")


def html(card: ReportCard, lang: Lang, folder: Path) -> str:
    """The whole page. `folder` holds the pictures that the card's pairs name."""
    style, script = ((PAGE / name).read_text("utf-8") for name in ("card.css", "card.js"))
    title = escape(say("report.title", lang, model=card.model.name))
    body = "\n".join((_head(card, title, lang), _targets(card, lang), _numbers(card, lang), _missing(card, lang),
                      _pairs(card, lang, folder), _how(card, lang)))  # fmt: skip
    return f"""<!doctype html>
<html lang="{"zh-CN" if lang == "zh" else "en"}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_policy(style, script)}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""


def _policy(style: str, script: str) -> str:
    """Nothing may be fetched, and nothing runs but the script of this page."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


# --- what matters most ----------------------------------------------------------------------------------------------


def _head(card: ReportCard, title: str, lang: Lang) -> str:
    tiles = "".join(_tile(metric, lang) for metric in words.tiles(card))
    return f'<h1>{title}</h1>\n<p>{escape(words.lead(card, lang))}</p>\n<div class="tiles">{tiles}</div>'


def _tile(metric: Metric, lang: Lang) -> str:
    found, around = metric.finding, words.interval(metric, metric.interval, lang)
    difference = metric.difference
    if around and difference:
        around = f"{words.number(metric, difference, lang, signed=True)}; {around}"
    return (
        f'<div class="tile"><span>{escape(words.name(metric.name, lang))}</span>'
        f"<b>{escape(words.number(metric, metric.value, lang))}</b><span>{escape(_beside(metric, lang))}</span>"
        f"<span>{escape(around)}</span>{_mark(found, words.finding(found, lang)) if found else ''}</div>"
    )


def _beside(metric: Metric, lang: Lang) -> str:
    """The parent's number, or for size and time the share of it."""
    if metric.better == "lower" and metric.parent and metric.value is not None:
        return say("report.of_parent", lang, percent=words.percent(metric.value / metric.parent))
    return f"{say('report.column.parent', lang)}: {words.parent(metric, lang)}"


def _mark(found: str, text: str) -> str:
    return f'<span class="mark {found or "none"}">{escape(text)}</span>'


def _targets(card: ReportCard, lang: Lang) -> str:
    boxes = "".join(_target(target, lang) for target in card.targets)
    return (
        f'<h2>{say("report.targets", lang)}</h2>\n<p class="quiet">{say("report.targets_note", lang)}</p>\n'
        f'<div class="targets">{boxes}</div>'
    )


def _target(target: Target, lang: Lang) -> str:
    found = {True: "better", False: "worse", None: "none"}[target.met]
    return (
        f'<div class="target"><strong>{escape(say(f"report.target.{target.name}", lang))}</strong>'
        f"<span>{escape(words.reached(target, lang)) if target.met is not None else ''}</span>"
        f"{_mark(found, words.met(target, lang))}</div>"
    )


# --- the table ------------------------------------------------------------------------------------------------------


def _numbers(card: ReportCard, lang: Lang) -> str:
    heads = {key: escape(say(f"report.column.{key}", lang)) for key in HEADS}
    rows = "\n".join(_row(metric, heads, lang) for metric in card.metrics)
    note = say("report.numbers_note", lang, resamples=card.resamples, seed=card.bootstrap_seed)
    rivals = "".join(
        f"<p>{escape(line)}</p>" for line in (*words.rounding(card.quantised, lang), *words.rivals(card, lang))
    )
    return (
        f'<h2>{say("report.numbers", lang)}</h2>\n<p class="quiet">{escape(note)}</p>\n'
        f"<table><thead><tr>{''.join(f'<th scope=col>{head}</th>' for head in heads.values())}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody></table>\n"
        f"<h2>{escape(say('report.column.rival', lang))}</h2>\n{rivals}"
    )


def _row(metric: Metric, heads: dict[str, str], lang: Lang) -> str:
    cells = [f"<td>{escape(words.name(metric.name, lang))}<small>{escape(words.source(metric, lang))}</small></td>"]
    numbers = {
        "model": words.number(metric, metric.value, lang),
        "parent": words.parent(metric, lang),
        "quantised": words.number(metric, metric.quantised, lang),
    }
    for key, shown in numbers.items():
        own = " own" if key == "model" else ""
        cells.append(f'<td class="n{own}" data-head="{heads[key]}">{escape(shown)}</td>')
    cells.append(f'<td class="wide" data-head="{heads["difference"]}">{_difference(metric, lang)}</td>')
    for key, found in (("finding", metric.finding), ("rival", metric.against_quantised)):
        cells.append(
            f'<td data-head="{heads[key]}" class="{found or "none"}">{escape(words.finding(found, lang))}</td>'
        )
    return f"<tr>{''.join(cells)}</tr>"


def _difference(metric: Metric, lang: Lang) -> str:
    parts = []
    if metric.difference is not None:
        parts.append(escape(words.number(metric, metric.difference, lang, signed=True)))
    if metric.interval is not None:
        parts.append(f"<small>{escape(words.interval(metric, metric.interval, lang))}</small>")
        if metric.difference is not None:
            parts.append(_whisker(metric))
    return "".join(parts) or "–"


def _whisker(metric: Metric) -> str:
    """The interval and where 0 lies, 120 px wide."""
    low, high = metric.interval or (0.0, 0.0)
    reach = max(abs(low), abs(high)) or 1.0

    def x(value: float) -> str:
        return f"{60 + 54 * value / reach:.1f}"

    return (
        f'<svg viewBox="0 0 120 14" class="{metric.finding or "none"}" aria-hidden="true">'
        f'<line class="axis" x1="60" x2="60" y1="0" y2="14"/>'
        f'<line class="range" x1="{x(low)}" x2="{x(high)}" y1="7" y2="7"/>'
        f'<circle class="dot" cx="{x(metric.difference or 0)}" cy="7" r="4.5"/></svg>'
    )


def _missing(card: ReportCard, lang: Lang) -> str:
    items = "".join(f"<li>{escape(words.not_measured(item, lang))}</li>" for item in card.not_measured)
    listed = f"<ul>{items}</ul>" if items else f"<p>{say('report.nothing_missing', lang)}</p>"
    return f"<h2>{say('report.not_measured', lang)}</h2>\n{listed}"


# --- pictures -------------------------------------------------------------------------------------------------------


def _pairs(card: ReportCard, lang: Lang, folder: Path) -> str:
    figures = "\n".join(_figure(number, pair, card, lang, folder) for number, pair in enumerate(card.pairs, 1))
    small = " small-pixels" if max(card.width, card.height) <= EXACT_SIDE_PX else ""
    switch = ""
    if card.quantised is not None:
        label = escape(say("report.with_quantised", lang))
        switch = f'<label class="against"><input type="checkbox" id="against">{label}</label>'
    return (
        f'<h2>{say("report.pairs", lang)}</h2>\n<p class="quiet">{say("report.pairs_note", lang)}</p>\n{switch}\n'
        f'<div class="pairs{small}" style="--shape:{card.width}/{card.height}">\n{figures}\n</div>'
    )


def _figure(number: int, pair: Pair, card: ReportCard, lang: Lang, folder: Path) -> str:
    layers = [("parent", ""), ("model", "over child"), ("quantised", "over rival")]
    images = "".join(
        _image(kind, folder / pair.files[column], say(f"report.column.{column}", lang))
        for column, kind in layers
        if column in pair.files
    )
    label = escape(say("report.slider", lang, number=number))
    values = " · ".join(_pair_values(pair, card, lang))
    return (
        f'<figure class="pair"><div class="stage">{images}<i></i>'
        f'<input type="range" min="0" max="100" value="50" aria-label="{label}"></div>'
        f"<figcaption>{escape(words.one_line(pair.prompt))}<small>{escape(values)}</small></figcaption></figure>"
    )


def _image(kind: str, path: Path, text: str) -> str:
    return f'<img class="{kind}" src="{_data(path)}" alt="{escape(text)}">'


def _pair_values(pair: Pair, card: ReportCard, lang: Lang) -> Iterable[str]:
    yield say("report.seed", lang, seed=pair.seed)
    for key in PAIR_METRICS:
        metric, values = card.metric(key), pair.values.get(key)
        if metric is None or values is None:
            continue
        if metric.to_parent:
            own = values.get("model")
            shown = say("report.identical", lang) if own is None else words.number(metric, own, lang)
            yield f"{key.split('_')[0].upper()} {shown}"
        elif values.get("model") is not None:
            before, after = (words.number(metric, values.get(side), lang) for side in ("parent", "model"))
            yield f"{words.name(key, lang)}: {before} → {after}"


def _data(path: Path) -> str:
    """The picture as a data address: small ones as they are, large ones as a WebP that is good to look at."""
    with Image.open(path) as image:
        if max(image.size) <= EXACT_SIDE_PX:
            return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
        shown = image.convert("RGB")
    shown.thumbnail((SHOWN_SIDE_PX, SHOWN_SIDE_PX), Image.Resampling.LANCZOS)
    held = io.BytesIO()
    shown.save(held, format="WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(held.getvalue()).decode()


# --- how ------------------------------------------------------------------------------------------------------------


def _how(card: ReportCard, lang: Lang) -> str:
    machine = _list((say(f"report.machine.{key}", lang), value) for key, value in card.machine.items())
    models = _list((model.name, f"sha256 {model.sha256}") for model in (card.model, card.parent))
    prompts = "".join(
        f"<li>{escape(words.one_line(pair.prompt))} <small>({pair.seed})</small></li>" for pair in card.pairs
    )
    when = say("report.when", lang, created=card.created, seconds=f"{card.seconds:g}")
    blocks = (
        ("report.machine", machine), ("report.versions", _list(card.stack.items())), ("report.models", models),
        ("report.prompts", f"<ol>{prompts}</ol>"),
    )  # fmt: skip
    details = "\n".join(f"<details><summary>{say(key, lang)}</summary>{content}</details>" for key, content in blocks)
    return f'<h2>{say("report.how", lang)}</h2>\n<p class="quiet">{escape(when)}</p>\n{details}'


def _list(items: Iterable[tuple[str, str]]) -> str:
    rows = (f"<dt>{escape(words.one_line(key))}</dt><dd>{escape(words.one_line(value))}</dd>" for key, value in items)
    return f"<dl>{''.join(rows)}</dl>"
