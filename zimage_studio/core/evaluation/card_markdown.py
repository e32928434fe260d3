"""The card as Markdown: the table, the targets, what was not measured, and how."""

import re

from zimage_studio.core.evaluation import card_text as words
from zimage_studio.messages import Lang, say
from zimage_studio.records.report import Metric, Pair, ReportCard

_MARKS = re.compile(r"([\\`*_{}\[\]()#+!|<>~&$-])")


def markdown(card: ReportCard, lang: Lang, sheet: str = "") -> str:
    """The whole card. `sheet` is the file of the contact sheet beside it."""
    parts = [f"# {plain(say('report.title', lang, model=card.model.name))}", plain(words.lead(card, lang))]
    parts += [f"## {say('report.targets', lang)}", _targets(card, lang), say("report.targets_note", lang)]
    parts += [f"## {say('report.numbers', lang)}", _table(card, lang), _note(card, lang)]
    parts += [plain(line) for line in (*words.rounding(card.quantised, lang), *words.rivals(card, lang))]
    parts += [f"## {say('report.not_measured', lang)}", _missing(card, lang)]
    if sheet:
        parts += [f"## {say('report.pairs', lang)}", f"![{say('report.pairs', lang)}]({sheet})"]
    parts += [f"## {say('report.how', lang)}", _how(card, lang), f"### {say('report.prompts', lang)}"]
    parts.append(
        "\n".join(f"{i}. {plain(p.prompt)} ({say('report.seed', lang, seed=p.seed)})" for i, p in _numbered(card))
    )
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """A text that no Markdown reader takes for anything but text."""
    return _MARKS.sub(r"\\\1", words.one_line(text))


def _numbered(card: ReportCard) -> list[tuple[int, Pair]]:
    return list(enumerate(card.pairs, 1))


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _targets(card: ReportCard, lang: Lang) -> str:
    return "\n".join(
        f"- **{words.met(target, lang)}**: {say(f'report.target.{target.name}', lang)} – {words.reached(target, lang)}"
        for target in card.targets
    )


def _table(card: ReportCard, lang: Lang) -> str:
    heads = [say(f"report.column.{key}", lang) for key in HEADS]
    lines = [_row(heads), _row(["---", "---:", "---:", "---:", "---", "---", "---"])]
    return "\n".join(lines + [_row(_cells(metric, lang)) for metric in card.metrics])


HEADS = ("metric", "model", "parent", "quantised", "difference", "finding", "rival")


def _cells(metric: Metric, lang: Lang) -> list[str]:
    difference = words.number(metric, metric.difference, lang, signed=True) if metric.difference is not None else ""
    around = words.interval(metric, metric.interval, lang)
    return [
        plain(f"{words.name(metric.name, lang)} ({words.source(metric, lang)})"),
        words.number(metric, metric.value, lang),
        words.parent(metric, lang),
        words.number(metric, metric.quantised, lang),
        "; ".join(part for part in (difference, around) if part) or "–",
        words.finding(metric.finding, lang),
        words.finding(metric.against_quantised, lang),
    ]


def _note(card: ReportCard, lang: Lang) -> str:
    return say("report.numbers_note", lang, resamples=card.resamples, seed=card.bootstrap_seed)


def _missing(card: ReportCard, lang: Lang) -> str:
    lines = [f"- {plain(words.not_measured(item, lang))}" for item in card.not_measured]
    return "\n".join(lines) or say("report.nothing_missing", lang)


def _how(card: ReportCard, lang: Lang) -> str:
    lines = [f"{say(f'report.machine.{key}', lang)}: {plain(value)}" for key, value in card.machine.items()]
    lines += [f"{key}: {plain(value)}" for key, value in card.stack.items()]
    lines += [f"{plain(model.name)}: sha256 `{model.sha256}`" for model in (card.model, card.parent)]
    lines.append(say("report.when", lang, created=card.created, seconds=f"{card.seconds:g}"))
    return "\n".join(f"- {line}" for line in lines)
