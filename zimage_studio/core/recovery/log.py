"""The log of training: one JSON object a line, which a live plot reads while it grows."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from zimage_studio.core.recovery.store import write_text

FILE = "log.jsonl"


@dataclass(frozen=True, slots=True)
class Line:
    """The mean loss since the last line, and how far training was. `validation` is None where it was not measured.

    `seconds` counts training in this phase, over all starts.
    """

    phase: str
    step: int
    loss: float | None
    validation: float | None
    lr: float
    seconds: float
    share: float


OnLog = Callable[[Line], object]


class Log:
    """Appends to `folder/log.jsonl`."""

    def __init__(self, folder: Path, on_log: OnLog | None) -> None:
        self._path, self._on_log = folder / FILE, on_log

    def write(self, line: Line) -> None:
        """Append one line, and tell whoever listens."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(line)) + "\n")
        if self._on_log is not None:
            self._on_log(line)

    def rewind(self, phase: str, step: int) -> None:
        """Forget what was written after a checkpoint; a last line that was cut off goes too."""
        if not self._path.is_file():
            return
        kept = [line for line in read_log(self._path) if line.phase != phase or line.step <= step]
        write_text(self._path, "".join(json.dumps(asdict(line)) + "\n" for line in kept))


def read_log(path: Path) -> list[Line]:
    """The lines of a log, up to the first that is not whole."""
    lines: list[Line] = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(Line(**json.loads(text)))
        except (ValueError, TypeError):
            break
    return lines
