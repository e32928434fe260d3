"""Following a job from the command line: progress on stderr, Ctrl+C stops it, its end becomes ours."""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType

from zimage_studio.cli.common import services
from zimage_studio.errors import Cancelled
from zimage_studio.messages import Lang, say
from zimage_studio.records.job import JobRecord
from zimage_studio.services.jobs import JobService
from zimage_studio.services.studio import Studio
from zimage_studio.settings import Settings

LOOK_S = 0.25
LINE_EVERY_S = 5.0
END_S = 10.0


@contextlib.contextmanager
def compressing(settings: Settings) -> Iterator[Studio]:
    """The services, and the end of the jobs that this process is responsible for."""
    with services(settings) as studio:
        try:
            yield studio
        finally:
            studio.jobs.close(END_S)


def follow(jobs: JobService, job: JobRecord, lang: Lang) -> JobRecord:
    """Wait for the end of a job. Raises what it failed of as UserError, Cancelled when it was stopped."""
    shown = _Shown(lang)
    with _stopped_by_signals(jobs, job.id):
        while not job.finished:
            shown.tell(job, jobs.ahead(job.id) if job.state == "queued" else 0)
            time.sleep(LOOK_S)
            job = jobs.get(job.id)
    shown.close()
    if job.state == "stopped":
        raise Cancelled
    if job.problem is not None:
        raise job.problem
    return job


@contextlib.contextmanager
def _stopped_by_signals(jobs: JobService, job_id: str) -> Iterator[None]:
    """The first Ctrl+C (or SIGTERM) asks the job to stop at its next checkpoint; the second one ends us, and it."""
    asked: list[int] = []

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(1)
        jobs.stop(job_id)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Shown:
    """One line of a terminal, written over; elsewhere a line whenever the work changes, and every five seconds."""

    def __init__(self, lang: Lang) -> None:
        self._lang: Lang = lang
        self._tty = sys.stderr.isatty()
        self._last = ("", 0.0)

    def tell(self, job: JobRecord, ahead: int) -> None:
        line = job_line(job, self._lang, ahead)
        if self._tty:
            sys.stderr.write(f"\r\x1b[K{line}")
        else:
            note, at = self._last
            if note == job.note and time.monotonic() - at < LINE_EVERY_S:
                return
            self._last = (job.note, time.monotonic())
            sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    def close(self) -> None:
        if self._tty:
            sys.stderr.write("\n")


def job_line(job: JobRecord, lang: Lang, ahead: int = 0) -> str:
    """A job in a line: what, how far, what it does, time left."""
    parts = [say(f"field.{job.kind}", lang), f"{job.progress:.0%}", say(job.note, lang, ahead=ahead)]
    if job.total:
        parts.append(f"{job.done:.4g}/{job.total:.4g}")
    if job.eta_s is not None:
        parts.append(say("job_eta", lang, minutes=int(job.eta_s // 60), seconds=int(job.eta_s % 60)))
    return " · ".join(parts)
