"""Work that anybody may watch: a view that only moves forward, a stop, and an end to wait for."""

import logging
import secrets
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

from zimage_studio.errors import Cancelled, UserError, bare

log = logging.getLogger(__name__)

State = Literal["waiting", "running", "done", "stopped", "failed"]
FINAL: frozenset[State] = frozenset({"done", "stopped", "failed"})


@dataclass(frozen=True, slots=True)
class View:
    """One moment of some work. `version` grows with every change; `note` is the key of what it does now.

    `bug` marks a failure that is not the person's to mend.
    """

    version: int = 0
    state: State = "waiting"
    note: str = "note.waiting"
    error: UserError | None = None
    bug: str = ""

    @property
    def finished(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in FINAL


ViewT = TypeVar("ViewT", bound=View)
ResultT = TypeVar("ResultT")


class Watched(ABC, Generic[ViewT, ResultT]):
    """Work on its way. Runs to its end whether or not anybody watches."""

    def __init__(self, view: ViewT, session: str, work_id: str | None = None) -> None:
        """`session` is whose work it is; without a `work_id` it gets a new one of 16 hexadecimal digits."""
        self.id = work_id or secrets.token_hex(8)
        self.session = session
        self._view = view
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._stop = threading.Event()

    @property
    def view(self) -> ViewT:
        """The present moment."""
        return self._view

    @property
    def stopping(self) -> bool:
        """Whether a stop has been asked for."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Ask the work to end at its next step; what is there stays. Idempotent."""
        self._stop.set()

    def go_on(self) -> None:
        """Raises Cancelled after a stop."""
        if self._stop.is_set():
            raise Cancelled

    def wait_change(self, version: int, timeout_s: float) -> ViewT:
        """Block until the view is newer than `version`, at most `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._view.version > version, timeout_s)
            return self._view

    def result(self, timeout_s: float | None = None) -> ResultT:
        """Wait for the end. Raises the work's UserError, Cancelled when it was stopped, TimeoutError."""
        if not self._ended.wait(timeout_s):  # not woken by every step, as a watcher of `_changed` would be
            raise TimeoutError(f"{type(self).__name__} {self.id} is still {self._view.state}")
        view = self._view
        if view.error is not None:
            raise view.error
        if view.state == "stopped":
            raise Cancelled
        if view.state == "failed":
            raise RuntimeError(view.bug)
        return self.outcome(view)

    @abstractmethod
    def outcome(self, view: ViewT) -> ResultT:
        """What came of it, from the last view of work that is done."""

    def update(self, **changes: object) -> None:
        """Move on to the next view and wake the watchers."""
        with self._changed:
            self._view = replace(self._view, version=self._view.version + 1, **changes)  # type: ignore[arg-type]
            self._changed.notify_all()
        if self._view.finished:
            self._ended.set()

    def end(self, state: State, **changes: object) -> None:
        """Move on to the last view."""
        self.update(state=state, note=f"note.{state}", **changes)

    @contextmanager
    def ends_when_raised(self) -> Iterator[None]:
        """What the block raises ends the work: as stopped, as refused in a sentence, or as our bug, which is logged."""
        try:
            yield
        except Cancelled:
            self.end("stopped")
        except UserError as error:
            log.info("%s %s refused: %s", type(self).__name__, self.id, error)
            self.end("failed", error=bare(error))
        except Exception as error:
            log.exception("%s %s failed", type(self).__name__, self.id)
            self.end("failed", bug=f"{type(error).__name__}: {error}")
