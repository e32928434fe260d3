"""The blocks of a transformer as a board: one button for each part, coloured by how much is lost without it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from zimage_studio.messages import CATALOGUES as MESSAGES
from zimage_studio.records.plan import STACKS, BlockShape
from zimage_studio.records.sensitivity import Knock, KnockPart, SensitivityMap
from zimage_studio.ui.present import escape
from zimage_studio.ui.texts import Texts

WHOLE: tuple[KnockPart, ...] = ("block", "attention", "feed_forward")
"""The parts of every block, in the order of the columns."""
HEADS = "heads:"
"""Before the place of a block whose heads are to be shown or hidden."""
STRONGEST_PERCENT = 72
"""More colour than this would make the numbers on it hard to read."""
LEGEND = (0.0, 0.25, 0.5, 0.75, 1.0)
NAMED_CHIPS = 3

BRIDGE = """let out = new Set(), heads = '', seen = null, last = null, place = [0, 0], number = 0;
const paint = () => {
  for (const button of element.querySelectorAll('button[aria-pressed]')) {
    const off = out.has(button.dataset.pick);
    button.setAttribute('aria-pressed', String(off));
    button.classList.toggle('zs-out', off);
  }
};
const take = () => {
  const box = element.querySelector('[data-revision]');
  if (!box) return;
  if (box.dataset.revision !== seen) {
    seen = box.dataset.revision;
    out = new Set(JSON.parse(box.dataset.out));
    heads = box.dataset.heads;
  }
  paint();
};
const tell = (pick) => {
  last = pick;
  number = Math.max(number + 1, performance.now());
  paint();
  trigger('click', {out: [...out], heads, revision: seen, number});
};
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-pick]');
  if (!button) return;
  take();
  const pick = button.dataset.pick;
  const block = pick.startsWith('heads:') ? pick.slice(6) : null;
  if (block !== null) heads = heads === block ? '' : block;
  else if (!out.delete(pick)) out.add(pick);
  tell(pick);
});
element.addEventListener('zs-on', (event) => {
  take();
  out.delete(event.detail);
  tell(event.detail);
});
element.addEventListener('keydown', (event) => {
  const step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
  const cell = event.target.closest('td');
  if (!step || !cell || cell.closest('.zs-heads-row')) return;
  const rows = [...element.querySelectorAll('tbody tr:not(.zs-heads-row)')];
  const row = rows[rows.indexOf(cell.parentElement) + step[0]];
  const column = cell.cellIndex + step[1];
  const next = row?.cells[Math.max(1, Math.min(row.cells.length - 1, column))]?.querySelector('button');
  if (!next) return;
  event.preventDefault();
  next.focus();
});
element.addEventListener('scroll', (event) => {
  const box = event.target;
  if (box.classList?.contains('zs-heat-box')) place = [box.scrollLeft, box.scrollTop];
}, true);
watch('value', () => {
  take();
  element.querySelector('.zs-heat-box')?.scrollTo(...place);
  if (last === null || document.activeElement !== document.body) return;
  element.querySelector(`[data-pick="${CSS.escape(last)}"]`)?.focus({preventScroll: true});
});"""
"""For gr.HTML: clicks reach the server with all that is switched off and a number that grows, since quick ones may
overtake each other on their way: the server heeds the newest.

What the browser holds counts until a board of another revision comes. The arrow keys walk, and a board that is drawn
anew keeps the keyboard's place, and how far it was scrolled.
"""
ON = """element.addEventListener('click', (event) => {
  const ref = event.target.closest('[data-pick]')?.dataset.pick;
  const board = document.querySelector('#zs-heat [data-revision]');
  if (ref && board) board.dispatchEvent(new CustomEvent('zs-on', {bubbles: true, detail: ref}));
});"""
"""For the gr.HTML of the chips: a click switches that part on again in the board's own set, and the board tells."""


@dataclass(frozen=True, slots=True)
class View:
    """How the board is looked at: the part shown step by step ("" shows all parts), and the block whose heads are."""

    steps_of: str = ""
    heads_of: str = ""
    revision: str = ""


def place_of(block: BlockShape | Knock) -> str:
    """`layers.3`."""
    return f"{block.stack}.{block.index}"


def board(
    blocks: Iterable[BlockShape], out: frozenset[Knock], heat: SensitivityMap | None, view: View, t: Texts
) -> str:
    """The board. `out` are switched off."""
    cells = {} if heat is None else {cell.knock: cell for cell in heat.cells}
    if view.steps_of and heat is not None:
        values = {knock: cell.by_step for knock, cell in cells.items() if knock.part == view.steps_of}
        top = max((max(row, default=0.0) for row in values.values()), default=0.0)
        columns = tuple(str(step) for step in range(1, len(heat.times) + 1))
        corner = t("heat_by_step", part=t(f"part_{view.steps_of}"))
        rows = [_steps_row(block, out, values, view, top, t) for block in blocks]
    else:
        changes = {knock: cell.change for knock, cell in cells.items()}
        top = max(changes.values(), default=0.0)
        columns = (*(t(f"part_{part}") for part in WHOLE), t("part_heads"))
        corner = t("heat_blocks")
        rows = [row for block in blocks for row in _rows(block, out, changes, view, top, t)]
    head = "".join(f'<th scope="col">{escape(words)}</th>' for words in (corner, *columns))
    kind = f'class="zs-heat zs-heat-steps" style="--columns:{len(columns)}"' if view.steps_of else 'class="zs-heat"'
    name = escape(t("heat_label"))
    refs = escape(json.dumps([str(knock) for knock in sorted(out, key=str)]))
    return (
        f'<div class="zs-heat-box" data-revision="{escape(view.revision)}" data-out="{refs}"'
        f' data-heads="{escape(view.heads_of)}">'
        f'<table {kind}><caption class="zs-unseen">{name}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{_legend(top, t)}"
    )


def about(heat: SensitivityMap, steps_of: str, t: Texts) -> str:
    """What the colours of the board mean and on what they were measured."""
    if steps_of:
        return t("heat_step_about")
    return t("heat_about", prompts=len(heat.prompts), steps=len(heat.times), width=heat.width, height=heat.height)


def named(knock: Knock, t: Texts) -> str:
    """`Layer 3 · attention`."""
    part = t("part_head", head=knock.head) if knock.part == "head" else t(f"part_{knock.part}")
    return t("unit_named", place=t(f"stack_{knock.stack}", index=knock.index), part=part)


def amount(value: float) -> str:
    """A measured value, short enough for its cell."""
    if value >= 9.95:
        return f"{value:.0f}"
    if value >= 0.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.005 else ("0" if value == 0 else "<.01")


def in_order(out: Iterable[Knock]) -> list[Knock]:
    """As the board has them, top down."""
    return sorted(out, key=lambda one: (STACKS.index(one.stack), one.index, one.part, one.head or 0))


def chips(out: Iterable[Knock], t: Texts) -> str:
    """What is switched off, each with a button that switches it on again."""
    knocks = in_order(out)
    if not knocks:
        return f'<p class="zs-note">{escape(t("lab_nothing_out"))}</p>'
    items = "".join(_chip(knock, t) for knock in knocks)
    return f'<ul class="zs-chips" aria-label="{escape(t("lab_out"))}">{items}</ul>'


def mark(out: Iterable[Knock], t: Texts) -> str:
    """What the picture lacks, in words."""
    knocks = in_order(out)
    words = MESSAGES[t.lang]["list_comma"].join(named(knock, t) for knock in knocks[:NAMED_CHIPS])
    if len(knocks) > NAMED_CHIPS:
        return t("lab_mark_many", units=words, count=len(knocks) - NAMED_CHIPS)
    return t("lab_mark", units=words)


def _chip(knock: Knock, t: Texts) -> str:
    words = named(knock, t)
    name = escape(t("lab_back_on", unit=words))
    return (
        f'<li><button type="button" data-pick="{knock}" aria-label="{name}" title="{name}">'
        f'<span>{escape(words)}</span><i aria-hidden="true">×</i></button></li>'
    )


def _rows(
    block: BlockShape, out: frozenset[Knock], changes: Mapping[Knock, float], view: View, top: float, t: Texts
) -> list[str]:
    """All parts of a block, and its heads below where they are opened."""
    is_open = view.heads_of == place_of(block)
    units = [Knock(block.stack, block.index, part) for part in WHOLE]
    cells = "".join(f"<td>{_button(unit, changes.get(unit), top, unit in out, t)}</td>" for unit in units)
    heads = [Knock(block.stack, block.index, "head", head) for head in range(block.heads)]
    gone = sum(head in out for head in heads)
    row = f"<tr>{_row_head(block, t)}{cells}<td>{_heads_button(block, gone, t, is_open=is_open)}</td></tr>"
    if not is_open:
        return [row]
    buttons = "".join(_button(head, changes.get(head), top, head in out, t) for head in heads)
    name = escape(t("heads_of", place=t(f"stack_{block.stack}", index=block.index)))
    opened = f'<tr class="zs-heads-row"><td colspan="5"><div role="group" aria-label="{name}">{buttons}</div></td></tr>'
    return [row, opened]


def _steps_row(
    block: BlockShape, out: frozenset[Knock], values: Mapping[Knock, Sequence[float]], view: View, top: float,
    t: Texts,
) -> str:  # fmt: skip
    knock = Knock(block.stack, block.index, view.steps_of)  # type: ignore[arg-type]
    cells = ""
    for step, value in enumerate(values.get(knock, ()), 1):
        where = t("heat_at_step", step=step)
        cells += f"<td>{_button(knock, value, top, knock in out, t, where)}</td>"
    return f"<tr>{_row_head(block, t)}{cells}</tr>"


def _row_head(block: BlockShape, t: Texts) -> str:
    return f'<th scope="row">{escape(t(f"stack_{block.stack}", index=block.index))}</th>'


def _heads_button(block: BlockShape, gone: int, t: Texts, *, is_open: bool) -> str:
    place = t(f"stack_{block.stack}", index=block.index)
    words = t("heads_out", count=gone, heads=block.heads) if gone else t("heads_count", heads=block.heads)
    shown = words if gone else str(block.heads)  # the column says of what
    name = escape(t("heads_hide" if is_open else "heads_show", place=place))
    return (
        f'<button type="button" class="zs-heads-button{" zs-some-out" if gone else ""}"'
        f' data-pick="{HEADS}{place_of(block)}"'
        f' title="{name}" aria-label="{name} ({escape(words)})" aria-expanded="{str(is_open).lower()}">'
        f"{escape(shown)}</button>"
    )


def _button(knock: Knock, value: float | None, top: float, is_out: bool, t: Texts, where: str = "") -> str:
    measured = "" if value is None else t("heat_value", value=amount(value))
    told = " · ".join(words for words in (where, measured) if words)
    unit = named(knock, t)
    name = escape(t("unit_switch_value", unit=unit, value=told) if told else t("unit_switch", unit=unit))
    share = 0.0 if value is None or top <= 0 else min(1.0, max(0.0, value) / top) ** 0.5
    style = f' style="--heat:{STRONGEST_PERCENT * share:.0f}%"' if share else ""
    shown = "" if value is None else amount(value)
    if knock.part == "head":
        shown = f"<small>{knock.head}</small>{shown}"
    kind = "zs-heat-cell zs-out" if is_out else "zs-heat-cell"
    return (
        f'<button type="button" class="{kind}"{style} data-pick="{knock}" aria-pressed="{str(is_out).lower()}"'
        f' aria-label="{name}" title="{name}">{shown}</button>'
    )


def _legend(top: float, t: Texts) -> str:
    """What the colours say: they grow with the square root, or one block would outshine all others."""
    off = f'<span class="zs-heat-off"><i class="zs-out"></i>{escape(t("heat_legend_out"))}</span>'
    if top <= 0:
        return f'<p class="zs-heat-legend">{off}</p>'
    swatches = "".join(
        f'<span><i style="--heat:{STRONGEST_PERCENT * share:.0f}%"></i>{amount(top * share**2)}</span>'
        for share in LEGEND
    )
    return f'<p class="zs-heat-legend"><b>{escape(t("heat_legend"))}</b>{swatches}{off}</p>'
