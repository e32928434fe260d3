"""Plans as HTML and SVG: the sentence, the numbers, every layer before and after, what loads it, the table."""

from collections.abc import Callable

from zimage_studio.messages import CATALOGUES as MESSAGES
from zimage_studio.messages import say
from zimage_studio.records.plan import RUNTIMES, PrunePlan, Verdict
from zimage_studio.records.ranges import units
from zimage_studio.ui import present
from zimage_studio.ui.present import escape
from zimage_studio.ui.texts import Texts

_SHORT = {"noise_refiner": "N", "context_refiner": "C", "layers": ""}
_MARKS: dict[Verdict, str] = {"unchanged": "✓", "needs_our_loader": "!", "does_not_load": "✕"}
_STRIDE, _TOP, _HEADS_TOP, _HEADS = 10, 100, 106, 44
"""Of the picture: a column's width, the height of the feed-forward, where the heads begin, how tall they are."""
MANY = 14
"""With more blocks than this only every fifth is numbered, and of the refiners none."""


def plan(found: PrunePlan, t: Texts) -> str:
    """All that a plan foretells."""
    return (
        f'<div class="zs-cut-plan">{sentence(found, t)}{_numbers(found, t)}{_speed(found, t)}'
        f"{bars(found, t)}{loads(found, t)}</div>"
    )


def sentence(found: PrunePlan, t: Texts) -> str:
    """What the plan does, in one sentence."""
    if found.removes_nothing:
        return f'<p class="zs-sentence">{escape(t("plan_says_nothing"))}</p>'
    words = t(
        "plan_says", parts=_parts(found, t), share=_percent(found.bytes_after / found.bytes_before),
        criterion=criterion_name(found.criterion, t),
    )  # fmt: skip
    more = [t("plan_says_edited")] if found.edited else _asked(found, t)
    return f'<p class="zs-sentence">{escape((" " if t.lang == "en" else "").join((words, *more)))}</p>'


def _asked(found: PrunePlan, t: Texts) -> list[str]:
    """Why a share of what may go is less of the whole."""
    if "ratio" not in found.target:
        return []
    asked = t("plan_says_asked", share=_percent(found.target["ratio"]))
    return [asked, t("plan_says_protected")] if found.protect_ends and not found.dim_kept else [asked]


def criterion_name(criterion: str, t: Texts) -> str:
    """What a criterion is called."""
    return t(f"criterion_{criterion}")


def _parts(found: PrunePlan, t: Texts) -> str:
    """How many blocks go, and how much of the feed-forward and of the heads of all blocks."""
    rows = found.rows()
    dropped = sum(not row["kept"] for row in rows)
    words = []
    if dropped:
        words.append(t("plan_part_blocks", count=dropped, total=len(rows)))
    if found.dim_kept:
        words.append(t("plan_part_dim", before=found.before.dim, after=found.after.dim))
    kept = [row for row in rows if row["kept"]]
    for part in ("ffn", "heads"):
        before = sum(int(str(row[f"{part}_before"])) for row in kept)
        after = sum(int(str(row[f"{part}_after"])) for row in kept)
        if before != after:
            words.append(t(f"plan_part_{part}", share=_percent(1 - after / before)))
    return MESSAGES[t.lang]["list_comma"].join(words)


def _numbers(found: PrunePlan, t: Texts) -> str:
    rows = "".join(
        _figures(t(key), before, after, written)
        for key, before, after, written in (
            ("plan_bytes", found.bytes_before, found.bytes_after, lambda n: present.size(n, t)),
            ("plan_parameters", found.parameters_before, found.parameters_after, lambda n: _count(n, t)),
            ("plan_transformer", found.transformer_parameters_before, found.transformer_parameters_after,
             lambda n: _count(n, t)),
            ("plan_flops", found.flops_before, found.flops_after, _flops),
        )
    )  # fmt: skip
    heads = "".join(f"<th scope=col>{escape(t(key))}</th>" for key in ("plan_before", "plan_after", "plan_change"))
    return f'<table class="zs-figures"><thead><tr><td></td>{heads}</tr></thead><tbody>{rows}</tbody></table>'


def _figures(name: str, before: int, after: int, written: Callable[[int], str]) -> str:
    return (
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(written(before))}</td><td>{escape(written(after))}</td>'
        f"<td>{escape(_change(after / before))}</td></tr>"
    )


def _speed(found: PrunePlan, t: Texts) -> str:
    words = t(
        "plan_speed", times=f"{found.predicted_speedup:.2f}", width=found.width, height=found.height,
    )  # fmt: skip
    said = found.calibration
    measured = "" if said is None else t(
        "plan_calibration", prompts=said.prompts, states=said.states, width=said.width, height=said.height,
        guidance=f"{said.guidance:g}", seed=said.seed,
    )  # fmt: skip
    return f'<p class="zs-quiet">{escape(words)}</p><p class="zs-quiet">{escape(measured)}</p>'


# --- the picture ----------------------------------------------------------------------------------------------------


def bars(found: PrunePlan, t: Texts) -> str:
    """Every block: the feed-forward upwards, the heads downwards, faint what it was, full what stays."""
    shapes = list(zip(found.before.blocks, found.cuts, strict=True))
    ffn_most = max(block.ffn for block, _ in shapes)
    heads_most = max(block.heads for block, _ in shapes)
    columns, labels = [], []
    for number, (block, cut) in enumerate(shapes):
        kept_ffn = len(units(cut.ffn_kept, block.ffn)) if cut.kept else 0
        kept_heads = len(units(cut.heads_kept, block.heads)) if cut.kept else 0
        name = block_name(block.stack, block.index, t)
        title = t("plan_bar_gone", name=name) if not cut.kept else t(
            "plan_bar", name=name, ffn=kept_ffn, ffn_before=block.ffn, heads=kept_heads, heads_before=block.heads
        )  # fmt: skip
        x = number * _STRIDE + 1
        columns.append(
            f'<g class="{"zs-kept" if cut.kept else "zs-dropped"}"><title>{escape(title)}</title>'
            + _bar(x, block.ffn / ffn_most, kept_ffn / ffn_most, up=True)
            + _bar(x, block.heads / heads_most, kept_heads / heads_most, up=False)
            + "</g>"
        )
        labels.append(_label(block.stack, block.index, len(shapes)))
    width, height = len(shapes) * _STRIDE, _HEADS_TOP + _HEADS
    legend = "".join(
        f'<span class="{kind}">{escape(t(key))}</span>'
        for kind, key in (("zs-bar-now", "plan_legend_kept"), ("zs-bar-was", "plan_legend_was"),
                          ("zs-bar-gone", "plan_legend_gone"))
    )  # fmt: skip
    sides = "".join(f"<span>{escape(t(key))}</span>" for key in ("plan_side_ffn", "plan_side_heads"))
    return (
        f'<figure class="zs-layers"><div class="zs-layers-sides">{sides}</div>'
        f'<div class="zs-layers-plot"><svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img"'
        f' aria-label="{escape(t("plan_bars_label"))}">{"".join(columns)}</svg>'
        f'<div class="zs-layers-axis" aria-hidden="true">{"".join(labels)}</div></div>'
        f'<figcaption class="zs-legend">{legend}<em>{escape(t("plan_legend_names"))}</em></figcaption></figure>'
    )


def _bar(x: int, before: float, after: float, *, up: bool) -> str:
    """Two rectangles of one column: faint `before`, full `after`; both shares of the largest."""
    parts = []
    for kind, share in (("zs-was", before), ("zs-stays", after)):
        tall = share * (_TOP if up else _HEADS)
        y = _TOP - tall if up else _HEADS_TOP
        parts.append(f'<rect class="{kind}" x="{x}" y="{y:.2f}" width="{_STRIDE - 2}" height="{tall:.2f}"/>')
    return "".join(parts)


def _label(stack: str, index: int, count: int) -> str:
    words = f"{_SHORT[stack]}{index}"
    if count > MANY:
        words = (_SHORT[stack] or words) if index == 0 else words if stack == "layers" and index % 5 == 0 else ""
    return f"<span>{words}</span>"


def block_name(stack: str, index: int, t: Texts) -> str:
    """What a block is called."""
    return t(f"plan_block_{stack}", index=index)


# --- what loads it --------------------------------------------------------------------------------------------------


def loads(found: PrunePlan, t: Texts) -> str:
    """For each runtime whether it loads the child, and why."""
    rows = "".join(
        f'<li data-verdict="{verdict}"><i aria-hidden="true">{_MARKS[verdict]}</i><p><b>{escape(t(f"runtime_{name}"))}'
        f"</b> <span>{escape(t(f'verdict_{verdict}'))}</span><small>{escape(say(found.loads_why[name], t.lang))}"
        "</small></p></li>"
        for name in RUNTIMES
        if (verdict := found.loads_in.get(name)) is not None
    )
    return f'<h3 class="zs-part-title">{escape(t("plan_loads"))}</h3><ul class="zs-loads">{rows}</ul>'


# --- the table ------------------------------------------------------------------------------------------------------


def table(found: PrunePlan, t: Texts) -> str:
    """One line a block, each number a field; what was typed is collected by compress_plan.COLLECT."""
    heads = "".join(
        f"<th scope=col>{escape(t(key))}</th>" for key in ("plan_column_block", "plan_column_keep", "plan_column_ffn",
                                                           "plan_column_heads")
    )  # fmt: skip
    rows = "".join(_table_row(row, t) for row in found.rows())
    return (
        f'<div class="zs-edit-box"><table class="zs-edit"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
        "</div>"
    )


def _table_row(row: dict[str, object], t: Texts) -> str:
    stack, index, kept = str(row["stack"]), int(str(row["index"])), bool(row["kept"])
    name = block_name(stack, index, t)
    cells = "".join(_field(row, part, t(f"plan_column_{part}"), name) for part in ("ffn", "heads"))
    return (
        f'<tr data-stack="{stack}" data-index="{index}"><th scope="row">{escape(name)}</th>'
        f'<td><input type="checkbox" aria-label="{escape(name)}: {escape(t("plan_column_keep"))}"'
        f"{' checked' if kept else ''}></td>{cells}</tr>"
    )


def _field(row: dict[str, object], part: str, column: str, name: str) -> str:
    before, after = int(str(row[f"{part}_before"])), int(str(row[f"{part}_after"]))
    value = after if row["kept"] else before
    changed = ' class="zs-changed"' if value != before else ""
    return (
        f'<td{changed}><input type="number" min="1" max="{before}" value="{value}" data-part="{part}"'
        f' aria-label="{escape(name)}: {escape(column)}"><small>/ {before}</small></td>'
    )


# --- numbers --------------------------------------------------------------------------------------------------------


def _percent(share: float) -> str:
    """A share as a whole percentage; small ones with a digit, so that something is not called nothing."""
    value = 100 * share
    return f"{value:.1f}" if 0 < value < 10 or 90 < value < 100 else f"{value:.0f}"


def _change(ratio: float) -> str:
    value = 100 * (ratio - 1)
    return "±0 %" if abs(value) < 0.05 else f"{value:+.1f} %".replace("-", "−")


def _count(number: int, t: Texts) -> str:
    """Chinese counts in 10^4 and 10^8, English in 10^6 and 10^9."""
    if t.lang == "zh":
        return f"{number / 1e8:.2f} 亿" if number >= 10**8 else f"{number / 1e4:.1f} 万"
    return f"{number / 1e9:.2f} B" if number >= 10**9 else f"{number / 1e6:.2f} M"


def _flops(count: int) -> str:
    """`1.23 TFLOP`: 2 for each multiply-add."""
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count / 1e6:.1f} MFLOP"
