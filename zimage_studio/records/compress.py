"""What a person asks of a cut: which kinds, by which criterion, down to where. Refused here when it cannot be meant."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from zimage_studio.errors import InvalidInputError
from zimage_studio.records.checks import flag, refuse_unknown, text, whole
from zimage_studio.records.plan import CRITERIA, KINDS, Criterion, Kind, TargetName
from zimage_studio.records.request import MAX_SEED

Allocation = Literal["auto", "even", "ranked"]

ALLOCATIONS: tuple[Allocation, ...] = ("auto", "even", "ranked")
TARGETS: tuple[TargetName, ...] = ("ratio", "gigabytes", "speedup")
JUDGE_DIM: tuple[Criterion, ...] = ("random", "l1", "group_l2", "activation")
"""Criteria that score the channels of the residual stream."""
BOUNDS: dict[TargetName, tuple[float, float]] = {
    "ratio": (0.0, 1.0),
    "gigabytes": (0.0, 1000.0),
    "speedup": (1.0, 1000.0),
}
"""A target lies between these two; neither is one itself."""
MAX_PROMPTS = 256
MAX_MODEL_CHARS = 4096
MAX_NOTE_CHARS = 500
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneRequest:
    """A cut that a person asks for.

    Of `ratio`, `gigabytes` and `speedup` exactly one is given. `ratio` (0 < r < 1) is the share to remove of the
    parameters that the chosen kinds may touch: feed-forward weights for `ffn`, q/k/v/out for `heads`, both for both,
    whole blocks as soon as `depth` is among them, the whole transformer for `dim`; of the blocks that are not
    protected. `gigabytes` (10^9 bytes, > 0) is what the whole model may weigh afterwards at most. `speedup` (> 1) is
    the ratio of FLOPs that is reached at least. `protect_ends` leaves the refiners and the first and the last main
    block alone. `allocation` says whether blocks are cut evenly or by their scores against each other; "auto" ranks
    where scores of different blocks can be compared. `prompts` is how many the criterion may measure with.
    """

    model: str
    kinds: tuple[Kind, ...]
    criterion: Criterion = "l1"
    ratio: float | None = None
    gigabytes: float | None = None
    speedup: float | None = None
    seed: int = 0
    prompts: int = 8
    protect_ends: bool = True
    allocation: Allocation = "auto"
    note: str = ""

    def __post_init__(self) -> None:
        if not self.kinds or any(kind not in KINDS for kind in self.kinds) or len(set(self.kinds)) != len(self.kinds):
            raise InvalidInputError("bad_choices", field="kinds", value=list(self.kinds), known=", ".join(KINDS))
        if "dim" in self.kinds and len(self.kinds) > 1:
            raise InvalidInputError("dim_alone", field="kinds", value=", ".join(self.kinds))
        _one_of("criterion", self.criterion, CRITERIA)
        _one_of("allocation", self.allocation, ALLOCATIONS)
        require_suited(self.criterion, self.kinds)
        if sum(getattr(self, name) is not None for name in TARGETS) != 1:
            raise InvalidInputError("one_target", field="target", known=", ".join(TARGETS))
        for name, value in self.target.items():
            _require_between(name, value)

    @property
    def target(self) -> dict[TargetName, float]:
        """The one target that is given."""
        return {name: float(value) for name in TARGETS if (value := getattr(self, name)) is not None}


def parse_prune(values: Mapping[str, object]) -> PruneRequest:
    """A request from what a door received; `kinds` is a list or text with commas, an empty value stands for none.

    Raises InvalidInputError naming the field, also for one that is not known.
    """
    refuse_unknown(values, PruneRequest.__dataclass_fields__)
    given = {name: value for name, value in values.items() if value is not None and value != ""}
    numbers = {name: _amount(name, given[name]) for name in TARGETS if name in given}
    return PruneRequest(
        model=text("model", given.get("model"), MAX_MODEL_CHARS),
        kinds=_kinds(given.get("kinds")),
        criterion=_one_of("criterion", given.get("criterion", "l1"), CRITERIA),  # type: ignore[arg-type]
        seed=whole("seed", given.get("seed", 0), 0, MAX_SEED),
        prompts=whole("prompts", given.get("prompts", 8), 1, MAX_PROMPTS),
        protect_ends=flag("protect_ends", given.get("protect_ends", True)),
        allocation=_one_of("allocation", given.get("allocation", "auto"), ALLOCATIONS),  # type: ignore[arg-type]
        note=text("note", given.get("note", ""), MAX_NOTE_CHARS),
        **numbers,
    )


def require_suited(criterion: Criterion, kinds: Sequence[Kind]) -> None:
    """Raises InvalidInputError (criterion_unsuited) for a criterion that says nothing about what is to be cut."""
    if "dim" in kinds and criterion not in JUDGE_DIM:
        known = ", ".join(JUDGE_DIM)
        raise InvalidInputError("criterion_unsuited", field="criterion", value=criterion, kind="dim", known=known)
    if criterion == "block_influence" and "depth" not in kinds:
        others = ", ".join(name for name in CRITERIA if name != criterion)
        raise InvalidInputError(
            "criterion_unsuited", field="criterion", value=criterion, kind=", ".join(kinds), known=others
        )


def artifact_name(value: object) -> str:
    """The name of a model to be written: 1 to 64 of A-Z a-z 0-9 . _ -, no dot in front, no two dots together."""
    if not isinstance(value, str) or not NAME.fullmatch(value) or ".." in value:
        raise InvalidInputError("bad_name", field="name", value=str(value)[:80])
    return value


def _kinds(value: object) -> tuple[Kind, ...]:
    parts: Sequence[object]
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
    elif isinstance(value, Sequence):
        parts = value
    else:
        parts = ()
    if not parts or any(part not in KINDS for part in parts):
        raise InvalidInputError("bad_choices", field="kinds", value=value, known=", ".join(KINDS))
    return tuple(kind for kind in KINDS if kind in parts)


def _one_of(field: str, value: object, known: Sequence[str]) -> str:
    if value not in known:
        raise InvalidInputError("bad_choice", field=field, value=repr(value), known=", ".join(known))
    return str(value)


def _amount(name: TargetName, value: object) -> float:
    """A target as a number; what is none is refused with the same bounds as a number outside them."""
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    _require_between(name, number, value)
    return number


def _require_between(name: TargetName, number: float, said: object = None) -> None:
    """Strictly between the bounds; NaN is not. `said` is what a person wrote."""
    low, high = BOUNDS[name]
    if not low < number < high:
        shown = f"{number:g}" if said is None or not math.isnan(number) else str(said)[:80]
        raise InvalidInputError(f"not_between_{name}", field=name, value=shown, low=f"{low:g}", high=f"{high:g}")
