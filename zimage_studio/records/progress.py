"""The one call by which long work reports and is stopped."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Preview:
    """A small picture of what is forming: RGB bytes, row by row, 3 bytes a pixel."""

    width: int
    height: int
    rgb: bytes


class Progress(Protocol):
    """Called after each unit of work. Raise `errors.Cancelled` from it to stop the work there.

    `note` is a message key (see messages/), so that each door says it in its own language.
    """

    def __call__(self, done: float, total: float, note: str, /, preview: Preview | None = None) -> object: ...


def silent(done: float, total: float, note: str, /, preview: Preview | None = None) -> None:
    """A progress that nobody listens to."""
