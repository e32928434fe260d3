"""Knock-outs on the live pipeline: one request drawn with and without chosen blocks, halves and heads."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from zimage_studio.records.memory import EXACT, MemoryProfile
from zimage_studio.records.progress import Preview
from zimage_studio.records.request import GenerationRequest
from zimage_studio.records.sensitivity import Knock
from zimage_studio.services.manager import Lent, PipelineManager
from zimage_studio.services.watched import View, Watched

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zimage_studio.core.comparison import Distance


@dataclass(frozen=True, slots=True)
class KnockOutView(View):
    """One moment of a knock-out.

    `done` of `total` counts steps of both pictures. `whole_HWC` is drawn by the model as it is, `knocked_HWC` without
    what was knocked out, both (H, W, 3) uint8 and None until they are there. They are for looking at, and kept nowhere:
    no recipe could make the second one again. `distance` is between the two.
    """

    done: float = 0
    total: float = 1
    whole_HWC: "NDArray[np.uint8] | None" = None
    knocked_HWC: "NDArray[np.uint8] | None" = None
    distance: "Distance | None" = None
    preview: Preview | None = None


class KnockOutJob(Watched[KnockOutView, KnockOutView]):
    """A knock-out on its way."""

    def __init__(self, request: GenerationRequest, knocks: tuple[Knock, ...], model: str, session: str) -> None:
        super().__init__(KnockOutView(total=2 * request.steps), session)
        self.request = request
        self.knocks = knocks
        self.model = model

    def outcome(self, view: KnockOutView) -> KnockOutView:
        """The last view: both pictures and their distance."""
        return view


def start_knock_out(
    job: KnockOutJob,
    manager: PipelineManager,
    profile_of: Callable[[str], MemoryProfile] = lambda _model: EXACT,
    whole: "NDArray[np.uint8] | None" = None,
) -> None:
    """Queue a knock-out; `profile_of` names the memory profile of a model. `whole` is the first picture, if known."""

    def run() -> None:
        job.update(state="running", note="note.starting")
        with job.ends_when_raised():
            job.go_on()
            with manager.borrow(job.model, _reporting(job, 0), profile_of(job.model)) as lent:
                _draw_both(job, lent, whole)

    manager.submit(run)


def _draw_both(job: KnockOutJob, lent: Lent, whole_HWC: "NDArray[np.uint8] | None") -> None:
    from zimage_studio.core.comparison import distance
    from zimage_studio.core.pruning.knockout import knocked

    if whole_HWC is None:
        whole_HWC = replace(lent, progress=_reporting(job, 0)).draw(job.request).pixels_HWC
    job.update(whole_HWC=whole_HWC, done=job.request.steps, preview=None)
    with knocked(lent.model.pipeline.transformer, job.knocks):
        knocked_HWC = replace(lent, progress=_reporting(job, job.request.steps)).draw(job.request).pixels_HWC
    both = distance(whole_HWC, knocked_HWC)
    job.end("done", done=2 * job.request.steps, knocked_HWC=knocked_HWC, preview=None, distance=both)


def _reporting(job: KnockOutJob, before: int) -> "Callable[..., None]":
    """A progress whose steps come after `before` others."""

    def report(done: float, _total: float, note: str, /, preview: Preview | None = None) -> None:
        job.go_on()
        changes: dict[str, object] = {"note": note}
        if note == "note.denoising":
            changes["done"] = before + done
        if preview is not None:
            changes["preview"] = preview
        job.update(**changes)

    return report
