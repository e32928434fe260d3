"""The only owner of the accelerator: one thread, one model in memory, one call at a time."""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from zimage_studio.errors import BusyError, Cancelled, UserError, bare
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.job import JobRecord
from zimage_studio.records.memory import EXACT, Measurement, MemoryProfile, SwitchState, needs_reload
from zimage_studio.records.progress import Progress
from zimage_studio.records.request import GenerationRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zimage_studio.core.engine import LoadedModel
    from zimage_studio.core.sampling import Sample

log = logging.getLogger(__name__)
T = TypeVar("T")

HEARTBEAT_S = 1.0
BREATH_S = 0.001
Phase = Literal["empty", "loading", "ready", "generating", "lent", "failed"]


class Engine(Protocol):
    """What the manager needs from core.engine; a test may bring its own."""

    def load(
        self, artifact: ModelArtifact, parts: Path | None, progress: Progress, profile: MemoryProfile = EXACT
    ) -> "LoadedModel": ...

    def fit(self, model: "LoadedModel", profile: MemoryProfile) -> None: ...

    def draw(
        self,
        model: "LoadedModel",
        request: GenerationRequest,
        progress: Progress,
        source_HWC: "NDArray[np.uint8] | None" = None,
        rung: str = "",
    ) -> "Sample": ...

    def look(self, model: "LoadedModel", size: tuple[int, int] | None = None) -> tuple[SwitchState, ...]: ...

    def weights_bytes(self, model: "LoadedModel") -> int: ...

    def measure(
        self,
        model: "LoadedModel",
        request: GenerationRequest,
        progress: Progress,
        reference_HWC: "NDArray[np.uint8] | None" = None,
    ) -> "tuple[Measurement, NDArray[np.uint8]]": ...

    def device(self) -> str: ...

    def collect(self) -> None: ...

    def close(self) -> None: ...

    def stack(self) -> dict[str, str]: ...


class ModelSource(Protocol):
    """Where the manager finds models: services.models.ModelService."""

    def get(self, key: str) -> ModelArtifact: ...

    def identity(self, artifact: ModelArtifact, progress: Progress) -> ModelArtifact: ...

    def parts_for(self, artifact: ModelArtifact) -> Path | None: ...


@dataclass(frozen=True, slots=True)
class ManagerState:
    """What a person may read about the device: the phase, the model, and how far a loading is (0..1)."""

    phase: Phase = "empty"
    model: str = ""
    note: str = ""
    fraction: float = 0.0
    why: UserError | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the pipeline in memory answered when a job last began or ended.

    `device` is `cpu` or `cuda`; `weights_bytes` are in memory.
    """

    model: str
    profile: MemoryProfile
    states: tuple[SwitchState, ...]
    device: str
    weights_bytes: int


@dataclass(slots=True)
class CallMeter:
    """Counts calls inside the pipeline. A second one at the same time is a bug: it fails, and `peak` tells."""

    inside: int = 0
    peak: int = 0
    total: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        with self._lock:
            self.inside += 1
            self.total += 1
            self.peak = max(self.peak, self.inside)
            together = self.inside
        try:
            if together > 1:
                raise RuntimeError(f"{together} pipeline calls at once")
            yield
        finally:
            with self._lock:
                self.inside -= 1


class PipelineManager:
    """Holds one model and lends it to the work that runs on its own thread.

    Work is submitted and runs in order; inside it, `with manager.borrow(key) as lent:` gives the model, loading it
    first if another one is in memory. Nobody keeps what was lent.
    """

    def __init__(self, make_engine: Callable[[], Engine], models: ModelSource) -> None:
        self._make_engine = make_engine
        self._models = models
        self._engine: Engine | None = None
        self._loaded: LoadedModel | None = None
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._state = ManagerState()
        self._snapshot: Snapshot | None = None
        self._changed = True
        self._lent_to = ""
        self._refusal: BusyError | None = None
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="pipeline-owner", daemon=True)
        self.meter = CallMeter()

    def start(self) -> None:
        """Start the owner thread. Nothing is imported or loaded until the first work."""
        self._thread.start()

    @property
    def state(self) -> ManagerState:
        """The present state; a new object for every change."""
        return self._state

    @property
    def snapshot(self) -> Snapshot | None:
        """The last known states of the pipeline; None before the first loan."""
        return self._snapshot

    @property
    def has_engine(self) -> bool:
        """Whether the engine, and torch with it, has been imported."""
        return self._engine is not None

    def import_engine(self) -> None:
        """Return once the engine, and torch with it, has been imported, which only the owner thread does."""
        if self._engine is None:
            self.submit(self._require_engine).result()

    @property
    def accelerated(self) -> bool:
        """Whether the model has a memory beside RAM. Owner thread only."""
        return self._require_engine().device() != "cpu"

    def look(self, size: tuple[int, int] | None = None) -> Snapshot | None:
        """The states of the pipeline now, for a picture of `size` (px). Owner thread only; None without a model."""
        loaded, engine = self._loaded, self._engine
        if loaded is None or engine is None:
            return None
        states = engine.look(loaded, size)
        return Snapshot(loaded.artifact.key, loaded.profile, states, engine.device(), engine.weights_bytes(loaded))

    @property
    def heartbeat_age_s(self) -> float:
        """Seconds since the owner thread last showed a sign of life (idle tick, step or loading progress)."""
        return time.monotonic() - self._beat

    @property
    def alive(self) -> bool:
        """Whether the owner thread runs."""
        return self._thread.is_alive()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Queue `work` for the owner thread."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - handed on to whoever waits for the future
                future.set_exception(error)
            else:
                future.set_result(result)

        self._work.put(run)
        return future

    @contextlib.contextmanager
    def borrow(self, key: str, progress: Progress, profile: MemoryProfile = EXACT) -> Iterator["Lent"]:
        """Lend the model `key`, under `profile`, to the work now running on the owner thread.

        Raises ModelError when it cannot be loaded, OutOfMemoryError when it does not fit under `profile`; the device
        is then empty and the next borrow tries afresh. Raises BusyError while the device is lent to a job.
        """
        if threading.current_thread() is not self._thread:
            raise RuntimeError("borrow() belongs to the owner thread: submit() the work.")
        self.refuse_if_lent()
        loaded = self._ready(key, profile, self._watched(progress))
        if self._changed:  # looking takes a tenth of the time of a small picture
            self._look()
        self._state = ManagerState("generating", loaded.artifact.key)
        try:
            yield Lent(loaded, self._require_engine(), self.meter, self._watched(progress))
        finally:
            self._state = ManagerState("ready", loaded.artifact.key)
            self.submit(self._look_after)  # a ladder may stand on another rung now

    def _look_after(self) -> None:
        """Look once the picture is handed over: looking holds the interpreter, and whoever waits goes first."""
        time.sleep(BREATH_S)
        self._look()

    def _look(self) -> None:
        """Nobody waits for this future: what goes wrong is in the log, and the next loan looks again."""
        try:
            self._snapshot, self._changed = self.look() or self._snapshot, False
        except Exception:
            self._changed = True
            log.exception("the pipeline could not be looked at")

    def lend(self, job: JobRecord) -> None:
        """Leave the accelerator to a job: the model in memory goes, and borrow() is refused until `take_back`.

        Returns when the work before it has ended and the memory is free. On the CPU nothing is lent: both only get
        slower. Idempotent; any thread but the owner's.
        """
        if self.alive and self._lent_to != job.id:
            self.submit(lambda: self._leave_to(job)).result()

    def take_back(self) -> None:
        """The job is over: the next borrow() loads again. Idempotent."""
        self._lent_to, self._refusal = "", None
        if self._state.phase == "lent":
            self._state = ManagerState()

    def refuse_if_lent(self) -> None:
        """Raise BusyError (device_lent), naming the job, while the device is lent."""
        if self._refusal is not None:
            raise bare(self._refusal)

    def _leave_to(self, job: JobRecord) -> None:
        self._lent_to = job.id
        engine = self._require_engine()
        if engine.device() == "cpu":
            return
        self._loaded = None
        engine.close()
        engine.collect()
        self._refusal = BusyError("device_lent", job=job.kind, name=job.model)
        self._state = ManagerState("lent", job.model, f"field.{job.kind}", why=bare(self._refusal))

    def close(self, timeout_s: float) -> bool:
        """Finish the queued work and end the thread. False when it did not end in time."""
        self._work.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            self._beat = time.monotonic()
            try:
                work = self._work.get(timeout=HEARTBEAT_S)
            except queue.Empty:
                continue
            if work is None:
                self._let_go()
                return
            work()

    def _let_go(self) -> None:
        """The end: what lies on disk for the model in memory is removed with it."""
        self._loaded = None
        if self._engine is not None:
            self._engine.close()

    def _watched(self, progress: Progress) -> Progress:
        """`progress`, also keeping the heartbeat."""

        def report(done: float, total: float, note: str, /, preview: object = None) -> None:
            self._beat = time.monotonic()
            progress(done, total, note, preview)  # type: ignore[arg-type]

        return report

    def _require_engine(self) -> Engine:
        if self._engine is None:
            self._engine = self._make_engine()
        return self._engine

    def _ready(self, key: str, profile: MemoryProfile, progress: Progress) -> "LoadedModel":
        artifact = self._models.get(key)
        loaded, self._loaded = self._loaded, None  # whatever goes wrong now, half a model is not kept
        if loaded is not None and loaded.artifact.key == artifact.key:
            if loaded.profile.same_switches(profile):
                self._loaded = loaded
                return loaded
            self._changed = True
            if not needs_reload(loaded.profile, profile):
                self._fit(loaded, profile)
                return loaded
        loaded, self._changed = None, True  # freed before the next one is loaded, or both must fit

        def report(done: float, total: float, note: str, /, preview: object = None) -> None:
            fraction = done / total if total else 0.0
            self._state = ManagerState("loading", artifact.key, note, fraction)
            progress(done, total, note)

        try:
            report(0, 1, "note.importing")
            engine = self._require_engine()
            engine.collect()
            artifact = self._models.identity(artifact, report)
            self._loaded = engine.load(artifact, self._models.parts_for(artifact), report, profile)
        except UserError as error:
            self._state = ManagerState("failed", artifact.key, why=bare(error))
            raise
        except Cancelled:
            self._state = ManagerState()
            raise
        except BaseException:
            self._state = ManagerState("failed", artifact.key)
            raise
        log.info("model ready: %s", artifact.key)
        return self._loaded

    def _fit(self, loaded: "LoadedModel", profile: MemoryProfile) -> None:
        """Bring what is loaded under `profile`; where that fails it is not kept."""
        try:
            self._require_engine().fit(loaded, profile)
        except UserError as error:
            self._state = ManagerState("failed", loaded.artifact.key, why=bare(error))
            raise
        except BaseException:
            self._state = ManagerState("failed", loaded.artifact.key)
            raise
        self._loaded = loaded


@dataclass(frozen=True, slots=True)
class Lent:
    """A model on loan: valid inside the `with` block only."""

    model: "LoadedModel"
    engine: Engine
    meter: CallMeter
    progress: Progress

    def draw(
        self, request: GenerationRequest, source_HWC: "NDArray[np.uint8] | None" = None, rung: str = ""
    ) -> "Sample":
        """One image; `source_HWC` are the pixels of `request.source`, `rung` is where a replay begins."""
        with self.meter.call():
            return self.engine.draw(self.model, request, self.progress, source_HWC, rung)

    def measure(
        self, request: GenerationRequest, reference_HWC: "NDArray[np.uint8] | None" = None
    ) -> "tuple[Measurement, NDArray[np.uint8]]":
        """One image measured, and its pixels; the distance is to `reference_HWC`."""
        with self.meter.call():
            return self.engine.measure(self.model, request, self.progress, reference_HWC)
