"""What a replay found: the same pixels, or what was different, and by how much."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from zimage_studio.messages import Lang, say


@dataclass(frozen=True, slots=True)
class Difference:
    """A recorded value that is not what it was. `field` is a dotted name of the recipe."""

    field: str
    then: object
    now: object


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The end of a replay.

    `compared` is no verdict of identity: nothing recorded says which pixels came out, as with other programs' files.
    `reason` is a message key, `details` its values. `changed` names the fields of the request, or `model`, that a
    person set to something else: then it is a variation, no failed replay. `edited` says that the picture handed in
    does not hold the pixels that its own recipe recorded.
    `psnr_db` (peak 255) is None when the pixels are equal (it would be infinite) or cannot be compared; `ssim` is in
    -1..1; `max_difference` is the largest difference of one channel of one pixel, 0..255. `path` is the new image.
    """

    verdict: Literal["identical", "differs", "refused", "compared"]
    reason: str
    details: Mapping[str, object] = field(default_factory=dict)
    differences: tuple[Difference, ...] = ()
    changed: tuple[str, ...] = ()
    edited: bool = False
    psnr_db: float | None = None
    ssim: float | None = None
    max_difference: int | None = None
    path: str | None = None

    def sentence(self, lang: Lang) -> str:
        """The reason in words."""
        return say(self.reason, lang, **self.details)

    def to_dict(self, lang: Lang = "en") -> dict[str, object]:
        """As the command line and the API print it, with the reason in words."""
        data = asdict(self)
        del data["details"]
        return {**data, "reason": self.sentence(lang)}
