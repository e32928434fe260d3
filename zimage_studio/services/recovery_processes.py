"""Recovery in several processes, seen from its job: they are started, listened to, stopped, and never left behind.

The job starts `accelerate launch`, which starts services.recovery_worker once for each device. All of them inherit two
pipes. On their standard output come messages, a line of JSON each behind a mark; what else is printed goes to the log.
Their standard input says whether the job lives: a byte on it asks the first one to stop, its end ends them all, since
neither `accelerate` nor the group of the job would reach them (each has a session of its own).
"""

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from zimage_studio.core.recovery.launch import LaunchRequest
from zimage_studio.errors import Cancelled, UserError
from zimage_studio.records.progress import Progress
from zimage_studio.services import tether
from zimage_studio.services.files import replace_durably

if TYPE_CHECKING:
    from zimage_studio.core.recovery.log import Line, OnLog

log = logging.getLogger(__name__)

REQUEST = "processes.json"
WORKER = "zimage_studio.services.recovery_worker"
MARK = b"\x1e"
"""Comes before each message: the record separator, as RFC 7464 has it."""
STOP = b"s"
MAX_WHY_CHARS = 300
GRACE_S, DRAIN_S = 20.0, 10.0


# --- in the job -----------------------------------------------------------------------------------------------------


def recover_together(
    asked: LaunchRequest, count: int, *, data: Path, job_id: str, progress: Progress, on_log: "OnLog"
) -> dict[str, Any]:
    """Train in `count` processes; returns the fields of Recovered but its path.

    Raises what training raised as UserError, recover_process when a process ended without a word, Cancelled after
    `progress` raised it and the checkpoint was written.
    """
    path = asked.checkpoint_dir / REQUEST
    replace_durably(path, json.dumps({**asked.to_dict(), "data": str(data), "job": job_id}).encode())
    with _launched(path, count) as child:
        return _Listener(child, count, progress, on_log).until_the_end()


@contextlib.contextmanager
def _launched(request: Path, count: int) -> Iterator["subprocess.Popen[bytes]"]:
    """`accelerate launch` in a group of its own, tied to us; with all its processes gone at the end of the block."""
    accelerate = (
        "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(count), "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
    )  # fmt: skip
    tied = (sys.executable, str(Path(tether.__file__)), str(os.getpid()), sys.executable)
    threads = max(1, (os.cpu_count() or 1) // count)
    child = subprocess.Popen(
        [*tied, *accelerate, "-m", WORKER, str(request)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        process_group=0, env={"OMP_NUM_THREADS": str(threads), **os.environ},
    )  # fmt: skip
    try:
        yield child
    finally:
        _end(child)


def _end(child: "subprocess.Popen[bytes]") -> None:
    """Close their input, at which they end; the launcher is killed. Returns when the last one has let go of us."""
    stdin, stdout = _pipes(child)
    with contextlib.suppress(BrokenPipeError):
        stdin.close()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    deadline = time.monotonic() + DRAIN_S
    while select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
        if not os.read(stdout.fileno(), 65536):
            break
    else:
        log.warning("a training process still holds its output")
    stdout.close()


def _pipes(child: "subprocess.Popen[bytes]") -> tuple[IO[bytes], IO[bytes]]:
    assert child.stdin is not None  # asked for when it was started
    assert child.stdout is not None
    return child.stdin, child.stdout


class _Listener:
    """Hears what the processes say."""

    def __init__(self, child: "subprocess.Popen[bytes]", count: int, progress: Progress, on_log: "OnLog") -> None:
        self._child, self._count = child, count
        self._stdin, self._stdout = _pipes(child)
        self._progress, self._on_log = progress, on_log
        self._stopping = False

    def until_the_end(self) -> dict[str, Any]:
        """What the first process reports as done; see `recover_together` for what else may come."""
        for line in self._stdout:
            printed, mark, message = line.partition(MARK)
            if printed:
                sys.stdout.write(printed.decode(errors="replace") + ("\n" if mark else ""))
            if mark and (done := self._take(json.loads(message))) is not None:
                return done
        if self._stopping:
            raise Cancelled
        raise UserError("recover_process", count=self._count, why=self._how_it_ended())

    def _take(self, message: Mapping[str, Any]) -> dict[str, Any] | None:
        kind, values = message["kind"], message["values"]
        if kind == "progress":
            self._report(values["done"], values["total"], values["note"])
        elif kind == "line":
            from zimage_studio.core.recovery.log import Line

            self._on_log(Line(**values))
        elif kind == "done":
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(GRACE_S)
            return dict(values)
        elif kind == "stopped":
            raise Cancelled
        elif kind == "refused":
            raise UserError(values["key"], **values["values"])
        else:
            raise UserError("recover_process", count=self._count, why=values["why"])
        return None

    def _report(self, done: float, total: float, note: str) -> None:
        if self._stopping:
            return
        try:
            self._progress(done, total, note)
        except Cancelled:
            self._stopping = True
            with contextlib.suppress(BrokenPipeError):
                self._stdin.write(STOP)
                self._stdin.flush()

    def _how_it_ended(self) -> str:
        status = self._child.wait()
        return signal.Signals(-status).name if status < 0 else f"status {status}"


# --- in a training process ------------------------------------------------------------------------------------------


class Reporter:
    """What one of the processes says to its job. `first` is the one that reports, decides and writes."""

    def __init__(self, *, first: bool) -> None:
        self._first = first
        self._stop = threading.Event()
        threading.Thread(target=self._watch, name="job-alive", daemon=True).start()

    def progress(self, done: float, total: float, note: str, /, preview: object = None) -> None:
        """Pass on one unit of progress. Raises Cancelled after a stop."""
        if self._stop.is_set():
            raise Cancelled
        if self._first:
            _say("progress", done=done, total=total, note=note)

    def line(self, line: "Line") -> None:
        """Pass on a line of the log of training."""
        if self._first:
            _say("line", **asdict(line))

    def done(self, **numbers: object) -> None:
        """The model is written."""
        if self._first:
            _say("done", **numbers)

    def stopped(self) -> None:
        """The checkpoint is written."""
        if self._first:
            _say("stopped")

    def refused(self, error: UserError) -> None:
        """Something the person can put right; whichever process finds it."""
        values = {name: str(value)[:MAX_WHY_CHARS] for name, value in error.values.items()}
        _say("refused", key=error.key, values=values)

    def failed(self, error: Exception) -> None:
        """Anything else; the traceback is in the log."""
        _say("failed", why=f"{type(error).__name__}: {error}"[:MAX_WHY_CHARS])

    def _watch(self) -> None:
        """Until the job ends, however it ends: then end, too. Only the first process reads what the job says."""
        door = select.poll()
        door.register(sys.stdin.fileno(), select.POLLIN if self._first else 0)
        while True:
            [(number, event)] = door.poll()
            if not event & select.POLLIN or not os.read(number, 1):
                os._exit(1)  # nothing may hold it back: what counts is on the disk
            self._stop.set()


def _say(kind: str, **values: object) -> None:
    """In one write, which no other process's can break into (shorter than PIPE_BUF)."""
    os.write(sys.stdout.fileno(), MARK + json.dumps({"kind": kind, "values": values}).encode() + b"\n")
