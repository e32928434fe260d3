"""A job as a page shows it: the picture forming, how far it is, and how it ended."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from zimage_studio.services.generation import GenerationJob, JobView
from zimage_studio.ui import present
from zimage_studio.ui.doors import plain_toast, toast
from zimage_studio.ui.texts import Texts

FRAME_S = 0.1
WATCH_S = 5.0


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment of a job, and the stage that shows it; the stage is empty when there are images to show instead."""

    view: JobView
    html: str


def moments(job: GenerationJob, t: Texts) -> Iterator[Moment]:
    """The job from now on, at most ten moments a second; the last one is its end.

    A job does not need to be watched to run.
    """
    request = job.batch.first
    aspect = request.width / request.height
    view = last = job.view
    while not view.finished:
        yield Moment(view, present.stage_working(view, aspect, t))
        time.sleep(FRAME_S)
        last = view if view.preview is not None else replace(view, preview=last.preview)
        view = job.wait_change(view.version, WATCH_S)
    yield Moment(view, _ended(view, last, aspect, t))


def raise_failure(view: JobView, t: Texts) -> None:
    """Raise the toast of a job that failed; nothing otherwise."""
    if view.error is not None:
        raise toast(view.error, t)
    if view.state == "failed":
        raise plain_toast(t("stage_bug"), t)


def _ended(view: JobView, last: JobView, aspect: float, t: Texts) -> str:
    if view.images:
        return ""
    if view.state == "stopped":
        return present.stage_stopped(last, aspect, t)
    return present.stage_failed(view.error.text(t.lang) if view.error is not None else t("stage_bug"), t)
