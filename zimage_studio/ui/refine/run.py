"""What the Refine tab sets going: an image, variations, a grid; watched until something else is shown."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from zimage_studio.errors import BusyError
from zimage_studio.records.grid import GridPlan
from zimage_studio.records.memory import parse_profile
from zimage_studio.services.generation import GenerationJob
from zimage_studio.services.grids import Grid
from zimage_studio.services.studio import Studio
from zimage_studio.ui import forms
from zimage_studio.ui.doors import Update
from zimage_studio.ui.refine.axes_form import axes
from zimage_studio.ui.refine.base import Base
from zimage_studio.ui.refine.form import values_of
from zimage_studio.ui.refine.grid_requests import Begin, around_plan, xy_plan
from zimage_studio.ui.refine.grid_view import listed
from zimage_studio.ui.refine.grid_watch import Turns, visible_grid, visible_grids
from zimage_studio.ui.refine.stage import RefineStage
from zimage_studio.ui.refine.widgets import VARIATIONS, Asked, Held, Shown
from zimage_studio.ui.texts import Texts
from zimage_studio.ui.watching import moments, raise_failure


class RefineRuns:
    """Starts, and yields what the page shows of it. `page` is the session of the page, `who` owns its grids."""

    def __init__(self, studio: Studio, asked: Asked, out: Shown, held: Held, stage: RefineStage, t: Texts) -> None:
        self._studio = studio
        self._asked = asked
        self._out = out
        self._held = held
        self._stage = stage
        self._t = t
        self._turns = Turns()

    @property
    def outputs(self) -> list[Any]:
        """Everything that a run changes."""
        return [*self._out.outputs, self._asked.stop, self._asked.earlier, *self.marks]

    @property
    def marks(self) -> list[Any]:
        """What the page remembers of it."""
        return [self._held.grid, self._held.result]

    def turn(self, page: str) -> Callable[[], bool]:
        """From now on the page shows something else."""
        return self._turns.take(page)

    def one(self, form: Mapping[str, object], base: Base | None, page: str) -> Iterator[Update]:
        """Make one image of what the form holds. Raises UserError."""
        job = self._studio.generation.submit(
            values_of(form, base), model=_model(form), session=page, parent=None if base is None else base.sha256,
            profile=None if base is None or base.memory is None else parse_profile(base.memory),
        )  # fmt: skip
        yield from self._watch(job, base, self.turn(page))

    def plan(
        self, mode: object, form: Mapping[str, object], base: Base | None, around: Sequence[object],
        axis_values: Sequence[object],
    ) -> GridPlan:  # fmt: skip
        """The grid that is asked for; `around` is how far and how many a side. Raises UserError."""
        begin = Begin(
            values_of(form, base), _model(form), None if base is None else base.memory,
            None if base is None else base.sha256,
        )  # fmt: skip
        if mode == VARIATIONS:
            return around_plan(self._studio, begin, strength=around[0], side=around[1])
        return xy_plan(self._studio, begin, *axes(*axis_values))

    def start(self, plan: GridPlan, page: str, who: str) -> Iterator[Update]:
        """Make a grid; where one of the same person is being made, show that one and say so. Raises UserError."""
        try:
            grid = self._studio.grids.start(plan, session=who)
        except BusyError as error:
            grid = self._running(error, who)
        yield from self.follow(grid, page, who)

    def resume(self, grid_id: str, page: str, who: str) -> Iterator[Update]:
        """Make what is missing. Raises UserError."""
        visible_grid(self._studio, grid_id, who)
        try:
            grid = self._studio.grids.resume(grid_id, session=who)
        except BusyError as error:
            grid = self._running(error, who)
        yield from self.follow(grid, page, who)

    def follow(self, grid: Grid, page: str, who: str, arrived: Update | None = None) -> Iterator[Update]:
        """Show the grid until its end; first of all `arrived`, in one with it."""
        first: Update = {
            **(arrived or {}),
            self._held.grid: grid.id,
            self._held.result: "",
            self._asked.stop: gr.update(interactive=not grid.view.finished),
            self._asked.earlier: self.earlier(who, grid.id),
        }
        for update, finished in self._stage.grid(grid, self.turn(page)):
            if finished:
                update |= {
                    self._asked.stop: gr.update(interactive=False),
                    self._asked.earlier: self.earlier(who, grid.id),
                }
            yield {**first, **update}
            first = {}

    def stop(self, page: str, who: str) -> None:
        """Stop everything of this page, and the grid of its browser."""
        self._studio.generation.stop(page)
        for grid in visible_grids(self._studio, who):
            if grid.session == who:
                grid.stop()

    def earlier(self, who: str, chosen: str | None = None) -> Any:
        """The list of grids as it is now."""
        found = visible_grids(self._studio, who)
        choices = [(listed(grid, self._t), grid.id) for grid in found]
        value = chosen if chosen in {grid.id for grid in found} else None
        return gr.update(choices=choices, value=value, visible=bool(choices))

    def _running(self, error: BusyError, who: str) -> Grid:
        running = next((grid for grid in visible_grids(self._studio, who) if not grid.view.finished), None)
        if error.key != "grid_running" or running is None:
            raise error
        gr.Info(error.text(self._t.lang), title="", duration=6)
        return running

    def _watch(self, job: GenerationJob, base: Base | None, current: Callable[[], bool]) -> Iterator[Update]:
        out, stop = self._out, self._asked.stop
        first: Update = {**out.cleared(), self._held.grid: "", self._held.result: "", stop: gr.update(interactive=True)}
        for moment in moments(job, self._t):
            if not current():
                return
            view, end = moment.view, gr.update(interactive=not moment.view.finished)
            if view.images:
                opened = {**first, **self._stage.opened(view.images[0], base), self._held.result: view.images[0].id}
                yield {**opened, out.stage: gr.update(visible=False), stop: end}
            else:
                yield {**first, out.stage: gr.update(value=moment.html, visible=True), stop: end}
            first = {}
            raise_failure(view, self._t)


def _model(form: Mapping[str, object]) -> str:
    return forms.text_or_refuse("model", form["model"])
