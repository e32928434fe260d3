"""Inside the process of a job: its turn, its heartbeat, its stop, and the one final state."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

from zimage_studio.errors import Cancelled, UserError
from zimage_studio.records.job import JobRecord
from zimage_studio.records.progress import Preview
from zimage_studio.services.job_table import JobTable, Lock, now
from zimage_studio.services.jobs import ALIVE, APP_ENDED, TURN
from zimage_studio.services.tether import tie_to_parent

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
NICENESS = 10
FIRST_ETA_SHARE = 0.01
MAIN_SHARE = 0.4
"""The time left is told from the pace of a part that is so much of the whole: what comes before has another pace."""
STANDING = ("note.loading", "note.downloading", "note.importing")
DONE, FAILED, REFUSED, STOPPED = 0, 1, 2, 130

Work = Callable[[JobRecord, Path, "JobProgress"], Mapping[str, object]]
"""What a kind of job does: its record, its folder, its progress -> its result. Raises UserError, Cancelled."""


class JobProgress:
    """A Progress that writes into the table once a second, and stops the work when the table asks for it.

    `parts` says which share of the whole job (0..1) each kind of call is about.
    """

    def __init__(self, table: JobTable, job: JobRecord) -> None:
        self._table = table
        self._job = job
        self._stop = threading.Event()
        self._quit = threading.Event()
        self._parts: Mapping[str, tuple[float, float]] = {"": (0.0, 1.0)}
        self._share = 0.0
        self._present: dict[str, object] = {"note": "note.starting", "done": 0.0, "total": 0.0}
        self._part = (0.0, 0.0)
        self._began: tuple[float, float] | None = None
        self._thread = threading.Thread(target=self._beat, name="job-heartbeat", daemon=True)

    def __call__(self, done: float, total: float, note: str, /, preview: Preview | None = None) -> None:
        """Take in one unit of progress. Raises Cancelled after a stop."""
        if self._stop.is_set():
            raise Cancelled
        low, high = self._parts.get(note) or self._parts.get("") or (0.0, 0.0)
        if note not in self._parts and note.startswith(STANDING):
            low = high = 0.0
        if low < high and (low, high) != self._part:
            self._part, self._began = (low, high), None
        self._share = max(self._share, low + (high - low) * (min(1.0, done / total) if total else 0.0))
        if self._began is None:
            self._began = (time.monotonic(), self._share)
        self._present = {"note": note, "done": float(done), "total": float(total)}

    def parts(self, shares: Mapping[str, tuple[float, float]]) -> None:
        """By note, from where to where its calls move the whole; "" stands for all that are not named.

        Loading, which may come several times, moves nothing unless it is named.
        """
        self._parts = shares

    @property
    def stopping(self) -> bool:
        """Whether a stop has been asked for."""
        return self._stop.is_set()

    def start(self) -> None:
        """Begin to beat, and listen to signals."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._thread.start()

    def close(self) -> None:
        """Stop beating."""
        self._quit.set()
        self._thread.join()

    def snapshot(self) -> dict[str, object]:
        """What the table holds of this moment."""
        return {**self._present, "progress": round(self._share, 4), "eta_s": self._eta_s(), "heartbeat": now()}

    def _eta_s(self) -> float | None:
        low, high = self._part
        if self._began is None or high - low < MAIN_SHARE:
            return None
        since, before = self._began
        gained = self._share - before
        if gained < FIRST_ETA_SHARE:
            return None
        return round((time.monotonic() - since) * (1.0 - self._share) / gained, 1)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stop.set()

    def _beat(self) -> None:
        while not self._quit.wait(HEARTBEAT_S):
            try:
                self._beat_once()
            except UserError as error:
                log.warning("the table of jobs cannot be written: %s", error)

    def _beat_once(self) -> None:
        job = self._job
        if self._table.update(job.id, only=("running",), in_attempt=job.attempt, **self.snapshot()):
            return
        present = self._table.get(job.id)
        if present is None or present.attempt != job.attempt:
            log.error("this job was deleted or taken over; ending")
            os._exit(FAILED)
        self._stop.set()
        self._table.update(job.id, only=("stopping",), in_attempt=job.attempt, heartbeat=now())


def run_job(data: Path, job_id: str, work: Work, *, parent: int | None = None, held: int | None = None) -> int:
    """Run one queued job to its end; returns the exit status.

    `parent` is the process to die with; `held` the descriptor of the job's lock that it handed over. Without it the
    lock is taken here. Raises UserError (unknown_job, job_runs).
    """
    if parent is not None:
        tie_to_parent(parent)
    os.nice(NICENESS)
    table, folder = JobTable(data / "jobs.sqlite"), data / "jobs" / job_id
    job = table.get(job_id)
    if job is None:
        raise UserError("unknown_job")
    if held is None and not Lock(folder / ALIVE).take():
        raise UserError("job_runs", value=job_id)
    progress = JobProgress(table, job)
    if not _take_turn(table, folder.parent, job):
        return STOPPED
    progress.start()
    return _run(table, job, folder, work, progress)


def _take_turn(table: JobTable, folder: Path, job: JobRecord) -> bool:
    """Wait until nothing else runs, then run. False when the job was stopped before its turn came."""
    turn = Lock(folder / TURN)
    while not turn.take():
        time.sleep(HEARTBEAT_S / 4)
        present = table.get(job.id)
        if present is None or present.state != "queued":
            return False
    return table.update(
        job.id, only=("queued",), in_attempt=job.attempt, state="running", started=job.started or now(),
        heartbeat=now(), note="note.starting",
    )  # fmt: skip


def _run(table: JobTable, job: JobRecord, folder: Path, work: Work, progress: JobProgress) -> int:
    def end(state: str, note: str, **changes: object) -> None:
        progress.close()
        last = {
            **progress.snapshot(),
            "state": state,
            "note": note,
            "eta_s": None,
            "ended": now(),
            "reason": "",
            **changes,
        }
        table.update(job.id, only=("running", "stopping"), in_attempt=job.attempt, **last)

    log.info("%s %s, attempt %d, process %d", job.kind, job.id, job.attempt, os.getpid())
    try:
        result = work(job, folder, progress)
    except Cancelled:
        present = table.get(job.id)
        if present is not None and present.reason == APP_ENDED:
            end("interrupted", "note.job_interrupted", reason=APP_ENDED)
        else:
            end("stopped", "note.stopped")
        log.info("stopped")
        return STOPPED
    except UserError as error:
        log.error("%s", error)
        values = {name: str(value) for name, value in error.values.items()}
        end("failed", "note.failed", reason=error.key, reason_values=values)
        return REFUSED
    except Exception as error:
        log.exception("failed")
        values = {"why": f"{type(error).__name__}: {error}"[:500]}
        end("failed", "note.failed", reason="job_bug", reason_values=values)
        return FAILED
    end("done", "note.done", progress=1.0, result=result)
    log.info("done")
    return DONE
