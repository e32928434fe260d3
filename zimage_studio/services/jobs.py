"""Long jobs, a process each: a queue that runs one at a time, a log, a stop, and resuming after whatever ended it."""

import contextlib
import logging
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from zimage_studio.errors import BusyError, StorageError, UserError
from zimage_studio.records.checks import whole
from zimage_studio.records.job import FINAL, JobKind, JobRecord, is_job_id
from zimage_studio.services.job_table import JobTable, Lock, now

log = logging.getLogger(__name__)

MAX_WAITING = 16
MAX_LISTED = 1000
MAX_LOG_LINES = 10_000
LOG_TAIL_BYTES = 2**20
RESERVE_BYTES = 2 * 10**9
ROOM = 1.2
"""What a job writes is foretold with this factor."""
TICK_S = 0.25
STOP_GRACE_S = 120.0
APP_ENDED = "job_app_ended"
LOG, ALIVE, TURN = "log.txt", "alive", "turn"
PROGRAM = (sys.executable, "-m", "zimage_studio", "job")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\S\n\t ]|[\x00-\x08\x0b-\x1f\x7f]")


class Device(Protocol):
    """What is lent to a job: services.manager.PipelineManager."""

    def lend(self, job: JobRecord) -> None: ...

    def take_back(self) -> None: ...


class JobService:
    """Takes long work of every door and runs it in processes of its own, one at a time for each DATA folder.

    All methods may be called from any thread, and from several processes over one folder. A job ends with the process
    that submitted (or resumed) it; it is then `interrupted` and can be resumed by any other. What a job needs and
    leaves lies in DATA/jobs/ID (`folder`): log.txt, and what its kind keeps there.
    """

    def __init__(
        self,
        data: Path,
        *,
        settings: Mapping[str, object] | None = None,
        device: Device | None = None,
        program: Sequence[str] = PROGRAM,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> None:
        """`settings` go to the processes (as fields of Settings); `device` is lent while a job needs it."""
        self._data = data
        self._folder = data / "jobs"
        self._settings = dict(settings or {})
        self._device = device
        self._program = tuple(program)
        self._reserve_bytes = reserve_bytes
        self._waiting: dict[str, Lock] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._child_runs = ""
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError("cannot_write", folder=self._folder, why=error) from error
        self.table = JobTable(data / "jobs.sqlite")
        self.sweep()

    # --- for the doors

    def submit(
        self, kind: JobKind, request: Mapping[str, object], *, needs_bytes: int = 0, device: bool = True
    ) -> JobRecord:
        """Queue a job; `needs_bytes` is what it will write, `device` whether it needs the accelerator for itself.

        Raises BusyError (stopping, too many wait) and StorageError (too little space on the disk).
        """
        self.check_space(needs_bytes)
        job = JobRecord(
            id=secrets.token_hex(8), kind=kind, state="queued", created=now(), heartbeat=now(),
            request=request, device=device,
        )  # fmt: skip
        with self._lock:
            if self._closed:
                raise BusyError("stopping")
            waiting = sum(other.state == "queued" for other in self.table.unfinished())
            if waiting >= MAX_WAITING:
                raise BusyError("jobs_full", waiting=waiting)
            try:
                self.folder(job.id).mkdir(mode=0o700)
            except OSError as error:
                raise StorageError("cannot_write", folder=self._folder, why=error) from error
            self._hold(job.id)
            self.table.insert(job, settings=self._settings, needs_bytes=needs_bytes)
        self._start_runner()
        return job

    def list(self, count: object = 200) -> tuple[JobRecord, ...]:
        """The newest jobs, newest first; at most 1000."""
        return self.table.newest(whole("count", count, 1, MAX_LISTED))

    def get(self, job_id: object) -> JobRecord:
        """The job. Raises UserError (unknown_job) in the same words for every id that is none."""
        job = self.table.get(job_id) if isinstance(job_id, str) and is_job_id(job_id) else None
        if job is None:
            raise UserError("unknown_job")
        return job

    def running(self) -> JobRecord | None:
        """The job that runs now, of whichever process."""
        return next((job for job in self.table.unfinished() if job.state in ("running", "stopping")), None)

    def ahead(self, job_id: str) -> int:
        """How many jobs run or wait before this one."""
        ids = [job.id for job in self.table.unfinished()]
        return ids.index(job_id) if job_id in ids else 0

    def stop(self, job_id: object) -> JobRecord:
        """Ask a job to end at its next checkpoint; one that waits ends at once. Nothing happens to one that ended."""
        job = self.get(job_id)
        if self.table.update(job.id, only=("queued",), state="stopped", ended=now(), note="note.stopped", eta_s=None):
            self._release(job.id)
        else:
            self.table.update(job.id, only=("running",), state="stopping", note="note.job_stopping")
        return self.get(job.id)

    def resume(self, job_id: object) -> JobRecord:
        """Queue a job again that was stopped, interrupted or failed; it goes on from its last checkpoint.

        Raises UserError (unknown_job, job_not_resumable), BusyError, StorageError.
        """
        job = self.get(job_id)
        if not job.resumable:
            raise UserError("job_not_resumable", value=job.id, state=job.state)
        self.check_space(self.table.settings(job.id)[1])
        with self._lock:
            if self._closed:
                raise BusyError("stopping")
            self._hold(job.id)
            self.table.to_the_end(job.id)
            queued = self.table.update(
                job.id, only=(job.state,), state="queued", note="note.job_queued", ended="", heartbeat=now(),
                eta_s=None, reason="", reason_values={}, attempt=job.attempt + 1,
            )  # fmt: skip
            if not queued:
                self._release(job.id)
        self._start_runner()
        return self.get(job.id)

    def delete(self, job_id: object) -> None:
        """Forget a job that ended, with its folder. What it made stays. Raises UserError (unknown_job, job_runs)."""
        job = self.get(job_id)
        if not job.finished:
            raise UserError("job_runs", value=job.id)
        self.table.delete(job.id)
        shutil.rmtree(self.folder(job.id), ignore_errors=True)

    def log(self, job_id: object, tail: object = 200) -> str:
        """The last lines of its log, without control characters."""
        job, lines = self.get(job_id), whole("tail", tail, 1, MAX_LOG_LINES)
        try:
            with (self.folder(job.id) / LOG).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
                text = file.read().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        clean = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
        return "".join(clean.splitlines(keepends=True)[-lines:])

    def folder(self, job_id: str) -> Path:
        """Where a job keeps its log, its checkpoints and what it wants to show."""
        return self._folder / job_id

    def wait(self, job_id: object, timeout_s: float | None = None) -> JobRecord:
        """Block until the job has ended. Raises TimeoutError."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not (job := self.get(job_id)).finished:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"job {job.id} is still {job.state}")
            time.sleep(TICK_S)
        return job

    def check_space(self, needs_bytes: int) -> None:
        """Raise StorageError unless 2 GB, or 1.2 times what will be written, are free."""
        free, need = shutil.disk_usage(self._folder).free, max(self._reserve_bytes, int(ROOM * needs_bytes))
        if free < need:
            raise StorageError("disk_full", folder=self._data, free_mb=free // 10**6, need_mb=-(-need // 10**6))

    # --- start, upkeep, end

    def start(self) -> None:
        """Watch the queue from now on, also for what other processes run on the device."""
        self._start_runner()

    def sweep(self) -> int:
        """Mark what nobody runs any more as `interrupted`; returns how many.

        Whoever is responsible for a job holds its lock, first the process that queued it, then its own: a free lock
        means that both are gone.
        """
        gone = [job for job in self.table.unfinished() if Lock(self.folder(job.id) / ALIVE).is_free()]
        return sum(self._mark_interrupted(job, "job_process_gone") for job in gone)

    def close(self, timeout_s: float = STOP_GRACE_S) -> None:
        """Take no new work; what waits or runs is interrupted, after its checkpoint where `timeout_s` allows."""
        with self._lock:
            self._closed = True
            waiting = list(self._waiting)
            child = self._child
        for job_id in waiting:
            job = self.table.get(job_id)
            if job is not None:
                self._mark_interrupted(job, APP_ENDED)
            self._release(job_id)
        self._wake.set()
        if child is not None and child.poll() is None:
            for job in self.table.unfinished():
                if self._child_runs == job.id:
                    self.table.update(job.id, only=("running",), reason=APP_ENDED)
            child.terminate()  # Popen does not signal a process that has ended
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout_s)
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _mark_interrupted(self, job: JobRecord, reason: str, **values: str) -> bool:
        return self.table.update(
            job.id, only=("queued", "running", "stopping"), in_attempt=job.attempt, state="interrupted", ended=now(),
            note="note.job_interrupted", eta_s=None, reason=reason, reason_values=values,
        )  # fmt: skip

    # --- the queue

    def _hold(self, job_id: str) -> None:
        """Become responsible for a job. Raises BusyError while its last process has not ended."""
        lock = Lock(self.folder(job_id) / ALIVE)
        for _ in range(20):
            if lock.take():
                self._waiting[job_id] = lock
                return
            time.sleep(0.05)  # a sweep looks at it for an instant
        raise BusyError("job_still_ending", value=job_id)

    def _release(self, job_id: str) -> None:
        with self._lock:
            lock = self._waiting.pop(job_id, None)
        if lock is not None:
            lock.close()

    def _start_runner(self) -> None:
        """The thread that starts processes. They are tied to its life, so it must not be a door's own thread."""
        with self._lock:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="job-runner", daemon=True)
                self._thread.start()
        self._wake.set()

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait(TICK_S)
            self._wake.clear()
            try:
                self._turn()
            except StorageError as error:
                log.warning("the queue of jobs waits: %s", error)
                time.sleep(TICK_S)

    def _turn(self) -> None:
        """One look at the queue: start what is ours and first; tell the device who has it."""
        self.sweep()
        with self._lock:  # a job that is being queued is held before it is in the table
            unfinished = self.table.unfinished()
            for job_id in self._waiting.keys() - {job.id for job in unfinished}:
                self._release(job_id)  # stopped or deleted by another process
        first = unfinished[0] if unfinished else None
        busy = next((job for job in unfinished if job.state != "queued"), None)
        if busy is not None:
            self._lend(busy)
        elif first is not None and first.id in self._waiting and Lock(self._folder / TURN).is_free():
            with self._lent_to(first):
                self._run_process(first)
        elif first is None and self._device is not None:
            self._device.take_back()

    def _lend(self, job: JobRecord) -> None:
        if self._device is not None and job.device:
            self._device.lend(job)

    @contextlib.contextmanager
    def _lent_to(self, job: JobRecord) -> Iterator[None]:
        self._lend(job)
        try:
            yield
        finally:
            if self._device is not None:
                self._device.take_back()

    def _run_process(self, job: JobRecord) -> None:
        """Start the process of a job and stay with it to its end."""
        with self._lock:
            lock = self._waiting.pop(job.id, None)
            if lock is None or self._closed:
                return
            command = [*self._program, job.id, "--data", str(self._data), "--parent", str(os.getpid())]
            with (self.folder(job.id) / LOG).open("ab") as output:
                self._child = child = subprocess.Popen(
                    [*command, "--held", str(lock.fd)], stdin=subprocess.DEVNULL, stdout=output,
                    stderr=subprocess.STDOUT, start_new_session=True, pass_fds=(lock.fd,), env=_environment(),
                )  # fmt: skip
            self._child_runs = job.id
            lock.close()
        self._stay_with(child, job)
        with self._lock:
            self._child = None
        ended = self.table.get(job.id)
        if ended is None or ended.state in FINAL or ended.attempt != job.attempt:
            return  # or resumed already, before we had seen its end
        if ended.state == "stopping" and ended.reason != APP_ENDED:  # it would not, and was killed
            self.table.update(job.id, only=("stopping",), state="stopped", ended=now(), note="note.stopped", eta_s=None)
            return
        self._mark_interrupted(ended, *_how_it_ended(child.returncode))

    def _stay_with(self, child: "subprocess.Popen[bytes]", job: JobRecord) -> None:
        """Wait for its end; what does not stop within two minutes is killed, with its whole group."""
        patience: float | None = None
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(TICK_S)
                break
            present = self.table.get(job.id)
            if present is None or present.state == "stopping":
                patience = patience or time.monotonic() + STOP_GRACE_S
            if patience is not None and time.monotonic() > patience:
                log.warning("job %s did not stop; it is killed", job.id)
                _kill_group(child.pid)
        _kill_group(child.pid)  # what it started and left behind


def _environment() -> dict[str, str]:
    """Ours, with this very package to be found from any folder, and without progress bars in the log."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    ours = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **ours}


def _how_it_ended(status: int) -> tuple[str]:
    return ("job_killed" if status == -signal.SIGKILL else "job_process_gone",)


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
