"""A grid as HTML: a table with its axes, cells to click, how far it is. What came from outside is escaped here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zimage_studio.messages import say
from zimage_studio.records.grid import Axis, Cell, GridPlan
from zimage_studio.records.progress import Preview
from zimage_studio.services.generation import JobView
from zimage_studio.services.grids import Grid, GridView
from zimage_studio.services.images import StoredImage
from zimage_studio.ui import present
from zimage_studio.ui.present import escape
from zimage_studio.ui.texts import Texts

Place = tuple[int, int]
PROMPT_CHARS = 32


@dataclass(frozen=True, slots=True)
class CellShown:
    """A cell that is made: its image, and the address of its thumbnail."""

    image: StoredImage
    picture: str


def table(grid: Grid, cells: Mapping[Place, CellShown], forming: Place | None, t: Texts) -> str:
    """The grid, scrolling inside its box. `cells` are made; `forming` is being made."""
    plan = grid.plan
    head = _head(plan, t)
    by_place = {(cell.column, cell.row): cell for cell in plan.cells}
    body = "".join(_row(plan, row, by_place, cells, forming, t) for row in range(plan.rows))
    aspect = max(cell.request.width / cell.request.height for cell in plan.cells)
    shape = f"--zs-cols:{plan.columns};--zs-rows:{plan.rows};--zs-aspect:{aspect:.3f}"
    kind = "zs-grid zs-neighbours" if plan.kind == "neighbourhood" else "zs-grid"
    name = escape(title(plan, t))
    return (
        f'<div class="zs-grid-box" role="region" aria-label="{name}" tabindex="0" style="{shape}">'
        f'<table class="{kind}"><caption class="zs-unseen">{name}</caption>{head}<tbody>{body}</tbody></table></div>'
    )


def progress(view: GridView, job: JobView | None, seconds_left: float | None, t: Texts) -> str:
    """How many cells are there, what the present one does, how long the rest takes; and how it ended."""
    words = [t("grid_cells", done=view.done, total=view.total)]
    if view.state == "running" and job is not None:
        words.append(_doing(job, t))
    if view.state == "running" and seconds_left is not None:
        words.append(t("stage_left", time=present.duration(seconds_left, t)))
    if view.state in ("stopped", "done"):
        words.append(t("grid_done") if view.state == "done" else t("grid_stopped"))
    line = f'<p class="zs-count">{escape(" · ".join(words))}</p>'
    if view.state == "failed":
        sentence = view.error.text(t.lang) if view.error is not None else t("stage_bug")
        return f'<div class="zs-grid-progress" role="alert">{line}<p class="zs-grid-error">{escape(sentence)}</p></div>'
    percent = 100 * (view.done + _share(job)) / view.total
    bar = (
        f'<div class="zs-bar" role="progressbar" aria-label="{escape(t("stage_progress_label"))}" aria-valuemin="0"'
        f' aria-valuemax="100" aria-valuenow="{round(percent)}"><i style="width:{percent:.1f}%"></i></div>'
    )
    preview = job.preview if job is not None and view.state == "running" else None
    return f'<div class="zs-grid-progress">{line}{bar if view.state != "done" else ""}{_forming_style(preview)}</div>'


def title(plan: GridPlan, t: Texts) -> str:
    """What the grid is, in a few words."""
    if plan.kind == "neighbourhood":
        return t("grid_neighbours", side=plan.columns)
    names = [present.field_name(axis.field, t) for axis in (plan.x, plan.y) if axis is not None]
    return " × ".join(names)


def listed(grid: Grid, t: Texts) -> str:
    """One grid among the earlier ones."""
    view = grid.view
    prompt = grid.plan.cells[0].request.prompt.replace("\n", " ")
    short = prompt if len(prompt) <= PROMPT_CHARS else prompt[: PROMPT_CHARS - 1] + "…"
    state = t(f"grid_state_{view.state}", done=view.done, total=view.total)
    return " · ".join((title(grid.plan, t), state, short))


def forming_place(grid: Grid, view: GridView) -> Place | None:
    """The cell that is being made."""
    job = view.job
    if job is None or view.finished:
        return None
    same = (c for c in grid.plan.cells if c.request == job.batch.first and c.model == job.model)
    return next(((c.column, c.row) for c in same if (c.column, c.row) not in view.images), None)


def _head(plan: GridPlan, t: Texts) -> str:
    if plan.x is None:
        return ""
    name = escape(present.field_name(plan.x.field, t))
    corner = (
        ""
        if plan.y is None
        else f'<td rowspan="2" class="zs-corner">{escape(present.field_name(plan.y.field, t))}</td>'
    )
    values = "".join(f'<th scope="col">{_label(value)}</th>' for value in plan.x.values)
    return (
        f'<thead><tr>{corner}<th scope="colgroup" colspan="{plan.columns}" class="zs-axis-name">{name}</th></tr>'
        f"<tr>{values}</tr></thead>"
    )


def _row(
    plan: GridPlan, row: int, by_place: Mapping[Place, Cell], cells: Mapping[Place, CellShown], forming: Place | None,
    t: Texts,
) -> str:  # fmt: skip
    head = "" if plan.y is None else f'<th scope="row">{_label(plan.y.values[row])}</th>'
    parts = []
    for column in range(plan.columns):
        place = (column, row)
        words = _cell_name(plan, by_place[place], t)
        parts.append(_cell(by_place[place], cells.get(place), words, is_forming=place == forming, t=t))
    return f"<tr>{head}{''.join(parts)}</tr>"


def _cell(cell: Cell, made: CellShown | None, words: str, *, is_forming: bool, t: Texts) -> str:
    shape = f'style="aspect-ratio:{cell.request.width}/{cell.request.height}"'
    if made is None:
        kind = "zs-cell zs-cell-forming" if is_forming else "zs-cell zs-cell-empty"
        name = escape(t("cell_forming" if is_forming else "cell_missing", words=words))
        wait = '<span class="zs-wait" aria-hidden="true"></span>' if is_forming else ""
        return f'<td><div class="{kind}" {shape} role="img" aria-label="{name}">{wait}</div></td>'
    name = escape(words)
    return (
        f'<td><button type="button" class="zs-cell" {shape} data-pick="{escape(made.image.id)}" title="{name}"'
        f' aria-label="{name}"><img alt="" src="{made.picture}"></button></td>'
    )


def _cell_name(plan: GridPlan, cell: Cell, t: Texts) -> str:
    if plan.kind == "neighbourhood":
        middle = plan.columns // 2
        if (cell.column, cell.row) == (middle, middle):
            return t("cell_middle")
        last = cell.request.variations[-1]
        return t("cell_variation", seed=last.seed, strength=f"{last.strength:g}")
    named: Sequence[tuple[Axis | None, int]] = ((plan.x, cell.column), (plan.y, cell.row))
    return " · ".join(
        f"{present.field_name(axis.field, t)} {axis.values[place]}" for axis, place in named if axis is not None
    )


def _label(value: str) -> str:
    return f'<span title="{escape(value)}">{escape(value)}</span>'


def _doing(job: JobView, t: Texts) -> str:
    words = say(job.note, t.lang, ahead=job.ahead)
    if job.note == "note.denoising":
        return f"{words} {job.done:g}/{job.total:g}"
    return words


def _share(job: JobView | None) -> float:
    """Of the cell that is being made."""
    if job is None or job.finished or job.note != "note.denoising" or not job.total:
        return 0.0
    return min(1.0, job.done / job.total)


def _forming_style(preview: Preview | None) -> str:
    """The preview in its cell by a style of its own: the table is not sent again at every step."""
    if preview is None:
        return ""
    return f"<style>.zs-cell-forming{{background-image:url({present.preview_uri(preview)})}}</style>"
