"""One replay from the press of the button to its verdict, as the moments that a page shows."""

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from zimage_studio.errors import Cancelled, ModelError
from zimage_studio.records.progress import Preview
from zimage_studio.services.generation import GenerationJob, JobView
from zimage_studio.services.images import StoredImage
from zimage_studio.services.replay import Judgement, Original
from zimage_studio.services.studio import Studio
from zimage_studio.ui import present
from zimage_studio.ui.texts import Texts
from zimage_studio.ui.watching import FRAME_S, Moment, moments


@dataclass(frozen=True, slots=True)
class Missing:
    """The weights of the recipe are not here: why, which hash is wanted, and the key of the nearest model."""

    error: ModelError
    wanted: str
    nearest: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The new image, and what became of the old one."""

    made: StoredImage
    judgement: Judgement


@dataclass(slots=True)
class _Search:
    """Looking for the weights hashes what was never hashed, which takes a while with large models."""

    view: JobView = field(default_factory=lambda: JobView(state="running", note="note.hashing"))
    stop: threading.Event = field(default_factory=threading.Event)

    def report(self, done: float, total: float, note: str, /, preview: Preview | None = None) -> None:
        """Take in how far it is. Raises Cancelled after a stop."""
        if self.stop.is_set():
            raise Cancelled
        self.view = JobView(state="running", note=note, done=done, total=total)


class ReplayRuns:
    """Starts replays and follows them; Stop reaches them also while they look for the weights."""

    def __init__(self, studio: Studio, t: Texts) -> None:
        self._studio = studio
        self._t = t
        self._searches: dict[str, _Search] = {}

    def stop(self, session: str) -> None:
        """Stop everything of this page."""
        if (search := self._searches.get(session)) is not None:
            search.stop.set()
        self._studio.generation.stop(session)

    def run(
        self, original: Original, overrides: Mapping[str, object], model: str | None, session: str
    ) -> Iterator[Moment | Missing | Finished]:
        """The moments until it is finished, missing its model, or stopped or failed (a Moment). Raises UserError."""
        search = _Search()
        self._searches[session] = search
        pool = ThreadPoolExecutor(1)
        try:
            starting: Future[GenerationJob] = pool.submit(
                self._studio.replay.start, original, search.report, overrides=overrides, model=model, session=session
            )
            while wait([starting], FRAME_S).not_done:
                yield Moment(search.view, present.stage_working(search.view, 1.0, self._t))
            job = starting.result()
        except Cancelled:
            stopped = JobView(state="stopped", note="note.stopped")
            yield Moment(stopped, present.stage_stopped(stopped, 1.0, self._t))
            return
        except ModelError as error:
            yield self._missing(error, original)
            return
        finally:
            search.stop.set()  # also when the page was closed meanwhile
            self._searches.pop(session, None)
            pool.shutdown(wait=False)
        yield from self._follow(job, original)

    def _follow(self, job: GenerationJob, original: Original) -> Iterator[Moment | Finished]:
        for moment in moments(job, self._t):
            if moment.view.finished and moment.view.images:
                made = moment.view.images[0]
                yield Finished(made, self._studio.replay.judge(original, made))
            else:
                yield moment

    def _missing(self, error: ModelError, original: Original) -> Missing:
        """Any other fault of a model is only told."""
        wanted = "" if original.recipe is None else original.recipe.model.sha256
        if not error.key.startswith("model_hash_"):
            raise error
        return Missing(error, wanted, str(error.values.get("nearest") or self._studio.settings.model))
