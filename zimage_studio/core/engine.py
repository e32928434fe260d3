"""What the services need from torch, behind one small interface: load a model, draw with it, let it go."""

import gc
import platform
from collections.abc import Mapping
from dataclasses import dataclass
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
from zimage_studio.core.preview import LatentToRgb
from zimage_studio.core.sampling import Sample, sample
from zimage_studio.errors import OutOfMemoryError
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.progress import Progress
from zimage_studio.records.request import GenerationRequest


@dataclass(slots=True)
class LoadedModel:
    """A pipeline in memory and what was measured about it while loading."""

    artifact: ModelArtifact
    pipeline: ZImagePipeline
    to_rgb: LatentToRgb
    scheduler_config: Mapping[str, Any]


class TorchEngine:
    """Loads and draws on one device. Not thread-safe: the manager calls it from its one thread."""

    def __init__(self, *, device: str = "auto", hub_cache: Path | None = None) -> None:
        self._device = device
        self._hub_cache = hub_cache

    def load(self, artifact: ModelArtifact, parts: Path | None, progress: Progress) -> LoadedModel:
        """Read `artifact` from disk onto the device. `parts` lends what a transformer-only file lacks."""
        pipeline = load_pipeline(
            artifact, device=self._device, dtypes=None, parts=parts, hub_cache=self._hub_cache, progress=progress
        )
        pipeline.set_progress_bar_config(disable=True)
        return LoadedModel(artifact, pipeline, LatentToRgb.fit(pipeline.vae), dict(pipeline.scheduler.config))

    def draw(
        self,
        model: LoadedModel,
        request: GenerationRequest,
        progress: Progress,
        source_HWC: NDArray[np.uint8] | None = None,
    ) -> Sample:
        """One image. Raises what `sampling.sample` raises, with out-of-memory as a UserError."""
        try:
            return sample(
                model.pipeline,
                request,
                scheduler_config=model.scheduler_config,
                to_rgb=model.to_rgb,
                progress=progress,
                source_HWC=source_HWC,
            )
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
