"""Knock-outs on the live pipeline: one request drawn with and without chosen blocks, halves and heads."""

import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from zimage_studio.errors import Cancelled, UserError
from zimage_studio.records.memory import EXACT, MemoryProfile
from zimage_studio.records.progress import Preview
from zimage_studio.records.request import GenerationRequest
from zimage_studio.records.sensitivity import Knock
from zimage_studio.services.generation import FINAL, State
from zimage_studio.services.manager import Lent, PipelineManager, bare

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zimage_studio.core.comparison import Distance

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KnockOutView:
    """One moment of a knock-out. `version` grows with every change.

    `done` of `total` counts steps of both pictures. `whole_HWC` is drawn by the model as it is, `knocked_HWC` without
    what was knocked out, both (H, W, 3) uint8 and None until they are there. They are for looking at, and kept nowhere:
    no recipe could make the second one again. `distance` is between the two.
    """

    version: int = 0
    state: State = "waiting"
    note: str = "note.waiting"
    done: float = 0
    total: float = 1
    whole_HWC: "NDArray[np.uint8] | None" = None
    knocked_HWC: "NDArray[np.uint8] | None" = None
    distance: "Distance | None" = None
    preview: Preview | None = None
    error: UserError | None = None
    bug: str = ""

    @property
    def finished(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in FINAL


class KnockOutJob:
    """A knock-out on its way."""

    def __init__(self, request: GenerationRequest, knocks: tuple[Knock, ...], model: str, session: str) -> None:
        self.id = secrets.token_hex(8)
        self.request = request
        self.knocks = knocks
        self.model = model
        self.session = session
        self._view = KnockOutView(total=2 * request.steps)
        self._changed = threading.Condition()
        self._stop = threading.Event()

    @property
    def view(self) -> KnockOutView:
        """The present moment."""
        return self._view

    @property
    def stopping(self) -> bool:
        """Whether a stop has been asked for."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Ask it to end at its next step. Idempotent."""
        self._stop.set()

    def wait_change(self, version: int, timeout_s: float) -> KnockOutView:
        """Block until the view is newer than `version`, at most `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._view.version > version, timeout_s)
            return self._view

    def result(self, timeout_s: float | None = None) -> KnockOutView:
        """Wait for the end. Raises the job's UserError, Cancelled when it was stopped, TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._view.finished, timeout_s):
                raise TimeoutError(f"knock-out {self.id} is still {self._view.state}")
        if self._view.error is not None:
            raise self._view.error
        if self._view.state == "stopped":
            raise Cancelled
        if self._view.state == "failed":
            raise RuntimeError(self._view.bug)
        return self._view

    def update(self, **changes: object) -> None:
        """Move on to the next view and wake the watchers."""
        with self._changed:
            self._view = replace(self._view, version=self._view.version + 1, **changes)  # type: ignore[arg-type]
            self._changed.notify_all()


def start_knock_out(
    job: KnockOutJob,
    manager: PipelineManager,
    profile_of: Callable[[str], MemoryProfile] = lambda _model: EXACT,
    whole: "NDArray[np.uint8] | None" = None,
) -> None:
    """Queue a knock-out; `profile_of` names the memory profile of a model. `whole` is the first picture, if known."""

    def run() -> None:
        job.update(state="running", note="note.starting")
        try:
            if job.stopping:
                raise Cancelled
            with manager.borrow(job.model, _reporting(job, 0), profile_of(job.model)) as lent:
                _draw_both(job, lent, whole)
        except Cancelled:
            job.update(state="stopped", note="note.stopped")
        except UserError as error:
            job.update(state="failed", error=bare(error), note="note.failed")
        except Exception as error:
            log.exception("knock-out %s failed", job.id)
            job.update(state="failed", bug=f"{type(error).__name__}: {error}", note="note.failed")

    manager.submit(run)


def _draw_both(job: KnockOutJob, lent: Lent, whole_HWC: "NDArray[np.uint8] | None") -> None:
    from zimage_studio.core.comparison import distance
    from zimage_studio.core.pruning.knockout import knocked

    if whole_HWC is None:
        whole_HWC = replace(lent, progress=_reporting(job, 0)).draw(job.request).pixels_HWC
    job.update(whole_HWC=whole_HWC, done=job.request.steps, preview=None)
    with knocked(lent.model.pipeline.transformer, job.knocks):
        knocked_HWC = replace(lent, progress=_reporting(job, job.request.steps)).draw(job.request).pixels_HWC
    job.update(
        state="done", note="note.done", done=2 * job.request.steps, knocked_HWC=knocked_HWC, preview=None,
        distance=distance(whole_HWC, knocked_HWC),
    )  # fmt: skip


def _reporting(job: KnockOutJob, before: int) -> "Callable[..., None]":
    """A progress whose steps come after `before` others."""

    def report(done: float, _total: float, note: str, /, preview: Preview | None = None) -> None:
        if job.stopping:
            raise Cancelled
        changes: dict[str, object] = {"note": note}
        if note == "note.denoising":
            changes["done"] = before + done
        if preview is not None:
            changes["preview"] = preview
        job.update(**changes)

    return report
