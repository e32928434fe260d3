"""Grids as they are asked for, by the page and by the API: checked whole before the first cell is made."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from zimage_studio.records.grid import Axis, GridPlan, plan_grid, plan_neighbourhood
from zimage_studio.records.request import GenerationRequest, Variation, parse_batch, parse_seed
from zimage_studio.services.studio import Studio


@dataclass(frozen=True, slots=True)
class Begin:
    """What the cells have in common: raw `values` of a request, a model, the switches of a memory profile, a parent.

    Without switches (None) the profile is the one in use now.
    """

    values: Mapping[str, object]
    model: str
    memory: Mapping[str, object] | None = None
    parent: str | None = None


def xy_plan(studio: Studio, begin: Begin, x: Axis, y: Axis | None) -> GridPlan:
    """A cell for each value of the axes. Raises UserError, also when a model is not here."""
    defaults = studio.models.get(begin.model).defaults
    request = _with_seed_of(begin.values, parse_batch(begin.values, defaults).first)
    memory = _memory(studio, begin)
    plan = plan_grid(request, begin.model, x, y, defaults=defaults, memory=memory, parent=begin.parent)
    return _checked(studio, plan)


def around_plan(studio: Studio, begin: Begin, *, strength: object, side: object, seed: object = None) -> GridPlan:
    """Variations around the image that `begin` makes. Raises UserError."""
    request = parse_batch(begin.values, studio.models.get(begin.model).defaults).first
    plan = plan_neighbourhood(
        request, begin.model, strength=strength, side=side, seed=seed, memory=_memory(studio, begin),
        parent=begin.parent,
    )  # fmt: skip
    return _checked(studio, plan)


def _memory(studio: Studio, begin: Begin) -> Mapping[str, object]:
    return studio.memory.profile.changed if begin.memory is None else begin.memory


def _with_seed_of(values: Mapping[str, object], request: GenerationRequest) -> GenerationRequest:
    """Keep a variation seed whose strength is 0: the axis that varies the strength turns towards it."""
    seed, strength = values.get("variation_seed"), values.get("variation_strength")
    if seed in (None, "") or strength not in (0, 0.0, "0"):
        return request
    link = Variation(seed=parse_seed(seed, "variation_seed"), strength=0.0)
    return replace(request, variations=(*request.variations, link))


def _checked(studio: Studio, plan: GridPlan) -> GridPlan:
    for model in {cell.model for cell in plan.cells}:
        studio.models.get(model)
    for source in {cell.request.source for cell in plan.cells} - {None}:
        studio.sources.path(str(source))
    return plan
