"""What the right side of the Refine tab shows: a base, an image beside it, a grid that is made or was."""

from collections.abc import Callable, Iterator, Mapping

import gradio as gr

from zimage_studio.errors import UserError
from zimage_studio.services.grids import Grid
from zimage_studio.services.images import StoredImage
from zimage_studio.services.studio import Studio
from zimage_studio.ui import present
from zimage_studio.ui.compare import fitted_to
from zimage_studio.ui.doors import Update, shown
from zimage_studio.ui.family import served
from zimage_studio.ui.refine import grid_view
from zimage_studio.ui.refine import view as refine_view
from zimage_studio.ui.refine.base import Base, Bases, changes, shown_values
from zimage_studio.ui.refine.form import changes_html
from zimage_studio.ui.refine.grid_view import CellShown, Place
from zimage_studio.ui.refine.grid_watch import grid_moments
from zimage_studio.ui.refine.widgets import Shown
from zimage_studio.ui.replay import view as replay_view
from zimage_studio.ui.texts import Texts
from zimage_studio.ui.trail import Step


class RefineStage:
    """Makes the updates of the widgets of `Shown`."""

    def __init__(self, studio: Studio, out: Shown, bases: Bases, t: Texts) -> None:
        self._studio = studio
        self._out = out
        self._bases = bases
        self._t = t

    def card(self, base: Base, trail: list[Step], dropped: Mapping[str, Base]) -> Update:
        """The card of the base, with its family as it is now."""
        html = refine_view.card(base, self._way(trail, dropped), self._studio, self._t)
        return {self._out.card: gr.update(value=html, visible=True)}

    def base(self, base: Base, trail: list[Step], dropped: Mapping[str, Base]) -> Update:
        """The base alone: its card, and itself large."""
        out = self._out
        picture = gr.update(value=shown(self._bases.path(base)), alt_text=base.words, visible=True)
        return {**out.cleared(), **self.card(base, trail, dropped), out.picture: picture}

    def opened(self, image: StoredImage, base: Base | None, *, of_grid: bool = False) -> Update:
        """One image, over its base where their shapes allow it, and what was changed."""
        out, t = self._out, self._t
        path = shown(image.path)
        before = None
        if base is not None:
            drawn_over = image.recipe.request.source == base.sha256
            before = fitted_to(self._bases.path(base), image.path, drawn_over=drawn_over)
        update: Update = {
            **out.closed(),
            out.actions: gr.update(visible=True),
            out.enter: gr.update(visible=base is None or base.ref != image.id),
            out.download: gr.update(value=path),
            out.to_grid: gr.update(visible=of_grid),
            out.recipe: gr.update(value=replay_view.new_recipe(image, t), visible=True),
        }
        if base is not None:
            update[out.changes] = gr.update(value=_changed(base, image, t), visible=True)
        if before is not None:
            return {**update, **out.compare.show(before, path)}
        return {**update, out.picture: gr.update(value=path, alt_text=present.alt_text(image), visible=True)}

    def grid(self, grid: Grid, current: Callable[[], bool]) -> Iterator[tuple[Update, bool]]:
        """The grid, moment by moment until its end; each with whether this is it.

        Of moments in quick succession a browser may take in the first and the last only, so each shows all cells.
        """
        out, t = self._out, self._t
        cells: dict[Place, CellShown] = {}
        update: Update = out.cleared()
        table: Update = {}
        for moment in grid_moments(grid, current):
            view = moment.view
            line = grid_view.progress(view, moment.job, moment.seconds_left, t)
            update[out.progress] = gr.update(value=line, visible=True)
            if moment.fresh:
                self._add_cells(cells, view.images)
                forming = grid_view.forming_place(grid, view)
                table = {out.table: gr.update(value=grid_view.table(grid, cells, forming, t), visible=True)}
            if view.finished:
                update[out.grid_actions] = gr.update(visible=True)
                update[out.resume] = gr.update(visible=view.state != "done")
            yield {**update, **table}, view.finished
            update = {}

    def _add_cells(self, cells: dict[Place, CellShown], images: Mapping[Place, StoredImage]) -> None:
        for place, image in images.items():
            if place not in cells and image.path.exists():
                cells[place] = CellShown(image, served(self._studio.images.thumbnail(image)))

    def _way(self, trail: list[Step], dropped: Mapping[str, Base]) -> list[StoredImage | str | None]:
        found: list[StoredImage | str | None] = []
        for step in trail:
            try:
                base = self._bases.find(step.ref, dropped)
            except UserError:
                found.append(None)
            else:
                found.append(base.image or base.sha256)
        return found


def _changed(base: Base, image: StoredImage, t: Texts) -> str:
    recipe = image.recipe
    before = shown_values(base.values, base.model, base.sha256)
    after = shown_values(recipe.request.to_dict(), recipe.model.key, base.sha256)
    found = changes(before, after)
    if base.weights and base.weights != recipe.model.sha256:
        found["model"] = (f"{base.model} {base.weights[:8]}", f"{recipe.model.name} {recipe.model.sha256[:8]}")
    same = recipe.outcome.pixels_sha256 == base.sha256
    return refine_view.opened_note(changes_html(found, t), t, same=same)
