"""What can be switched off in a transformer, and how much its output changes when it is: the sensitivity map."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal, Self

from pydantic import ConfigDict

from zimage_studio.errors import InvalidInputError, UserError
from zimage_studio.records.checks import whole
from zimage_studio.records.plan import STACKS, Stack
from zimage_studio.records.request import STRICT
from zimage_studio.records.versioned import read_versioned

SCHEMA = 2
"""1 said the change of the velocity where it now says that of the pictures."""
MAX_MAP_BYTES = 20_000_000
MAX_INDEX = 9999

KnockPart = Literal["block", "attention", "feed_forward", "head"]
PARTS: tuple[KnockPart, ...] = ("block", "attention", "feed_forward", "head")
MAX_KNOCKS = 4096
_NAMED = re.compile(r"([a-z_]{1,20})\.(\d{1,4})(?:\.([a-z_]{1,20})(?:\.(\d{1,4}))?)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Knock:
    """One thing to switch off: a block, one of its halves, or a head (`head` is for that part alone)."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    stack: Stack
    index: int
    part: KnockPart = "block"
    head: int | None = None

    def __post_init__(self) -> None:
        if self.stack not in STACKS:
            raise InvalidInputError("bad_choice", field="stack", value=repr(self.stack), known=", ".join(STACKS))
        if self.part not in PARTS:
            raise InvalidInputError("bad_choice", field="part", value=repr(self.part), known=", ".join(PARTS))
        object.__setattr__(self, "index", whole("index", self.index, 0, MAX_INDEX))
        if self.part == "head":
            object.__setattr__(self, "head", whole("head", self.head, 0, MAX_INDEX))
        elif self.head is not None:
            raise InvalidInputError("knock_head", field="head", value=self.part)

    def __str__(self) -> str:
        tail = "" if self.head is None else f".{self.head}"
        return f"{self.stack}.{self.index}.{self.part}{tail}"


def knock_named(name: object) -> Knock:
    """The knock that `str` calls so; `layers.2` alone is the block. Raises InvalidInputError for anything else."""
    found = _NAMED.fullmatch(name) if isinstance(name, str) else None
    if found is None:
        raise InvalidInputError("knock_name", field="part", value=str(name)[:40])
    stack, index, part, head = found.groups()
    return Knock(stack, int(index), part or "block", None if head is None else int(head))  # type: ignore[arg-type]


def parse_knocks(given: object) -> tuple[Knock, ...]:
    """Each one once, from a list of names or of objects as `parse_knock` takes them.

    Raises UserError (no_knocks) and InvalidInputError for what is no list, too many, or no knock.
    """
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise InvalidInputError("recover_bad_list", field="parts", value=repr(given)[:40])
    if len(given) > MAX_KNOCKS:
        raise InvalidInputError("recover_too_many", field="parts", count=len(given), high=MAX_KNOCKS)
    knocks = (parse_knock(one) if isinstance(one, Mapping) else knock_named(one) for one in given)
    found = tuple(dict.fromkeys(knocks))
    if not found:
        raise UserError("no_knocks")
    return found


def parse_knock(values: Mapping[str, object]) -> Knock:
    """A knock as a door received it. Raises InvalidInputError for a missing or unknown key and for every bad value."""
    known = ("stack", "index", "part", "head")
    unknown = sorted(str(key) for key in values if key not in known)
    if unknown:
        raise InvalidInputError("bad_choices", field="knocks", value=unknown, known=", ".join(known))
    return Knock(
        values.get("stack"),  # type: ignore[arg-type]  # looked at by Knock itself
        values.get("index"),  # type: ignore[arg-type]
        values.get("part", "block"),  # type: ignore[arg-type]
        values.get("head"),  # type: ignore[arg-type]
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What switching off `knock` changes.

    `change` is |x' - x| / |x| of the finished latents over all pictures (0: nothing), drawn without it from first step
    to last. `by_step` is |v' - v| / |v| of the velocity at each step of the sampler on the whole model's own way, first
    step first, empty when it was not asked for. `psnr_db` is between the pictures drawn with
    and without, None when not asked for or when they are equal.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    knock: Knock
    change: float
    by_step: tuple[float, ...] = ()
    psnr_db: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SensitivityMap:
    """The cells of one model. `times` are those of the steps, from 0 (noise) to 1 (image)."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    width: int
    height: int
    times: tuple[float, ...]
    cells: tuple[Cell, ...]

    def cell(self, stack: Stack, index: int, part: KnockPart, head: int | None = None) -> Cell:
        """The cell of one knock. Raises KeyError when it was not measured."""
        wanted = Knock(stack, index, part, head)
        for cell in self.cells:
            if cell.knock == wanted:
                return cell
        raise KeyError(str(wanted))

    def to_json(self) -> str:
        """JSON with the schema number, one line."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, source: str) -> Self:
        """Read what `to_json` wrote. Raises InvalidInputError (bad_map) on anything else."""
        try:
            return read_versioned(cls, source, SCHEMA, max_chars=MAX_MAP_BYTES)
        except ValueError as error:
            raise InvalidInputError("bad_map", field="sensitivity", why=error) from error
