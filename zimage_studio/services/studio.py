"""The one place where everything is wired."""

import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace

from zimage_studio.errors import UserError
from zimage_studio.services.compression import CompressionService
from zimage_studio.services.generation import GenerationService
from zimage_studio.services.grids import GridService
from zimage_studio.services.images import ImageStore
from zimage_studio.services.jobs import JobService
from zimage_studio.services.manager import Engine, PipelineManager
from zimage_studio.services.memory import MemoryService
from zimage_studio.services.models import EMBEDDED_MODEL, ModelService
from zimage_studio.services.replay import ReplayService
from zimage_studio.services.sources import SourceStore
from zimage_studio.settings import Settings

log = logging.getLogger(__name__)

HEARTBEAT_LIMIT_S = 5.0
JOB_STOP_S = 10.0
"""How long a job may take to its checkpoint when Studio ends; later it is killed, and loses at most a minute."""


@dataclass(frozen=True, slots=True)
class Studio:
    """All services. Every door is handed one of these and nothing else."""

    settings: Settings
    models: ModelService
    manager: PipelineManager
    images: ImageStore
    sources: SourceStore
    generation: GenerationService
    replay: ReplayService
    grids: GridService
    memory: MemoryService
    jobs: JobService
    compression: CompressionService

    head_start_s: float = 0.0
    """How long the warm-up lets the first page go ahead: torch's import would compete with it."""

    def start(self) -> None:
        """Start the owner thread and the readouts, and load the default model behind the page."""
        self.memory.start()
        self.manager.start()
        self.jobs.start()
        self.manager.submit(self._warm_up).add_done_callback(_log_bug)

    def _warm_up(self) -> None:
        time.sleep(self.head_start_s)
        try:
            self.memory.warm_up(self.settings.model)
        except UserError:
            return  # the manager's state says why; the page shows it

    def not_ready(self) -> str:
        """Why no generation could run now, in one word; empty when one could."""
        state = self.manager.state
        if not self.manager.alive:
            return "stopped"
        if state.phase in ("empty", "loading", "failed"):
            return state.phase
        if self.manager.heartbeat_age_s > HEARTBEAT_LIMIT_S and state.phase != "generating":
            return "stuck"
        free_mb = shutil.disk_usage(self.settings.data).free // 2**20
        return "disk" if free_mb < self.settings.disk_reserve_mb else ""

    def begin_stop(self) -> None:
        """Refuse new work from now on."""
        self.grids.close()
        self.generation.close()
        self.memory.begin_stop()

    def finish(self, timeout_s: float) -> bool:
        """Let the running image finish; after `timeout_s` stop it at its next step. False when it was stopped."""
        return self.generation.drain(timeout_s)

    def close(self) -> None:
        """End the readouts and the owner thread, and close the image store."""
        self.jobs.close(JOB_STOP_S)
        self.memory.close()
        self.manager.close(timeout_s=5.0)
        self.images.close()


def _log_bug(warm_up: "Future[None]") -> None:
    """Nobody waits for the warm-up: what it did not expect goes to the log, and the state says failed."""
    if (error := warm_up.exception()) is not None:
        log.error("the default model could not be loaded", exc_info=error)


def torch_engine(settings: Settings) -> Engine:
    """The real engine. Imported here, on the owner thread, so that the page is up before torch is."""
    from zimage_studio.core.torch_environment import prepare_torch

    prepare_torch()
    from zimage_studio.core.engine import TorchEngine

    data = settings.data
    return TorchEngine(hub_cache=data / "hub", scratch=data / "scratch", compacts=data / "compact")


def build_studio(settings: Settings, make_engine: Callable[[Settings], Engine] = torch_engine) -> Studio:
    """Wire the services together; nothing is loaded until `start()`. Tests may bring their own engine.

    `settings.model` may be a path or a hub id here: whoever starts Studio may name any model. In the Studio that is
    returned it is the model's key. Raises ModelError or UserError when there is no such model.
    """
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    images = ImageStore(settings.data / "images", reserve_mb=settings.disk_reserve_mb)
    sources = SourceStore(settings.data / "sources", images)
    models = ModelService(
        data=settings.data, folders=settings.models, embedded=EMBEDDED_MODEL, offline=settings.offline
    )
    settings = replace(settings, model=models.get(settings.model, allow_paths=True).key)
    manager = PipelineManager(lambda: make_engine(settings), models)
    memory = MemoryService(
        data=settings.data, default=settings.profile, model=settings.model, manager=manager, models=models
    )
    generation = GenerationService(
        manager,
        models,
        images,
        sources,
        max_waiting=settings.max_waiting,
        max_waiting_per_session=settings.max_waiting_per_session,
        usual_profile=lambda: memory.settled,
        fit_to=memory.fit_to,
    )
    to_processes = {"models": [str(folder) for folder in settings.models], "offline": settings.offline}
    jobs = JobService(settings.data, settings=to_processes, device=manager)
    return Studio(
        settings=settings,
        models=models,
        manager=manager,
        images=images,
        sources=sources,
        generation=generation,
        replay=ReplayService(generation, models),
        grids=GridService(settings.data / "grids", generation, images),
        memory=memory,
        jobs=jobs,
        compression=CompressionService(data=settings.data, models=models, jobs=jobs, manager=manager, memory=memory),
    )
