"""What reading the worst files costs, measured in processes of their own.

`python -m tests.core.confined FOLDER [KEY…]` prints a line of JSON for each case. Texts are pasted, and read under
each KEY that a PNG may give them.

Each case is read in a fork of a process that has imported everything and has read nothing yet. The fork may take
256 MB of address space more than it has, not one byte more: beyond that it ends in a MemoryError. Linux only.
"""

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.core import worst_files
from tests.core.worst_files import FILES, TEXTS
from zimage_studio.core.metadata.inspect import Inspection, inspect_file, inspect_text, inspect_texts
from zimage_studio.errors import UserError

MB = 2**20
ROOM_MB = 256


@dataclass(frozen=True, slots=True)
class Cost:
    """One case: how it ended, its processor time, and how much memory it took on top, in address space and resident."""

    name: str
    end: str
    seconds: float
    resident_mb: float
    answer_chars: int


def cases(folder: Path, keys: Sequence[str]) -> Iterator[tuple[str, Callable[[], None], Callable[[], Inspection]]]:
    """Name, what prepares a case, and what reads it. Files are written first, by a process of their own."""
    path = folder / "case.bin"
    for name, make in FILES.items():
        yield name, lambda make=make: _write(path, make()), lambda: inspect_file(path)
    for name, make in TEXTS.items():
        yield f"pasted: {name}", lambda make=make: _write(path, make().encode()), lambda: inspect_text(path.read_text())
        for key in keys:
            yield f"{key}: {name}", lambda: None, lambda key=key: inspect_texts({key: path.read_text()})


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def measure(name: str, read: Callable[[], Inspection]) -> Cost:
    """Read one case within its room, answers in both languages included."""
    Path("/proc/self/clear_refs").write_text("5")
    before_mb = _status_mb("VmRSS")
    allowed = int(_status_mb("VmSize") * MB) + ROOM_MB * MB
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    began = time.process_time()
    chars = 0
    try:
        found = read()
        for lang in ("en", "zh"):
            answer = json.dumps(found.to_dict(lang), ensure_ascii=False, allow_nan=False)
            answer.encode()
            chars = max(chars, len(answer))
        end = f"read: {found.dialect or 'nothing'}"
    except UserError as error:
        end = f"refused: {error}"
    seconds = time.process_time() - began
    return Cost(name, end, seconds, _status_mb("VmHWM") - before_mb, chars)


def _status_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(field)


def in_fork(work: Callable[[], object]) -> str:
    """What `work` returns, as a text; what it raises, as an entry `error`."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            text = json.dumps(work())
        except BaseException:  # noqa: BLE001 - the parent reports it
            text = json.dumps({"error": traceback.format_exc()[-2000:]})
        with os.fdopen(writer, "w") as pipe:
            pipe.write(text)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text or json.dumps({"error": "it ended without a word"})


def main() -> None:
    """Print one line of JSON for each case."""
    folder = Path(sys.argv[1])
    inspect_text(worst_files.A1111)  # whatever is made on first use is made
    inspect_text(worst_files.a_recipe().to_json())
    for name, prepare, read in cases(folder, sys.argv[2:]):
        if (failed := in_fork(prepare)) != "null":
            raise RuntimeError(failed)
        line = in_fork(lambda name=name, read=read: asdict(measure(name, read)))
        sys.stdout.write(json.dumps({"name": name, **json.loads(line)}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
