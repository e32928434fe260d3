"""Measuring: one request under several profiles as a job on the owner thread, and the table of what was measured."""

import csv
import io
import json
import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from zimage_studio.errors import InvalidInputError, OutOfMemoryError, StorageError
from zimage_studio.records.checks import whole
from zimage_studio.records.measured import MeasuredRow
from zimage_studio.records.memory import EXACT, MemoryProfile
from zimage_studio.records.progress import Preview
from zimage_studio.records.request import GenerationRequest
from zimage_studio.services.manager import PipelineManager
from zimage_studio.services.watched import State, View, Watched

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

MAX_ROWS = 1000
KEPT_ROWS = 10_000
FORMULA = ("=", "+", "-", "@", "\t", "\r")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS measurements (
    id INTEGER PRIMARY KEY, created TEXT NOT NULL, job TEXT NOT NULL, model TEXT NOT NULL, profile TEXT NOT NULL,
    row TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class MeasureView(View):
    """One moment of a measuring.

    `done` of `total` profiles are measured; the present one is `profile`. `rows` are those that are there.
    """

    profile: str = ""
    done: int = 0
    total: int = 1
    rows: tuple[MeasuredRow, ...] = ()


class MeasureJob(Watched[MeasureView, tuple[MeasuredRow, ...]]):
    """A measuring on its way."""

    def __init__(
        self, profiles: tuple[MemoryProfile, ...], request: GenerationRequest, model: str, session: str
    ) -> None:
        super().__init__(MeasureView(total=len(profiles)), session)
        self.profiles = profiles
        self.request = request
        self.model = model

    def outcome(self, view: MeasureView) -> tuple[MeasuredRow, ...]:
        """The rows."""
        return view.rows

    def end(self, state: State, **changes: object) -> None:
        """Move on to the last view."""
        super().end(state, profile="", **changes)

    def report(self, _done: float, _total: float, note: str, /, preview: Preview | None = None) -> None:
        """Take in one unit of progress. Raises Cancelled after a stop."""
        self.go_on()
        if note != self._view.note:
            self.update(note=note)


def start_measuring(job: MeasureJob, manager: PipelineManager, rows: "Measurements") -> None:
    """Queue the first part of a measuring; every part queues the next, so that others get their turn in between."""

    def exact() -> None:
        job.update(state="running", note="note.starting")
        with _ended_by(job) as goes_on:
            reference_HWC = _exact_picture(job, manager)
            goes_on(lambda: manager.submit(lambda: one(0, reference_HWC)))

    def one(number: int, reference_HWC: "NDArray[np.uint8] | None") -> None:
        with _ended_by(job) as goes_on:
            profile = job.profiles[number]
            job.update(done=number, profile=profile.name)
            row = _measured(job, manager, profile, reference_HWC)
            rows.add(row)
            job.update(rows=(*job.view.rows, row), done=number + 1)
            if number + 1 < len(job.profiles):
                goes_on(lambda: manager.submit(lambda: one(number + 1, reference_HWC)))
            else:
                goes_on(lambda: job.end("done"))

    manager.submit(exact)


@contextmanager
def _ended_by(job: MeasureJob) -> Iterator[Callable[[Callable[[], object]], None]]:
    """Run one part of `job`; what it hands over comes after it, unless it was stopped or failed."""
    after: list[Callable[[], object]] = []
    with job.ends_when_raised():
        job.go_on()
        yield after.append
        if len(job.view.rows) < len(job.profiles):
            job.go_on()
        for action in after:
            action()


def _exact_picture(job: MeasureJob, manager: PipelineManager) -> "NDArray[np.uint8] | None":
    """The pixels to compare with, (H, W, 3); None where the exact picture does not fit into memory."""
    job.update(profile=EXACT.name)
    try:
        with manager.borrow(job.model, job.report, EXACT) as lent:
            return lent.draw(job.request).pixels_HWC
    except OutOfMemoryError as error:
        log.info("no exact picture to compare with: %s", error)
        return None


def _measured(
    job: MeasureJob, manager: PipelineManager, profile: MemoryProfile, reference_HWC: "NDArray[np.uint8] | None"
) -> MeasuredRow:
    request = job.request
    row = MeasuredRow(
        created=datetime.now(UTC).isoformat(timespec="milliseconds"), job=job.id, model=job.model, device="",
        profile=profile, width=request.width, height=request.height, steps=request.steps, guidance=request.guidance,
    )  # fmt: skip
    try:
        with manager.borrow(job.model, job.report, profile) as lent:
            found, _ = lent.measure(request, reference_HWC)
            device = lent.engine.device()
    except OutOfMemoryError as error:
        return replace(row, error=error.key, error_values={name: str(value) for name, value in error.values.items()})
    return replace(
        row,
        device=device,
        phase_peak_bytes={str(phase): peak for phase, peak in found.phase_peak_bytes.items()},
        seconds=found.seconds,
        psnr_db=found.psnr_db,
        identical=found.identical,
        pixels_sha256=found.pixels_sha256,
        states=found.states,
    )


class Measurements:
    """The rows of all measurings, in SQLite. Safe to use from several threads."""

    def __init__(self, database: Path) -> None:
        self._database = database
        try:
            with self._connect() as connection:
                connection.executescript(_SCHEMA)
        except sqlite3.OperationalError as error:
            raise StorageError("cannot_write", folder=database.parent, why=error) from error

    def add(self, row: MeasuredRow) -> None:
        """Keep `row`; beyond 10,000 the oldest go. Raises StorageError."""
        values = (row.created, row.job, row.model, row.name, json.dumps(row.to_dict(), ensure_ascii=False))
        try:
            with self._connect() as connection:
                connection.execute(
                    "INSERT INTO measurements (created, job, model, profile, row) VALUES (?,?,?,?,?)", values
                )
                connection.execute(
                    "DELETE FROM measurements WHERE id <= (SELECT MAX(id) FROM measurements) - ?", (KEPT_ROWS,)
                )
        except sqlite3.OperationalError as error:
            raise StorageError("cannot_write", folder=self._database.parent, why=error) from error

    def newest(self, count: object) -> tuple[MeasuredRow, ...]:
        """At most `count` rows (1 to 1000), newest first."""
        high = whole("count", count, 1, MAX_ROWS)
        return tuple(self._select("ORDER BY id DESC LIMIT ?", (high,)))

    def export(self, form: str) -> str:
        """All rows, oldest first. Raises InvalidInputError for another form than `csv` and `json`."""
        rows = list(self._select("ORDER BY id", ()))
        if form == "json":
            return json.dumps([row.to_dict() for row in rows], ensure_ascii=False, indent=1) + "\n"
        if form != "csv":
            raise InvalidInputError("bad_choice", field="form", value=form, known="csv, json")
        lines = [{name: _cell(value) for name, value in row.flat().items()} for row in rows]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(lines[0]) if lines else ["profile"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue()

    def clear(self) -> int:
        """Forget all rows; returns how many there were."""
        with self._connect() as connection:
            return connection.execute("DELETE FROM measurements").rowcount

    def _select(self, tail: str, values: tuple[object, ...]) -> Iterator[MeasuredRow]:
        with self._connect() as connection:
            found = connection.execute(f"SELECT row FROM measurements {tail}", values).fetchall()  # noqa: S608 - fixed texts
        for (text,) in found:
            yield MeasuredRow.from_dict(json.loads(text))

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._database, timeout=10)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            with connection:
                yield connection
        finally:
            connection.close()


def _cell(value: object) -> object:
    """What a spreadsheet would take for a formula is made text."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
