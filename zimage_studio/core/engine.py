"""What the services need from torch, behind one small interface: load a model, draw with it, let it go."""

import gc
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import numpy as np
import torch
import transformers
from diffusers import ZImagePipeline
from numpy.typing import NDArray

from zimage_studio import __version__
from zimage_studio.core.compact import for_loading
from zimage_studio.core.loading import choose_device, component_dtypes, load_pipeline
from zimage_studio.core.memory.apply import Size, homes
from zimage_studio.core.memory.fitted import Fitted
from zimage_studio.core.memory.measure import measure, resident_weights
from zimage_studio.core.precision.ladder import RUNGS, load_dtypes
from zimage_studio.core.preview import LatentToRgb
from zimage_studio.core.sampling import Sample, sample
from zimage_studio.core.scratch import Scratch
from zimage_studio.errors import OutOfMemoryError
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.memory import EXACT, PRECISIONS, Measurement, MemoryProfile, SwitchState
from zimage_studio.records.progress import Progress
from zimage_studio.records.request import GenerationRequest


@dataclass(slots=True)
class LoadedModel:
    """A pipeline in memory and what was measured about it while loading."""

    artifact: ModelArtifact
    pipeline: ZImagePipeline
    to_rgb: LatentToRgb
    scheduler_config: Mapping[str, Any]
    fitted: Fitted

    @property
    def profile(self) -> MemoryProfile:
        """The memory profile that it is under."""
        return self.fitted.profile


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
T = TypeVar("T")
FIRST_RUNG = RUNGS["float16_scaled"]


class TorchEngine:
    """Loads and draws on one device. Not thread-safe: the manager calls it from its one thread."""

    def __init__(
        self,
        *,
        device: str = "auto",
        hub_cache: Path | None = None,
        scratch: Path | None = None,
        compacts: Path | None = None,
    ) -> None:
        self._device = device
        self._hub_cache = hub_cache
        self._scratch = None if scratch is None else Scratch(scratch)
        self._compacts = compacts

    def load(
        self, artifact: ModelArtifact, parts: Path | None, progress: Progress, profile: MemoryProfile = EXACT
    ) -> LoadedModel:
        """Read `artifact` from disk onto the device, under `profile`.

        `parts` lends what a transformer-only file lacks. The model loaded before must have been let go.
        """
        self.close()

        def load() -> LoadedModel:
            device = choose_device(self._device)
            pipeline = load_pipeline(
                artifact,
                device=self._device,
                homes=homes(profile, device),
                dtypes=_dtypes(profile),
                parts=parts,
                hub_cache=self._hub_cache,
                compact=self._compact(artifact, profile, progress),
                progress=progress,
            )
            pipeline.set_progress_bar_config(disable=True)
            to_rgb, scheduler = LatentToRgb.fit(pipeline.vae), dict(pipeline.scheduler.config)
            return LoadedModel(artifact, pipeline, to_rgb, scheduler, self._fitted(pipeline, profile))

        return self._freeing(load, "model_too_large", value=artifact.name)

    def _compact(self, artifact: ModelArtifact, profile: MemoryProfile, progress: Progress) -> Path | None:
        """The bfloat16 copy of a model whose transformer is to compute in bfloat16."""
        wanted = component_dtypes(choose_device(self._device), _dtypes(profile))["transformer"]
        if self._compacts is None or wanted != torch.bfloat16:
            return None
        return for_loading(artifact, self._compacts, progress)

    def fit(self, model: LoadedModel, profile: MemoryProfile) -> None:
        """Bring a model that is loaded under `profile`; see `needs_reload` for what only loading again can do.

        Raises OutOfMemoryError; the model is then under no profile, so load it again.
        """

        def fit() -> None:
            model.fitted.undo()
            model.fitted = self._fitted(model.pipeline, profile)

        self._freeing(fit, "model_too_large", value=model.artifact.name)

    def draw(
        self,
        model: LoadedModel,
        request: GenerationRequest,
        progress: Progress,
        source_HWC: NDArray[np.uint8] | None = None,
        rung: str = "",
    ) -> Sample:
        """One image. Raises what `sampling.sample` raises, with out-of-memory as a UserError.

        `rung` is where to begin on the ladder of precisions, for a replay; "" where the model stands.
        """

        def draw() -> Sample:
            return _draw(model, request, progress, source_HWC, rung)

        return self._freeing(draw, "out_of_memory", width=request.width, height=request.height)

    def look(self, model: LoadedModel, size: Size | None = None) -> tuple[SwitchState, ...]:
        """What every switch of its profile does, read from the live pipeline."""
        return model.fitted.look(size)

    def weights_bytes(self, model: LoadedModel) -> int:
        """Bytes of its weights in memory."""
        return resident_weights(model.pipeline)

    def measure(
        self,
        model: LoadedModel,
        request: GenerationRequest,
        progress: Progress,
        reference_HWC: NDArray[np.uint8] | None = None,
    ) -> tuple[Measurement, NDArray[np.uint8]]:
        """One image under the model's profile, measured after one for warming up; and its pixels (H, W, 3)."""

        def run() -> tuple[Measurement, NDArray[np.uint8]]:
            made: list[Sample] = []

            def draw() -> Sample:
                made[:] = [_draw(model, request, progress)]
                return made[0]

            found = measure(model.pipeline, model.fitted, draw, reference_HWC=reference_HWC)
            return found, made[0].pixels_HWC

        return self._freeing(run, "out_of_memory", width=request.width, height=request.height)

    def _fitted(self, pipeline: ZImagePipeline, profile: MemoryProfile) -> Fitted:
        scratch = None if self._scratch is None else self._scratch.path
        return Fitted(pipeline, profile, choose_device(self._device), scratch)

    def close(self) -> None:
        """Remove the weights of a model that was let go from the disk."""
        if self._scratch is not None:
            self._scratch.clear()

    def collect(self) -> None:
        """Give freed memory back to the device."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _freeing(self, work: Callable[[], T], key: str, **values: object) -> T:
        """`work()`. Where it runs out of memory, everything it held is freed before OutOfMemoryError is raised."""
        try:
            return work()
        except (torch.OutOfMemoryError, MemoryError):
            pass  # the traceback pins what the work held: leave the block before freeing
        self.collect()
        raise OutOfMemoryError(key, **values)

    def device(self) -> str:
        """Where it computes, as `cpu` or `cuda`."""
        return str(choose_device(self._device).type)

    def stack(self) -> dict[str, str]:
        """Versions of everything that can change pixels, and how the processor is used.

        Convolutions of the VAE on a CPU are summed in another order with another number of threads, or with wider
        vectors: the pixels then differ by 1 here and there.
        """
        return {
            "studio": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
            "platform": platform.platform(),
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "threads": str(torch.get_num_threads()),
        }


def _dtypes(profile: MemoryProfile) -> dict[str, torch.dtype]:
    """What to load the components as, where it is not the device's own choice."""
    wishes = {name.removesuffix("_precision"): DTYPES.get(str(getattr(profile, name))) for name in PRECISIONS}
    wanted = {name: dtype for name, dtype in wishes.items() if dtype is not None}
    return wanted | (load_dtypes(FIRST_RUNG) if profile.transformer_precision == "fp16" else {})


def _draw(
    model: LoadedModel,
    request: GenerationRequest,
    progress: Progress,
    source_HWC: NDArray[np.uint8] | None = None,
    rung: str = "",
) -> Sample:
    def once() -> Sample:
        return sample(
            model.pipeline,
            request,
            scheduler_config=model.scheduler_config,
            to_rgb=model.to_rgb,
            progress=progress,
            source_HWC=source_HWC,
        )

    drawn, facts = model.fitted.draw(once, start=rung)
    return replace(drawn, numerics=replace(drawn.numerics, memory={**recorded(model.profile), **facts}))


def recorded(profile: MemoryProfile) -> dict[str, object]:
    """What of `profile` a recipe keeps: the switches that may change numbers, and precisions that were chosen."""
    chosen = {name: getattr(profile, name) for name in PRECISIONS if getattr(profile, name) != "auto"}
    return {**profile.numerics, **chosen}
