"""The table of jobs in SQLite (WAL), and the two locks that outlive no process: one a job, one for whose turn it is."""

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from zimage_studio.errors import StorageError
from zimage_studio.records.job import JobRecord, JobState

_COLUMNS = (
    "id", "kind", "state", "progress", "note", "done", "total", "eta_s", "created", "started", "ended", "heartbeat",
    "reason", "reason_values", "request", "result", "attempt", "device",
)  # fmt: skip
_JSON = frozenset({"reason_values", "request", "result", "settings"})
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, state TEXT NOT NULL, progress REAL NOT NULL, note TEXT NOT NULL,
    done REAL NOT NULL, total REAL NOT NULL, eta_s REAL, created TEXT NOT NULL, started TEXT NOT NULL,
    ended TEXT NOT NULL, heartbeat TEXT NOT NULL, reason TEXT NOT NULL, reason_values TEXT NOT NULL,
    request TEXT NOT NULL, result TEXT NOT NULL, attempt INTEGER NOT NULL, device INTEGER NOT NULL,
    place INTEGER NOT NULL, settings TEXT NOT NULL, needs_bytes INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS jobs_created ON jobs (created DESC, id);
CREATE INDEX IF NOT EXISTS jobs_place ON jobs (state, place);
"""


def now() -> str:
    """This moment, as the table writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class JobTable:
    """All jobs of one DATA folder. Safe to use from several threads and processes."""

    def __init__(self, database: Path) -> None:
        self._database = database
        with self._writing() as connection:
            connection.executescript(_SCHEMA)

    def insert(self, job: JobRecord, *, settings: Mapping[str, object], needs_bytes: int) -> None:
        """Add a job at the end of the queue. Raises StorageError."""
        row = {name: getattr(job, name) for name in _COLUMNS}
        row |= {"settings": settings, "needs_bytes": needs_bytes}
        names = ", ".join(row)
        marks = ", ".join("?" for _ in row)
        sql = f"INSERT INTO jobs ({names}, place) VALUES ({marks}, (SELECT COALESCE(MAX(place), 0) + 1 FROM jobs))"  # noqa: S608 - fixed names
        with self._writing() as connection:
            connection.execute(sql, [_packed(name, value) for name, value in row.items()])

    def update(
        self, job_id: str, *, only: Sequence[JobState], in_attempt: int | None = None, **changes: object
    ) -> bool:
        """Set columns of a job that is in one of the states `only` (and at its `in_attempt`th start).

        False when it is not, or when there is no such job. Raises StorageError.
        """
        sets = ", ".join(f"{name} = ?" for name in changes)
        states = ", ".join("?" for _ in only)
        sql = f"UPDATE jobs SET {sets} WHERE id = ? AND state IN ({states})"  # noqa: S608 - fixed names
        values = [*(_packed(name, value) for name, value in changes.items()), job_id, *only]
        if in_attempt is not None:
            sql, values = f"{sql} AND attempt = ?", [*values, in_attempt]
        with self._writing() as connection:
            return connection.execute(sql, values).rowcount == 1

    def to_the_end(self, job_id: str) -> None:
        """Give a job the last place in the queue."""
        with self._writing() as connection:
            connection.execute("UPDATE jobs SET place = (SELECT MAX(place) + 1 FROM jobs) WHERE id = ?", (job_id,))

    def delete(self, job_id: str) -> None:
        """Forget a job."""
        with self._writing() as connection:
            connection.execute("DELETE FROM jobs WHERE id = ?", (job_id,))

    def get(self, job_id: str) -> JobRecord | None:
        """The job, or None."""
        return next(iter(self._select("WHERE id = ?", (job_id,))), None)

    def settings(self, job_id: str) -> tuple[Mapping[str, object], int]:
        """What its process is to be started with, and how many bytes it will write."""
        with self._connect() as connection:
            row = connection.execute("SELECT settings, needs_bytes FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return json.loads(row[0]), int(row[1])

    def newest(self, count: int) -> tuple[JobRecord, ...]:
        """At most `count` jobs, newest first."""
        return tuple(self._select("ORDER BY created DESC, place DESC LIMIT ?", (count,)))

    def unfinished(self) -> tuple[JobRecord, ...]:
        """What runs or waits, in the order of the queue."""
        return tuple(self._select("WHERE state IN ('queued', 'running', 'stopping') ORDER BY place", ()))

    def _select(self, tail: str, values: tuple[object, ...]) -> list[JobRecord]:
        with self._connect() as connection:
            rows = connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM jobs {tail}", values).fetchall()  # noqa: S608
        return [_unpacked(dict(zip(_COLUMNS, row, strict=True))) for row in rows]

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._connect() as connection:
                yield connection
        except sqlite3.OperationalError as error:
            raise StorageError("cannot_write", folder=self._database.parent, why=error) from error

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._database, timeout=20)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            with connection:
                yield connection
        finally:
            connection.close()


def _packed(name: str, value: object) -> object:
    if name in _JSON:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    return int(value) if isinstance(value, bool) else value


def _unpacked(row: dict[str, object]) -> JobRecord:
    values = {name: json.loads(str(value)) if name in _JSON else value for name, value in row.items()}
    return JobRecord(**{**values, "device": bool(values["device"])})  # type: ignore[arg-type]


class Lock:
    """A lock file that the system lets go when the last process that holds it ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def take(self) -> bool:
        """Take it now. False when somebody has it."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._fd = fd
        return True

    @property
    def fd(self) -> int:
        """The descriptor that holds it: a child that inherits it holds it as well."""
        if self._fd is None:
            raise RuntimeError(f"{self._path.name} is not held")
        return self._fd

    def close(self) -> None:
        """Close our end; a child that inherited it goes on holding it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def is_free(self) -> bool:
        """Whether nobody has it."""
        if not self._path.exists():
            return True
        if not self.take():
            return False
        self.close()
        return True
