"""Generation jobs: a bounded queue in front of the manager, progress anyone can watch, a stop, a kept result."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from zimage_studio.errors import BusyError, OutOfMemoryError, UserError, bare
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.memory import EXACT, MemoryProfile
from zimage_studio.records.progress import Preview
from zimage_studio.records.recipe import ModelIdentity, Outcome, Recipe
from zimage_studio.records.recovery import rungs_below
from zimage_studio.records.request import Batch, GenerationRequest, parse_batch
from zimage_studio.services.images import ImageStore, StoredImage
from zimage_studio.services.manager import Lent, PipelineManager
from zimage_studio.services.models import ModelService
from zimage_studio.services.sources import SourceStore
from zimage_studio.services.watched import State, View, Watched

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zimage_studio.core.sampling import Sample

log = logging.getLogger(__name__)

KEPT_JOBS = 500
FIRST_GUESS_S = 10.0


@dataclass(frozen=True, slots=True)
class JobView(View):
    """One moment of a job.

    `done` of `total` counts steps of the image `index` (from 0) of `count`; `seconds_left` is for the whole job,
    None until a step has been timed. `ahead` is how many jobs run or wait before this one. `recovered` names the rungs
    of records.recovery that were taken because memory ran out; the message `recovery.<name>` says each.
    """

    ahead: int = 0
    done: float = 0
    total: float = 0
    index: int = 0
    count: int = 1
    seconds_left: float | None = None
    preview: Preview | None = None
    images: tuple[StoredImage, ...] = ()
    recovered: tuple[str, ...] = ()


class GenerationJob(Watched[JobView, tuple[StoredImage, ...]]):
    """A batch on its way."""

    def __init__(
        self,
        batch: Batch,
        model: str,
        session: str,
        parent: str | None = None,
        profile: MemoryProfile | None = None,
        rung: str = "",
    ) -> None:
        super().__init__(JobView(count=batch.count), session)
        self.batch = batch
        self.model = model
        self.parent = parent
        self.profile = profile
        self.rung = rung

    def outcome(self, view: JobView) -> tuple[StoredImage, ...]:
        """The images."""
        return view.images

    def end(self, state: State, **changes: object) -> None:
        """Move on to the last view."""
        super().end(state, preview=None, seconds_left=None, **changes)


class GenerationService:
    """Takes requests of every door, runs them one after the other, keeps the images."""

    def __init__(
        self,
        manager: PipelineManager,
        models: ModelService,
        images: ImageStore,
        sources: SourceStore,
        *,
        max_waiting: int = 16,
        max_waiting_per_session: int = 4,
        usual_profile: Callable[[], MemoryProfile | None] = lambda: EXACT,
        fit_to: Callable[[str], MemoryProfile] = lambda model: EXACT,
    ) -> None:
        """`usual_profile` is that of a job that names none; where it is None, `fit_to` finds one for the model,
        on the owner thread."""
        self._manager = manager
        self._models = models
        self._images = images
        self._sources = sources
        self._max_waiting = max_waiting
        self._max_waiting_per_session = max_waiting_per_session
        self._usual_profile = usual_profile
        self._fit_to = fit_to
        self._jobs: OrderedDict[str, GenerationJob] = OrderedDict()
        self._lock = threading.Lock()
        self._job_seconds = FIRST_GUESS_S
        self._closed = False
        self._saver = ThreadPoolExecutor(1, thread_name_prefix="image-saver")

    @property
    def usual_profile(self) -> MemoryProfile:
        """The profile of a job that names none; `exact` where it is found for each model."""
        return self._usual_profile() or EXACT

    def submit(
        self,
        values: Mapping[str, object],
        *,
        model: str,
        session: str = "local",
        parent: str | None = None,
        profile: MemoryProfile | None = None,
        rung: str = "",
    ) -> GenerationJob:
        """Validate `values` (see records.request.parse_batch) and queue them for `model` under `profile`.

        Without a profile it is the one in use now. `rung` is where a replay begins on the ladder of precisions.

        Raises InvalidInputError, UserError (unknown model, no start picture, no disk space) or BusyError (queue full,
        stopping, the device is lent to a job).
        """
        artifact = self._models.get(model)
        batch = parse_batch(values, artifact.defaults)
        if batch.first.source is not None:
            self._sources.path(batch.first.source)
        self._images.check_space()
        self._manager.refuse_if_lent()
        job = GenerationJob(
            batch, artifact.key, session, parent, self._usual_profile() if profile is None else profile, rung
        )
        with self._lock:
            self._refuse_if_full(session)
            self._jobs[job.id] = job
            self._forget_old()
        self._manager.submit(lambda: self._run(job))
        self._tell_places()
        return job

    def job(self, job_id: object, session: str) -> GenerationJob:
        """The job `job_id` of `session`. Raises UserError, with the same words for a foreign job and for none."""
        job = self._jobs.get(job_id) if isinstance(job_id, str) else None
        if job is None or job.session != session:
            raise UserError("unknown_job")
        return job

    def stop(self, session: str) -> int:
        """Stop every unfinished job of `session`; returns how many were asked to."""
        mine = [job for job in self._unfinished() if job.session == session]
        for job in mine:
            self.stop_job(job)
        return len(mine)

    def stop_job(self, job: GenerationJob) -> None:
        """Stop one job."""
        job.stop()
        if job.view.state == "waiting":
            job.end("stopped")
            self._tell_places()

    def close(self) -> None:
        """Take no new work; what waits is stopped, what runs goes on."""
        self._closed = True
        for job in self._unfinished():
            if job.view.state == "waiting":
                self.stop_job(job)

    def drain(self, timeout_s: float) -> bool:
        """Wait for what runs; when time is up, stop it at its next step. False when it had to be stopped."""
        deadline = time.monotonic() + timeout_s
        in_time = True
        for job in self._unfinished():
            while not job.view.finished:
                left = deadline - time.monotonic()
                if left <= 0:
                    in_time = False
                    job.stop()
                    left = 2.0
                view = job.wait_change(job.view.version, min(left, 2.0))
                if not in_time and not view.finished and time.monotonic() > deadline + timeout_s:
                    return False
        return in_time

    def _unfinished(self) -> list[GenerationJob]:
        with self._lock:
            return [job for job in self._jobs.values() if not job.view.finished]

    def _refuse_if_full(self, session: str) -> None:
        if self._closed:
            raise BusyError("stopping")
        waiting = [job for job in self._jobs.values() if job.view.state == "waiting"]
        if len(waiting) >= self._max_waiting:
            raise BusyError("queue_full", waiting=len(waiting), seconds=max(1, round(len(waiting) * self._job_seconds)))
        mine = sum(job.session == session for job in waiting)
        if mine >= self._max_waiting_per_session:
            raise BusyError("session_queue_full", waiting=mine, high=self._max_waiting_per_session)

    def _forget_old(self) -> None:
        """Finished jobs beyond the newest 500 are forgotten; their images stay in the store."""
        for job_id in [i for i, job in self._jobs.items() if job.view.finished][: max(0, len(self._jobs) - KEPT_JOBS)]:
            del self._jobs[job_id]

    def _tell_places(self) -> None:
        """Tell each waiting job how many are before it."""
        for ahead, job in enumerate(self._unfinished()):
            if job.view.state == "waiting" and job.view.ahead != ahead:
                job.update(ahead=ahead)

    def _run(self, job: GenerationJob) -> None:
        """On the owner thread: one job from start to its only final state."""
        if job.view.finished:
            return
        job.update(state="running", ahead=0, note="note.starting")
        self._tell_places()
        started = time.perf_counter()
        with job.ends_when_raised():
            images = self._draw_all(job)
            self._job_seconds = 0.5 * self._job_seconds + 0.5 * (time.perf_counter() - started)
            job.end("done", images=images)
        self._tell_places()

    def _draw_all(self, job: GenerationJob) -> tuple[StoredImage, ...]:
        """All images of the job. Where memory runs out, under the next profile down, and the next."""
        watch = _StepWatch(job)
        profile = job.profile or self._fit_to(job.model)
        below = None
        while True:
            try:
                return self._draw_rest(job, watch, profile)
            except OutOfMemoryError as error:
                failure = bare(error)
            # outside the except block: its traceback pins the model and the tensors of the failed image
            below = below or rungs_below(profile, accelerated=self._manager.accelerated)
            rung, profile = next(below, (None, profile))
            if rung is None:
                raise failure
            log.warning("job %s: %s Trying %s.", job.id, failure, rung.name)
            watch.recover(rung.name)

    def _draw_rest(self, job: GenerationJob, watch: "_StepWatch", profile: MemoryProfile) -> tuple[StoredImage, ...]:
        """The images of the job that are not there yet."""
        source = job.batch.first.source
        source_HWC = None if source is None else self._sources.pixels(source)
        with self._manager.borrow(job.model, watch.report, profile) as lent, self._keeping(job) as keep:
            for index, request in enumerate(job.batch):
                if index < len(job.view.images):
                    continue
                watch.next_image(index)
                sample = lent.draw(request, source_HWC, job.rung)
                keep(sample.pixels_HWC, _recipe(job, index, request, sample, lent))
        return job.view.images

    @contextmanager
    def _keeping(self, job: GenerationJob) -> Iterator[Callable[["NDArray[np.uint8]", Recipe], None]]:
        """Save each image on another thread while the next one is drawn; the block ends when all are saved.

        A failure to save is raised at the next image, or at the end, before whatever else the block raised. Only one
        image waits to be saved: a full disk costs one drawing, not a batch.
        """
        pending: Future[None] | None = None

        def save(pixels_HWC: "NDArray[np.uint8]", recipe: Recipe) -> None:
            stored = self._images.add(pixels_HWC, recipe)
            job.update(images=(*job.view.images, stored))

        def keep(pixels_HWC: "NDArray[np.uint8]", recipe: Recipe) -> None:
            nonlocal pending
            before, pending = pending, None
            if before is not None:
                before.result()
            pending = self._saver.submit(save, pixels_HWC, recipe)

        try:
            yield keep
        finally:
            if pending is not None:
                if not pending.done():
                    job.update(note="note.saving")
                pending.result()


def _recipe(job: GenerationJob, index: int, request: GenerationRequest, sample: "Sample", lent: Lent) -> Recipe:
    """How the image `index` of the job, just drawn, can be made again."""
    numerics = sample.numerics
    if job.view.recovered:
        numerics = replace(numerics, memory={**numerics.memory, "out_of_memory": list(job.view.recovered)})
    return Recipe(
        request=request,
        model=_identity(lent.model.artifact),
        numerics=numerics,
        stack=lent.engine.stack(),
        outcome=Outcome(
            pixels_sha256=sample.pixels_sha256, latents_sha256=sample.latents_sha256, seconds=sample.seconds
        ),
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        job=job.id,
        index=index,
        parent=job.parent or request.source,
    )


def _identity(artifact: ModelArtifact) -> ModelIdentity:
    if artifact.sha256 is None:
        raise RuntimeError(f"{artifact.key} was loaded without its hash")
    return ModelIdentity(key=artifact.key, name=artifact.name, sha256=artifact.sha256, parent=artifact.parent)


class _StepWatch:
    """Turns progress of the engine into job views: steps, time left, previews; and carries the stop inwards."""

    def __init__(self, job: GenerationJob) -> None:
        self._job = job
        self._steps_before = 0
        self._step_started: float | None = None
        self._step_seconds: float | None = None
        self._steps_each = job.batch.first.steps - job.batch.first.skipped_steps
        self._steps_total = job.batch.count * self._steps_each

    def next_image(self, index: int) -> None:
        """The image `index` begins."""
        self._steps_before = index * self._steps_each
        self._step_started = None
        self._job.update(index=index)

    def recover(self, rung: str) -> None:
        """Memory ran out; `rung` comes next. Raises Cancelled after a stop."""
        self._job.go_on()
        self._job.update(note=f"recovery.{rung}", recovered=(*self._job.view.recovered, rung), preview=None)

    def report(self, done: float, total: float, note: str, /, preview: Preview | None = None) -> None:
        """Take in one unit of progress. Raises Cancelled after a stop."""
        self._job.go_on()
        left = self._time_step(done) if note in ("note.encoding", "note.denoising") else None
        changes: dict[str, object] = {"done": done, "total": total, "note": note, "seconds_left": left}
        if preview is not None:
            changes["preview"] = preview
        self._job.update(**changes)

    def _time_step(self, done: float) -> float | None:
        now = time.perf_counter()
        if self._step_started is not None and done > 0:
            took = now - self._step_started
            self._step_seconds = took if self._step_seconds is None else 0.7 * self._step_seconds + 0.3 * took
        self._step_started = now
        if self._step_seconds is None:
            return None
        return (self._steps_total - self._steps_before - done) * self._step_seconds
