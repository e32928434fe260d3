"""A grid of images: what is varied, and the request behind each cell."""

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from typing import ClassVar, Literal, Self

from pydantic import ConfigDict

from zimage_studio.errors import InvalidInputError
from zimage_studio.records.checks import real, whole
from zimage_studio.records.memory import PRESETS, MemoryProfile, parse_profile
from zimage_studio.records.request import (
    MAX_SEED,
    STRICT,
    GenerationRequest,
    ModelDefaults,
    Variation,
    parse_batch,
    parse_seed,
)
from zimage_studio.records.versioned import WrongSchemaError, read_versioned

SCHEMA = 1
MAX_AXIS = 32
MAX_CELLS = 256
MAX_SIDE = 7
Kind = Literal["xy", "neighbourhood"]

Values = dict[str, object]


@dataclass(frozen=True, slots=True)
class Axis:
    """One field and the values it takes, as a person wrote them."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    field: str
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One image to make: its column and row (from 0), and the whole request for `model`.

    `profile` holds the switches of a memory profile that are not as in `exact`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    column: int
    row: int
    request: GenerationRequest
    model: str
    profile: Mapping[str, bool | int | float | str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class GridPlan:
    """Every cell of a grid, before any of them is made.

    `x` labels the columns and `y` the rows (None: one row). Of a neighbourhood both are None; its cell in the middle
    is the image it began with. `parent` is the pixel hash of that image.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    kind: Kind
    cells: tuple[Cell, ...]
    x: Axis | None = None
    y: Axis | None = None
    parent: str | None = None

    @property
    def columns(self) -> int:
        """How many."""
        return max(cell.column for cell in self.cells) + 1

    @property
    def rows(self) -> int:
        """How many."""
        return max(cell.row for cell in self.cells) + 1

    def to_json(self) -> str:
        """One line of JSON with the schema number."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, source: str) -> Self:
        """Read what `to_json` wrote. Raises ValueError on another schema, unknown keys or wrong values."""
        try:
            return read_versioned(cls, source, SCHEMA)
        except WrongSchemaError as error:
            raise ValueError(f"The grid has schema {error.found!r}; this version reads {SCHEMA}.") from error
        except (InvalidInputError, ValueError) as error:
            raise ValueError(f"The grid cannot be read: {error}") from error


def parse_axis(field: object, values: object) -> Axis:
    """An axis from a field name and its values: a list, or text with commas (CSV: a value with a comma in quotes).

    Raises InvalidInputError naming what can be varied.
    """
    if not isinstance(field, str) or field not in FIELDS:
        raise InvalidInputError("bad_axis", field="axis", value=repr(field), known=", ".join(FIELDS))
    if isinstance(values, str):
        texts = [text.strip() for text in next(csv.reader(io.StringIO(values), skipinitialspace=True), [])]
    elif isinstance(values, Sequence):
        texts = [str(value).strip() for value in values]
    else:
        raise InvalidInputError("empty_axis", field=field)
    if not any(texts):
        raise InvalidInputError("empty_axis", field=field)
    if len(texts) > MAX_AXIS:
        raise InvalidInputError("axis_too_long", field=field, count=len(texts), high=MAX_AXIS)
    for place, text in enumerate(texts):
        if text in texts[:place]:
            raise InvalidInputError("axis_twice", field=field, value=text)
    return Axis(field, tuple(texts))


def plan_grid(
    base: GenerationRequest, model: str, x: Axis, y: Axis | None, *, defaults: ModelDefaults,
    memory: Mapping[str, object] | None = None, parent: str | None = None,
) -> GridPlan:  # fmt: skip
    """A cell for each value of `x` (and `y`), everything else as in `base`.

    `memory` are the switches that the image was made under, as its recipe records them (None: `exact`).
    Raises InvalidInputError when a value is out of bounds, or a prompt does not contain what should be replaced.
    """
    if y is not None and y.field == x.field:
        raise InvalidInputError("axes_equal", field=x.field)
    count = len(x.values) * (len(y.values) if y else 1)
    if count > MAX_CELLS:
        raise InvalidInputError("grid_too_large", field="axis", count=count, high=MAX_CELLS)
    own = parse_profile(memory or {})
    opened = _opened(base, {axis.field for axis in (x, y) if axis is not None})
    cells = []
    for row, y_value in enumerate(y.values if y else ("",)):
        for column, x_value in enumerate(x.values):
            values = {**opened, "model": model, "profile": own}
            for axis, value in ((x, x_value), (y, y_value)):
                if axis is not None:
                    values |= FIELDS[axis.field](values, value, axis)
            cell_model, profile = str(values.pop("model")), values.pop("profile")
            request = parse_batch(values, defaults).first
            cells.append(Cell(column=column, row=row, request=request, model=cell_model, profile=_switches(profile)))
    return GridPlan(kind="xy", cells=tuple(cells), x=x, y=y, parent=parent)


def plan_neighbourhood(
    base: GenerationRequest, model: str, *, strength: object, side: object = 3, seed: object = None,
    memory: Mapping[str, object] | None = None, parent: str | None = None,
) -> GridPlan:  # fmt: skip
    """`side` x `side` cells: `base` in the middle, around it variations of `strength` with seeds counting from `seed`.

    An empty seed is drawn. `side` is 3, 5 or 7.
    """
    amount = real("variation_strength", strength, 0.01, 1.0)
    cells_a_side = whole("side", side, 3, MAX_SIDE)
    if cells_a_side % 2 == 0:
        raise InvalidInputError("even_side", field="side", value=cells_a_side)
    profile = _switches(parse_profile(memory or {}))
    seeds = _other_seeds(parse_seed(seed, "variation_seed"), base)
    cells = []
    for row in range(cells_a_side):
        for column in range(cells_a_side):
            request = base
            if (row, column) != (cells_a_side // 2, cells_a_side // 2):
                link = Variation(seed=next(seeds), strength=amount)
                request = replace(base, variations=(*base.variations, link))
            cells.append(Cell(column=column, row=row, request=request, model=model, profile=profile))
    return GridPlan(kind="neighbourhood", cells=tuple(cells), parent=parent)


def _switches(profile: object) -> dict[str, bool | int | float | str]:
    if not isinstance(profile, MemoryProfile):
        raise TypeError(f"{profile!r} is no memory profile")
    return {name: value for name, value in profile.changed.items() if isinstance(value, bool | int | float | str)}


def _other_seeds(first: int, base: GenerationRequest) -> Iterator[int]:
    """Counting up from `first`; the seeds of `base` are left out, because a turn towards itself changes nothing."""
    used = {base.seed, *(link.seed for link in base.variations)}
    return (seed % (MAX_SEED + 1) for seed in itertools.count(first) if seed % (MAX_SEED + 1) not in used)


def _opened(base: GenerationRequest, varied: Set[str]) -> Values:
    """The values of `base`, the last variation as two fields of its own, so that an axis can set either.

    Where only its strength is `varied` and there is none yet, one seed is drawn here, or every cell would draw its own.
    """
    values: Values = {**base.to_dict(), "variations": base.variations[:-1]}
    if base.variations:
        last = base.variations[-1]
        values |= {"variation_seed": last.seed, "variation_strength": last.strength}
    elif "variation_strength" in varied and "variation_seed" not in varied:
        values["variation_seed"] = parse_seed(None, "variation_seed")
    return values


def _plain(name: str) -> Callable[[Values, str, Axis], Values]:
    return lambda _values, text, _axis: {name: text}


def _size(_values: Values, text: str, _axis: Axis) -> Values:
    width, cross, height = text.lower().replace("×", "x").partition("x")
    if not cross:
        raise InvalidInputError("bad_size", field="size", value=text)
    return {"width": width.strip(), "height": height.strip()}


def _prompt(values: Values, text: str, axis: Axis) -> Values:
    """Search and replace, as in A1111: the first value is what is looked for."""
    searched, prompt = axis.values[0], str(values["prompt"])
    if searched not in prompt:
        raise InvalidInputError("not_in_prompt", field="prompt", value=searched)
    return {"prompt": prompt.replace(searched, text)}


def _profile(_values: Values, text: str, _axis: Axis) -> Values:
    if text not in PRESETS:
        raise InvalidInputError("bad_choice", field="profile", value=text, known=", ".join(PRESETS))
    return {"profile": PRESETS[text]}


FIELDS: Mapping[str, Callable[[Values, str, Axis], Values]] = {
    "seed": _plain("seed"),
    "steps": _plain("steps"),
    "guidance": _plain("guidance"),
    "size": _size,
    "prompt": _prompt,
    "negative_prompt": _plain("negative_prompt"),
    "shift": _plain("shift"),
    "variation_seed": _plain("variation_seed"),
    "variation_strength": _plain("variation_strength"),
    "variety": _plain("variety"),
    "strength": _plain("strength"),
    "model": _plain("model"),
    "profile": _profile,
}
"""What an axis can vary, and how a value changes a request."""
