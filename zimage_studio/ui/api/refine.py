"""The part of the public API that makes grids and variations: started, watched, stopped and resumed by their id."""

from typing import Any

import gradio as gr

from zimage_studio.messages import Lang
from zimage_studio.records.grid import Axis, Cell, GridPlan, parse_axis
from zimage_studio.records.progress import silent
from zimage_studio.services.grids import Grid, GridView
from zimage_studio.services.images import StoredImage
from zimage_studio.services.studio import Studio
from zimage_studio.ui import forms
from zimage_studio.ui.doors import errors_as_answers, lang_of, session_of, shown_file
from zimage_studio.ui.refine.grid_requests import Begin, around_plan, xy_plan
from zimage_studio.ui.refine.grid_watch import visible_grid
from zimage_studio.ui.texts import Texts

FIRST_STRENGTH = 0.2


def refine_endpoints(studio: Studio) -> list[Any]:
    """To be added by `add_api`."""
    return [*_starting(studio), *_going_on(studio)]


def _starting(studio: Studio) -> list[Any]:
    def grid(
        request: gr.Request,
        x_field: str,
        x_values: str,
        y_field: str = "",
        y_values: str = "",
        id: str = "",
        overrides: dict[str, Any] | None = None,
        model: str = "",
    ) -> dict[str, Any]:
        """Start a grid: a column for each of `x_values`, a row for each of `y_values` (none: one row). Returns at once.

        All else is as in the image `id` of /history, with `overrides` (fields of /generate_image) on top, or in the
        `overrides` alone. Values are text with commas; a list is taken too. A field is one of seed, steps, guidance,
        size, prompt, negative_prompt, shift, variation_seed, variation_strength, variety, strength, model, profile.
        On a prompt axis the first value is looked for in the prompt, and the others take its place. `model` is a key
        of /models; empty: the weights of the image, else the default. Returns what /grid_status says.
        """
        lang = lang_of(request)
        with errors_as_answers(lang):
            x = parse_axis(x_field, x_values)
            y = None if y_field in ("", None) else parse_axis(y_field, y_values)
            plan = xy_plan(studio, _begin(studio, id, overrides, model), x, y)
            return _entry(studio.grids.start(plan, session=session_of(request)), lang)

    def variations(
        request: gr.Request,
        id: str = "",
        strength: float = FIRST_STRENGTH,
        side: int = 3,
        seed: str = "",
        overrides: dict[str, Any] | None = None,
        model: str = "",
    ) -> dict[str, Any]:
        """Start a grid of variations: the image `id` in the middle, around it its start noise turned by `strength`.

        `strength` goes from 0.01 (nearly the same) to 1 (another image), `side` is 3, 5 or 7, `seed` the first
        variation seed (text; empty draws one). `overrides` and `model` as in /grid. Returns what /grid_status says.
        """
        lang = lang_of(request)
        with errors_as_answers(lang):
            begin = _begin(studio, id, overrides, model)
            plan = around_plan(studio, begin, strength=strength, side=side, seed=seed)
            return _entry(studio.grids.start(plan, session=session_of(request)), lang)

    return [grid, variations]


def _going_on(studio: Studio) -> list[Any]:
    def grid_status(
        request: gr.Request, grid: str, sheet: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """How far a grid is: {"grid", "state", "done", "total", "seconds_left", "error", "kind", "x", "y", "cells"}.

        `state` is running, stopped, done or failed. Each cell has its column and row (from 0), its values x and y,
        and once it is made the id of its image, seed (text), pixels_sha256 and model. With `sheet` also a PNG of all
        cells with their labels.
        """
        lang = lang_of(request)
        with errors_as_answers(lang):
            found = _visible(studio, grid, request)
            wanted = sheet is True
            return _entry(found, lang), shown_file(studio.grids.sheet(found)) if wanted else None

    def stop_grid(request: gr.Request, grid: str) -> dict[str, Any]:
        """Stop a grid of this client at the next step. What is made stays. Returns what /grid_status says."""
        lang = lang_of(request)
        with errors_as_answers(lang):
            found = _visible(studio, grid, request)
            found.stop()
            return _entry(found, lang)

    def resume_grid(request: gr.Request, grid: str) -> dict[str, Any]:
        """Make the cells that are missing, also after a restart. Returns at once what /grid_status says."""
        lang = lang_of(request)
        with errors_as_answers(lang):
            found = _visible(studio, grid, request)
            return _entry(studio.grids.resume(found.id, session=session_of(request)), lang)

    return [grid_status, stop_grid, resume_grid]


def _begin(studio: Studio, image_id: object, overrides: object, model: object) -> Begin:
    """What the cells have in common. Raises UserError."""
    values = forms.overrides_or_refuse(overrides)
    key = forms.text_or_refuse("model", "" if model is None else model)
    known = forms.text_or_refuse("image", "" if image_id is None else image_id)
    if not known:
        return Begin(values, key or studio.settings.model)
    recipe = studio.images.get(known).recipe
    return Begin(
        {**recipe.request.to_dict(), **values}, key or studio.replay.model_of(recipe, silent).key,
        recipe.numerics.memory, recipe.outcome.pixels_sha256,
    )  # fmt: skip


def _visible(studio: Studio, grid_id: object, request: gr.Request) -> Grid:
    return visible_grid(studio, forms.text_or_refuse("grid", grid_id), session_of(request))


def _entry(grid: Grid, lang: Lang) -> dict[str, Any]:
    view, plan = grid.view, grid.plan
    return {
        "grid": grid.id,
        "state": view.state,
        "done": view.done,
        "total": view.total,
        "seconds_left": view.seconds_left,
        "error": _error(view, lang),
        "kind": plan.kind,
        "x": _axis(plan.x),
        "y": _axis(plan.y),
        "cells": [_cell(plan, cell, view.images.get((cell.column, cell.row))) for cell in plan.cells],
    }


def _error(view: GridView, lang: Lang) -> str:
    if view.error is not None:
        return view.error.text(lang)
    return Texts(lang)("stage_bug") if view.bug else ""


def _axis(axis: Axis | None) -> dict[str, Any] | None:
    return None if axis is None else {"field": axis.field, "values": list(axis.values)}


def _cell(plan: GridPlan, cell: Cell, image: StoredImage | None) -> dict[str, Any]:
    return {
        "column": cell.column,
        "row": cell.row,
        "x": plan.x.values[cell.column] if plan.x is not None else None,
        "y": plan.y.values[cell.row] if plan.y is not None else None,
        "id": None if image is None else image.id,
        "seed": str(cell.request.seed),
        "variations": [{"seed": str(link.seed), "strength": link.strength} for link in cell.request.variations],
        "pixels_sha256": None if image is None else image.recipe.outcome.pixels_sha256,
        "model": cell.model,
    }
