"""Grids at the border to the page and the API: who may see which, and one that is made, moment by moment."""

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from zimage_studio.errors import UserError
from zimage_studio.services.generation import JobView
from zimage_studio.services.grids import SHOWN_ID_CHARS, Grid, GridView
from zimage_studio.services.studio import Studio

FRAME_S = 0.15
NEWEST = 30
MAX_PAGES = 1000
_VISITOR = re.compile(r"[0-9a-f]{32}")

VISITOR_JS = """() => { try {
  let name = localStorage.getItem("zs-visitor");
  if (!/^[0-9a-f]{32}$/.test(name ?? "")) {
    name = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    localStorage.setItem("zs-visitor", name);
  }
  return name;
} catch { return ""; } }"""
"""A random name that a browser keeps for itself, so that whoever reloads the page still owns the grid being made."""


@dataclass(frozen=True, slots=True)
class GridMoment:
    """One moment of a grid. `job` is the cell being made; `fresh` says that cells have changed since the last one."""

    view: GridView
    job: JobView | None
    seconds_left: float | None
    fresh: bool


class Turns:
    """What each page shows now: whoever took the last turn. Those before see it and end."""

    def __init__(self) -> None:
        self._newest: OrderedDict[str, object] = OrderedDict()

    def take(self, session: str) -> Callable[[], bool]:
        """Be the newest of `session`; answers whether that still holds."""
        mine = object()
        self._newest[session] = mine
        self._newest.move_to_end(session)
        while len(self._newest) > MAX_PAGES:
            self._newest.popitem(last=False)
        return lambda: self._newest.get(session) is mine


def owner(visitor: object, session: str) -> str:
    """Whose grids these are: a browser that has told its secret name, else this one page."""
    return f"visitor {visitor}" if isinstance(visitor, str) and _VISITOR.fullmatch(visitor) else session


def visible_grid(studio: Studio, grid_id: str, session: str) -> Grid:
    """The grid, when `session` may see it: all may see, and resume, what has ended, as all may see its images.

    One that is being made belongs to who started it. Raises UserError, with the same words for a foreign one and none.
    """
    grid = studio.grids.get(grid_id)
    if not grid.view.finished and grid.session != session:
        raise UserError("unknown_grid", value=grid_id[:SHOWN_ID_CHARS])
    return grid


def visible_grids(studio: Studio, session: str) -> tuple[Grid, ...]:
    """The newest of them."""
    return tuple(g for g in studio.grids.list(NEWEST) if g.view.finished or g.session == session)


def grid_moments(grid: Grid, current: Callable[[], bool]) -> Iterator[GridMoment]:
    """The grid from now on, several moments a second, until its end or until something else is `current`."""
    seen: tuple[int, int] | None = None
    cells = -1
    last_change = time.monotonic()
    while current():
        view = grid.view
        job = view.job.view if view.job is not None else None
        now = (view.version, -1 if job is None else job.version)
        if seen is None or now[0] != seen[0]:
            last_change = time.monotonic()
        if now != seen:
            left = view.seconds_left
            running = None if left is None else max(0.0, left - (time.monotonic() - last_change))
            yield GridMoment(view, job, running, fresh=view.version != cells)
            seen, cells = now, view.version
        if view.finished:
            return
        time.sleep(FRAME_S)
