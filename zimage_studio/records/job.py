"""A compression job as the table, the page, the API and the command line know it."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Literal, Self, get_args

from zimage_studio.errors import UserError
from zimage_studio.records.strict_json import loads_strict

SCHEMA = 1

JobKind = Literal["sensitivity", "plan", "prune", "recover", "evaluate"]
JobState = Literal["queued", "running", "stopping", "stopped", "interrupted", "failed", "done"]
KINDS: tuple[JobKind, ...] = get_args(JobKind)
STATES: tuple[JobState, ...] = get_args(JobState)
FINAL: frozenset[JobState] = frozenset({"stopped", "interrupted", "failed", "done"})
RESUMABLE: frozenset[JobState] = frozenset({"stopped", "interrupted", "failed"})
_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRecord:
    """One moment of a job.

    `progress` is 0 to 1 over the whole job; `done` of `total` counts what the present part is about, which `note` (a
    message key) names. `eta_s` is the time left in seconds, None until it can be told. `created`, `started`, `ended`
    and `heartbeat` are ISO 8601 in UTC, empty where it has not come to that. `reason` is a message key with
    `reason_values` for a job that did not simply end: why it failed, was interrupted, or waits. `request` is what was
    asked, `result` what came out (empty until then). `attempt` counts the starts: 2 and more were resumed.
    `device` says whether it needs the accelerator for itself.
    """

    id: str
    kind: JobKind
    state: JobState
    progress: float = 0.0
    note: str = "note.job_queued"
    done: float = 0.0
    total: float = 0.0
    eta_s: float | None = None
    created: str = ""
    started: str = ""
    ended: str = ""
    heartbeat: str = ""
    reason: str = ""
    reason_values: Mapping[str, str] = field(default_factory=dict)
    request: Mapping[str, object] = field(default_factory=dict)
    result: Mapping[str, object] = field(default_factory=dict)
    attempt: int = 1
    device: bool = True

    def __post_init__(self) -> None:
        if not is_job_id(self.id) or self.kind not in KINDS or self.state not in STATES:
            raise ValueError(f"no such job can be: {self.id!r}, {self.kind!r}, {self.state!r}")

    @property
    def finished(self) -> bool:
        """Whether nothing will change unless somebody resumes it."""
        return self.state in FINAL

    @property
    def resumable(self) -> bool:
        """Whether it can be taken up again."""
        return self.state in RESUMABLE

    @property
    def model(self) -> str:
        """The key of the model that it is about, as the request names it."""
        return str(self.request.get("model", ""))

    @property
    def problem(self) -> UserError | None:
        """`reason` as an error that can be said in any language."""
        return UserError(self.reason, **self.reason_values) if self.reason else None

    def public(self) -> dict[str, object]:
        """As the command line and the API print it, with `reason` in English."""
        return {**asdict(self), "reason": str(self.problem or "")}

    def to_json(self) -> str:
        """All fields and the schema number."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, source: str) -> Self:
        """Read what `to_json` gave. Raises ValueError for another schema and for unknown keys."""
        data = loads_strict(source)
        if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
            raise ValueError(f"a job has schema {SCHEMA}")
        if unknown := data.keys() - {item.name for item in fields(cls)}:
            raise ValueError(f"a job has no {sorted(unknown)}")
        return cls(**data)


def is_job_id(value: object) -> bool:
    """Whether `value` looks like the id of a job: 16 hexadecimal digits."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None
