"""What the services need from torch, behind one small interface: load a model, draw with it, let it go."""

import gc
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import ZImagePipeline
from numpy.typing import NDArray

from zimage_studio import __version__
from zimage_studio.core.loading import load_pipeline
from zimage_studio.core.memory.apply import Applied, apply
from zimage_studio.core.preview import LatentToRgb
from zimage_studio.core.sampling import Sample, sample
from zimage_studio.errors import OutOfMemoryError
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.memory import EXACT, PRECISIONS, MemoryProfile
from zimage_studio.records.progress import Progress
from zimage_studio.records.request import GenerationRequest


@dataclass(slots=True)
class LoadedModel:
    """A pipeline in memory and what was measured about it while loading."""

    artifact: ModelArtifact
    pipeline: ZImagePipeline
    to_rgb: LatentToRgb
    scheduler_config: Mapping[str, Any]
    applied: Applied

    @property
    def profile(self) -> MemoryProfile:
        """The memory profile that it is under."""
        return self.applied.profile


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class TorchEngine:
    """Loads and draws on one device. Not thread-safe: the manager calls it from its one thread."""

    def __init__(self, *, device: str = "auto", hub_cache: Path | None = None, scratch: Path | None = None) -> None:
        self._device = device
        self._hub_cache = hub_cache
        self._scratch = scratch

    def load(
        self, artifact: ModelArtifact, parts: Path | None, progress: Progress, profile: MemoryProfile = EXACT
    ) -> LoadedModel:
        """Read `artifact` from disk onto the device, under `profile`.

        `parts` lends what a transformer-only file lacks.
        """
        wishes = {name.removesuffix("_precision"): DTYPES.get(str(getattr(profile, name))) for name in PRECISIONS}
        pipeline = load_pipeline(
            artifact,
            device=self._device,
            dtypes={name: dtype for name, dtype in wishes.items() if dtype is not None},
            parts=parts,
            hub_cache=self._hub_cache,
            progress=progress,
        )
        pipeline.set_progress_bar_config(disable=True)
        to_rgb, scheduler = LatentToRgb.fit(pipeline.vae), dict(pipeline.scheduler.config)
        return LoadedModel(artifact, pipeline, to_rgb, scheduler, apply(pipeline, profile, scratch=self._scratch))

    def fit(self, model: LoadedModel, profile: MemoryProfile) -> None:
        """Bring a model that is loaded under `profile`; see `needs_reload` for what only loading again can do."""
        model.applied.undo()
        model.applied = apply(model.pipeline, profile, scratch=self._scratch)

    def draw(
        self,
        model: LoadedModel,
        request: GenerationRequest,
        progress: Progress,
        source_HWC: NDArray[np.uint8] | None = None,
    ) -> Sample:
        """One image. Raises what `sampling.sample` raises, with out-of-memory as a UserError."""
        try:
            drawn = sample(
                model.pipeline,
                request,
                scheduler_config=model.scheduler_config,
                to_rgb=model.to_rgb,
                progress=progress,
                source_HWC=source_HWC,
            )
            return replace(drawn, numerics=replace(drawn.numerics, memory=recorded(model.profile)))
        except (torch.OutOfMemoryError, MemoryError):
            pass  # the traceback pins the job's tensors: leave the block before freeing
        self.collect()
        raise OutOfMemoryError("out_of_memory", width=request.width, height=request.height)

    def collect(self) -> None:
        """Give freed memory back to the device."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

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


def recorded(profile: MemoryProfile) -> dict[str, object]:
    """What of `profile` a recipe keeps: the switches that may change numbers, and precisions that were chosen."""
    chosen = {name: getattr(profile, name) for name in PRECISIONS if getattr(profile, name) != "auto"}
    return {**profile.numerics, **chosen}
