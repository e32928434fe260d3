"""Kept units as text: "0-3,7" for 0, 1, 2, 3 and 7; "" for all of them."""

import itertools
import re
from collections.abc import Iterable

from zimage_studio.errors import InvalidInputError

_RUN = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)


def ranges(units: Iterable[int], count: int) -> str:
    """The text for `units` out of `count`; "" when all are kept. Raises ValueError when they are not increasing."""
    kept = list(units)
    if any(later <= earlier for earlier, later in itertools.pairwise(kept)):
        raise ValueError("the units are not increasing")
    if kept == list(range(count)):
        return ""
    runs: list[list[int]] = []
    for unit in kept:
        if runs and unit == runs[-1][1] + 1:
            runs[-1][1] = unit
        else:
            runs.append([unit, unit])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def units(text: str, count: int, field: str = "kept") -> tuple[int, ...]:
    """The kept units of `count`, increasing. Raises InvalidInputError naming `field` for any other spelling."""
    if text == "":
        return tuple(range(count))
    kept: list[int] = []
    for run in text.split(","):
        match = _RUN.fullmatch(run)
        first = int(match[1]) if match else -1
        last = int(match[2] or match[1]) if match else -1
        if match is None or last < first or last >= count or (kept and first <= kept[-1]):
            raise InvalidInputError("bad_kept", field=field, value=run[:40], high=count - 1)
        kept.extend(range(first, last + 1))
    return tuple(kept)


def width(text: str, count: int, field: str = "kept") -> int:
    """How many units of `count` the text keeps. Raises InvalidInputError as `units` does."""
    return len(units(text, count, field))
