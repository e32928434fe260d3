"""Numbers of a card as people read them, in either language."""

from collections.abc import Sequence

from zimage_studio.messages import Lang, say
from zimage_studio.records.report import Finding, Metric, NotMeasured, QuantisedParent, ReportCard, Target

MINUS = "\N{MINUS SIGN}"
STEPS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
COUNTED = ((1e9, "B"), (1e6, "M"), (1e3, "k"))
SHARES = ("judge_accuracy", "judge_all_right")
OURS = {
    "embedded judge": "report.source.judge",
    "embedded judge, features": "report.source.judge_features",
    "embedded CLIP (drawn world only)": "report.source.clip",
}
"""Our own scorers, as cards name them; those of others are called what they are called."""
KEY_METRICS = ("bytes", "seconds_per_image", "judge_accuracy", "clip_score", "image_reward", "hps_v2", "ssim")
TILES = 4


def name(metric: str, lang: Lang) -> str:
    """What a metric is called."""
    return say(f"report.metric.{metric}", lang)


def number(metric: Metric, value: float | None, lang: Lang, *, signed: bool = False) -> str:
    """`value` in the unit of `metric`; a dash where there is none."""
    if value is None:
        return say("report.identical", lang) if metric.name == "psnr_db" and metric.identical else "–"
    if signed and metric.name in SHARES:
        sign = "+" if value > 0 else MINUS if value < 0 else ""
        return say("report.points", lang, value=f"{sign}{abs(value) * 100:.1f}")
    sign = "+" if signed and value > 0 else MINUS if value < 0 else ""
    return sign + _size(metric, abs(value))


def parent(metric: Metric, lang: Lang) -> str:
    """The parent's number; of a distance to the parent there is none worth showing."""
    return say("report.itself", lang) if metric.to_parent else number(metric, metric.parent, lang)


def _size(metric: Metric, value: float) -> str:
    if metric.name in SHARES:
        return f"{value * 100:.1f} %"
    if metric.unit in ("B", "FLOP"):
        return _scaled(value, STEPS, metric.unit)
    if "parameters" in metric.name:
        return _scaled(value, COUNTED, "")
    if metric.name == "failed_pictures":
        return f"{value:.0f}"
    if metric.unit == "s":
        return f"{value:.3f} s" if value < 10 else f"{value:.1f} s"
    if metric.unit == "dB":
        return f"{value:.1f} dB"
    return f"{value:.4f}" if value < 10 else f"{value:.1f}"


def _scaled(value: float, steps: Sequence[tuple[float, str]], unit: str) -> str:
    for step, prefix in steps:
        if value >= step:
            return f"{value / step:.3g} {prefix}{unit}" if value / step < 1000 else f"{value / step:.0f} {prefix}{unit}"
    return f"{value:.0f} {unit}".strip()


def size(value: float) -> str:
    """Bytes, decimal."""
    return _scaled(value, STEPS, "B")


def percent(share: float) -> str:
    """A ratio as percent."""
    return f"{share * 100:.1f} %"


def interval(metric: Metric, bounds: tuple[float, float] | None, lang: Lang) -> str:
    """The interval of a line, in its unit."""
    if bounds is None:
        return ""
    if bounds == (0, 0):
        return say(
            "report.none_differ", lang, count=metric.samples, percent=percent(min(1, 3 / max(1, metric.samples)))
        )
    signed = not metric.to_parent
    low, high = (number(metric, bound, lang, signed=signed) for bound in bounds)
    return say("report.interval", lang, low=low, high=high)


def finding(found: Finding, lang: Lang) -> str:
    """What a line shows, in words."""
    return say(f"report.finding.{found}", lang)


def source(metric: Metric, lang: Lang) -> str:
    """Who scored, over how many pictures."""
    key = OURS.get(metric.source, metric.source)
    words = say(key, lang) if key.startswith("report.") else key
    count = say("report.samples", lang, count=metric.samples) if metric.samples > 1 else ""
    return " · ".join(part for part in (words, count) if part)


def not_measured(item: NotMeasured, lang: Lang) -> str:
    """What is missing, and why."""
    return f"{name(item.name, lang)}: {say(item.reason, lang, **item.values)}"


def lead(card: ReportCard, lang: Lang) -> str:
    """What was compared."""
    return say(
        "report.lead", lang, model=card.model.name, parent=card.parent.name, count=len(card.prompts),
        width=card.width, height=card.height, steps=card.steps, guidance=f"{card.guidance:g}",
    )  # fmt: skip


def reached(target: Target, lang: Lang) -> str:
    """How far a target was reached."""
    if target.reached is None:
        return say("report.unknown", lang)
    sign = MINUS if target.reached < 0 else ""
    words = say(
        f"report.reached.{target.name}", lang, percent=percent(target.reached), value=f"{sign}{abs(target.reached):.4f}"
    )
    return words if target.sure else f"{words}; {say('report.unsure', lang)}"


def met(target: Target, lang: Lang) -> str:
    """Met, not met, or not measured."""
    key = {True: "report.met", False: "report.not_met", None: "report.unknown"}[target.met]
    return say(key, lang)


def rounding(quantised: QuantisedParent | None, lang: Lang) -> list[str]:
    """What the quantised parent is."""
    if quantised is None:
        return [say("report.no_rival", lang)]
    words = say(
        "report.quantised_is", lang, int4=quantised.int4, int8=quantised.int8, plain=quantised.plain,
        bytes=size(quantised.bytes), wanted=size(quantised.wanted_bytes),
    )  # fmt: skip
    return [words] if quantised.reachable else [words, say("report.quantised_unreachable", lang)]


def rivals(card: ReportCard, lang: Lang) -> list[str]:
    """Where the model is better than its quantised parent, where worse, and where nothing is shown."""
    lines = []
    for verdict in ("better", "worse", "unclear"):
        names = tuple(name(metric.name, lang) for metric in card.metrics if metric.against_quantised == verdict)
        if names:
            lines.append(say(f"report.rival_{verdict}", lang, names=names))
    return lines


def tiles(card: ReportCard) -> list[Metric]:
    """The few lines that a reader wants first."""
    found = [card.metric(key) for key in KEY_METRICS]
    return [metric for metric in found if metric is not None][:TILES]


def one_line(text: str) -> str:
    """A text on one line, without what would reorder or hide it."""
    return "".join(c if c.isprintable() else " " for c in text)
