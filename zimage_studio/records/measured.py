"""One row of the table of measurements: which picture, under which profile, what it took."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Self

from zimage_studio.errors import UserError
from zimage_studio.records.memory import PHASES, MemoryProfile, SwitchState, parse_profile

NAMELESS = "custom"


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredRow:
    """A picture of `width`×`height` px under `profile`, measured on `device` (`cpu` or `cuda`).

    `phase_peak_bytes` maps `text`, `denoise`, `decode` to bytes; `seconds` is the wall time of the call, without
    loading. `psnr_db` is the distance to the picture under `exact`: None when the two are equal (`identical` is then
    True) and when there was none to compare with (None). Where the profile could not be run, `error` is a message key
    with its values, and the numbers are missing. `created` is ISO 8601 in UTC, `job` the run that it belongs to.
    """

    created: str
    job: str
    model: str
    device: str
    profile: MemoryProfile
    width: int
    height: int
    steps: int
    guidance: float
    phase_peak_bytes: Mapping[str, int] = field(default_factory=dict)
    seconds: float | None = None
    psnr_db: float | None = None
    identical: bool | None = None
    pixels_sha256: str = ""
    states: tuple[SwitchState, ...] = ()
    error: str = ""
    error_values: Mapping[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the profile is called."""
        return self.profile.name or NAMELESS

    @property
    def peak_bytes(self) -> int | None:
        """The highest peak of the phases."""
        return max(self.phase_peak_bytes.values(), default=None)

    @property
    def problem(self) -> UserError | None:
        """Why there are no numbers."""
        return UserError(self.error, **self.error_values) if self.error else None

    def to_dict(self) -> dict[str, object]:
        """As SQLite keeps it and the JSON export has it."""
        return {**asdict(self), "profile": {"name": self.profile.name, **self.profile.switches}}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """Read what `to_dict` gave."""
        values = dict(data)
        profile, states = values.pop("profile"), values.pop("states")
        if not isinstance(profile, dict) or not isinstance(states, list):
            raise TypeError("a row of measurements has a profile and states")
        return cls(
            profile=parse_profile(profile),
            states=tuple(SwitchState(**state) for state in states),
            **values,  # type: ignore[arg-type]
        )

    def public(self) -> dict[str, object]:
        """As the command line and the API print it."""
        return {
            "profile": self.name,
            "phase_peak_bytes": dict(self.phase_peak_bytes),
            "seconds": self.seconds,
            "psnr_db_to_exact": self.psnr_db,
            "identical": self.identical,
            "width": self.width,
            "height": self.height,
            "steps": self.steps,
            "model": self.model,
            "device": self.device,
            "created": self.created,
            "refused": [state.name for state in self.states if state.state == "refused"],
            "error": str(self.problem or ""),
        }

    def flat(self) -> dict[str, object]:
        """One line of the CSV export: a column for each phase, and the switches that are not as in `exact`."""
        peaks = {f"peak_bytes_{phase}": self.phase_peak_bytes.get(phase) for phase in PHASES}
        rest = {name: value for name, value in self.public().items() if name not in ("phase_peak_bytes", "error")}
        rest["refused"] = " ".join(state.name for state in self.states if state.state == "refused")
        switches = json.dumps(self.profile.changed, ensure_ascii=False)
        return {**rest, **peaks, "switches": switches, "pixels_sha256": self.pixels_sha256, "error": self.error}
