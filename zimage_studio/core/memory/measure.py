"""Run one request and measure what it took: the peak of each phase, the time, the distance to a reference."""

import ctypes
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import torch
from diffusers import ZImagePipeline
from numpy.typing import NDArray

from zimage_studio.core.comparison import distance
from zimage_studio.core.memory.apply import Size, apply
from zimage_studio.core.memory.hooks import each_hook
from zimage_studio.core.memory.shapes import live_bytes
from zimage_studio.core.memory.site import COMPONENTS
from zimage_studio.core.memory.switches_offload import GROUP_HOOK
from zimage_studio.core.memory.text_cache import bare
from zimage_studio.core.sampling import Sample
from zimage_studio.records.memory import PHASES, Measurement, MemoryProfile, Phase, SwitchState

SAMPLE_EVERY_S = 0.002
JOIN_S = 5.0


class Profiled(Protocol):
    """What is asked of a pipeline under a profile: apply.Applied, or fitted.Fitted."""

    @property
    def profile(self) -> MemoryProfile: ...

    def look(self, size: Size | None) -> tuple[SwitchState, ...]: ...

    def forget_prompts(self) -> None: ...


def measure(
    pipeline: ZImagePipeline,
    applied: Profiled,
    draw: Callable[[], Sample],
    *,
    reference_HWC: NDArray[np.uint8] | None = None,
    warm_up: bool = True,
) -> Measurement:
    """One image under the profile that is applied. `draw` makes it with `pipeline`.

    The first image after loading also pays for compiling, autotuning and touching the weights: `warm_up` draws one
    that is not measured. Remembered prompts are forgotten, so that the text phase is there. Peaks: on CUDA what
    torch's allocator gave out, weights included; on a CPU the weights that are in RAM and what the process grew by,
    sampled every 2 ms. Raises what `draw` raises.
    """
    if warm_up:
        draw()
    applied.forget_prompts()
    device = torch.device(pipeline._execution_device)
    probe: Probe = CudaProbe(device) if device.type == "cuda" else RamProbe(pipeline)
    with probe_phases(pipeline, probe):
        started = time.perf_counter()
        sample = draw()
        seconds = time.perf_counter() - started
    size: Size = (sample.pixels_HWC.shape[1], sample.pixels_HWC.shape[0])
    apart = None if reference_HWC is None else distance(sample.pixels_HWC, reference_HWC)
    return Measurement(
        profile=applied.profile,
        states=applied.look(size),
        phase_peak_bytes=probe.peaks,
        seconds=round(seconds, 3),
        pixels_sha256=sample.pixels_sha256,
        psnr_db=None if apart is None else apart.psnr_db,
        identical=None if apart is None else apart.max_difference == 0,
    )


def measure_under(
    pipeline: ZImagePipeline,
    profile: MemoryProfile,
    draw: Callable[[], Sample],
    *,
    device: torch.device | None = None,
    scratch: Path | None = None,
    reference_HWC: NDArray[np.uint8] | None = None,
    warm_up: bool = True,
) -> tuple[Measurement, tuple[str, ...]]:
    """Apply `profile`, measure, undo. Returns also what stays: load the model again when that is not empty."""
    applied = apply(pipeline, profile, device=device, scratch=scratch)
    try:
        found = measure(pipeline, applied, draw, reference_HWC=reference_HWC, warm_up=warm_up)
    finally:
        stays = applied.undo()
    return found, stays


# --- phases ---------------------------------------------------------------------------------------------------------


class Probe(Protocol):
    """Keeps the highest peak of each phase."""

    peaks: dict[Phase, int]

    def start(self) -> None: ...

    def enter(self, phase: Phase) -> None: ...

    def stop(self) -> None: ...


@contextmanager
def probe_phases(pipeline: ZImagePipeline, probe: Probe) -> Iterator[None]:
    """Tell `probe` when a phase begins: text first, then whenever the transformer or the VAE's decoder is called."""
    with ExitStack() as undo:
        for module, phase in ((pipeline.transformer, PHASES[1]), (pipeline.vae.decoder, PHASES[2])):
            undo.callback(module.register_forward_pre_hook(_entering(probe, phase)).remove)
        probe.start()
        undo.callback(probe.stop)
        probe.enter("text")
        yield


def _entering(probe: Probe, phase: Phase) -> Callable[[Any, Any], None]:
    def hook(_module: Any, _args: Any) -> None:
        probe.enter(phase)

    return hook


class CudaProbe:
    """torch's own count of what its allocator gave out. A phase ends when its kernels have."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._phase: Phase | None = None
        self.peaks: dict[Phase, int] = {}

    def start(self) -> None:
        """Forget earlier peaks."""
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def enter(self, phase: Phase) -> None:
        """The present phase ends where another begins."""
        if phase != self._phase:
            self._close()
            self._phase = phase

    def stop(self) -> None:
        """The last phase ends."""
        self._close()

    def _close(self) -> None:
        torch.cuda.synchronize(self._device)
        if self._phase is not None:
            peak = torch.cuda.max_memory_allocated(self._device)
            self.peaks[self._phase] = max(peak, self.peaks.get(self._phase, 0))
        torch.cuda.reset_peak_memory_stats(self._device)


class RamProbe:
    """Resident memory of this process, sampled: the weights in it, and what it grew by since `start`.

    `baseline_bytes` is what was resident then, `weights_bytes` how much of that is weights.
    """

    def __init__(self, pipeline: ZImagePipeline) -> None:
        self.weights_bytes = resident_weights(pipeline)
        self.baseline_bytes = 0
        self._phase: Phase = "text"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-probe", daemon=True)
        self.peaks: dict[Phase, int] = {}

    def start(self) -> None:
        """Give back what earlier images left in the heap, or this one would find room there and seem smaller."""
        release_heap()
        self.baseline_bytes = self.resident_bytes()
        self._thread.start()

    def enter(self, phase: Phase) -> None:
        """What is resident between two phases counts for both."""
        self._note()
        self._phase = phase
        self._note()

    def stop(self) -> None:
        """End the sampling."""
        self._note()
        self._ended.set()
        self._thread.join(JOIN_S)

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_EVERY_S):
            self._note()

    def _note(self) -> None:
        phase, grown = self._phase, max(0, self.resident_bytes() - self.baseline_bytes)
        self.peaks[phase] = max(self.weights_bytes + grown, self.peaks.get(phase, 0))

    @staticmethod
    def resident_bytes() -> int:
        """What this process holds in RAM now."""
        return int(psutil.Process().memory_info().rss)


def resident_weights(pipeline: ZImagePipeline) -> int:
    """Bytes of the weights in RAM now; those that wait on disk are not there."""
    total = 0
    for name in COMPONENTS:
        module = bare(getattr(pipeline, name))
        away = {
            id(tensor)
            for hook in each_hook(module, GROUP_HOOK)
            if hook.group.offload_to_disk_path
            for tensor in hook.group.tensor_to_key
        }
        tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        total += sum(live_bytes(tensor) for key, tensor in tensors.items() if key not in away)
    return total


def release_heap() -> None:
    """Collect garbage and hand free heap back to the system, where the C library can (glibc)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
