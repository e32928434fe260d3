"""What a replay found: the same pixels, or what was different, and by how much."""

from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Difference:
    """A recorded value that is not what it was. `field` is a dotted name of the recipe."""

    field: str
    then: object
    now: object


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The end of a replay.

    `psnr_db` (peak 255) is None when the pixels are equal (it would be infinite) or cannot be compared; `ssim` is in
    -1..1; `max_difference` is the largest difference of one channel of one pixel, 0..255. `path` is the new image.
    """

    verdict: Literal["identical", "differs", "refused"]
    reason: str
    differences: tuple[Difference, ...] = ()
    psnr_db: float | None = None
    ssim: float | None = None
    max_difference: int | None = None
    path: str | None = None

    def to_dict(self) -> dict[str, object]:
        """As the command line and the API print it."""
        return asdict(self)
