"""The way from image to image, as text that a browser keeps: refs, each with the grid shown at it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

MAX_STEPS = 64


@dataclass(frozen=True, slots=True)
class Step:
    """A base on the way: its ref, and the id of the grid that was shown when it was left (or empty)."""

    ref: str
    grid: str = ""


def read_trail(text: object) -> list[Step]:
    """The steps, oldest first; of anything but text, none."""
    words = text.split()[-MAX_STEPS:] if isinstance(text, str) else []
    return [Step(*word.split("@", 1)) for word in words]


def written(steps: Sequence[Step]) -> str:
    """As `read_trail` reads it."""
    return " ".join(f"{step.ref}@{step.grid}" if step.grid else step.ref for step in steps[-MAX_STEPS:])


def onward(steps: Sequence[Step], ref: str, grid: str = "") -> list[Step]:
    """The way after going to `ref` while `grid` is shown: back to where it was passed, else one step further."""
    for place, step in enumerate(steps):
        if step.ref == ref:
            return list(steps[: place + 1])
    if not steps:
        return [Step(ref)]
    return [*steps[:-1], replace(steps[-1], grid=grid or steps[-1].grid), Step(ref)]
