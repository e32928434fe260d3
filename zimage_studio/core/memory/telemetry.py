"""Reads GPUs through NVML, which needs no CUDA context, and the computer's memory. Nothing here raises.

NVML is loaded by pynvml (nvidia-ml-py) with the system's loader. A GPU may fall off the bus and come back, a driver
may be missing, old or replaced while Studio runs: each costs the numbers it costs and no more.
"""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pynvml
from pynvml import NVMLError

from zimage_studio.core.memory.host import children, exists, ram, resident
from zimage_studio.records.telemetry import GpuReading, Reading

T = TypeVar("T")

RETRY_S = 10.0
# How long after a failure NVML is set up afresh: a lost GPU comes back only to a new session.


class TelemetryReader:
    """Open, read as often as wanted, close. For one thread; a second reader is independent.

    `pid` is whose memory counts as ours, with its children. `retry_s` is the pause before NVML is set up again.
    """

    def __init__(self, *, pid: int | None = None, retry_s: float = RETRY_S) -> None:
        self._pid = os.getpid() if pid is None else pid
        self._retry_s = retry_s
        self._session = False
        self._note = ""
        self._tried_s = -float("inf")
        self._known: dict[str, GpuReading] = {}

    def open(self) -> None:
        """Begin a session with the driver, if there is one. `read()` does it too when needed."""
        self._tried_s = time.monotonic()
        try:
            pynvml.nvmlInit()
        except NVMLError as error:
            self._note = _why(error)
            return
        self._session, self._note = True, ""

    def close(self) -> None:
        """End the session. A second call does nothing; a `read()` would begin another."""
        if not self._session:
            return
        self._session = False
        with contextlib.suppress(NVMLError):
            pynvml.nvmlShutdown()

    def read(self) -> Reading:
        """Everything now. GPUs that were seen before and do not answer are listed as lost."""
        ours = [self._pid, *children(self._pid)]
        gpus, note = self._gpus(frozenset(ours))
        total, available = ram()
        return Reading(
            time_s=time.time(),
            gpus=gpus,
            ram_total_bytes=total,
            ram_available_bytes=available,
            process_bytes=resident(ours[:1]),
            children_bytes=resident(ours[1:]),
            note=note,
        )

    def _gpus(self, ours: frozenset[int]) -> tuple[tuple[GpuReading, ...], str]:
        """All GPUs, and a message key when something is wrong with them."""
        if (not self._session or self._note) and time.monotonic() - self._tried_s >= self._retry_s:
            self.close()
            self.open()
        if not self._session:
            return self._missing(frozenset()), self._note
        try:
            count = pynvml.nvmlDeviceGetCount()
        except NVMLError as error:
            self.close()
            self._note = _why(error)
            return self._missing(frozenset()), self._note
        gpus = self._with_missing([gpu for index in range(count) if (gpu := _gpu(index, ours)) is not None])
        lost = any(gpu.lost for gpu in gpus)
        self._note = "telemetry.gpu_lost" if lost else "" if gpus else "telemetry.no_gpu"
        return gpus, self._note

    def _with_missing(self, found: list[GpuReading]) -> tuple[GpuReading, ...]:
        """`found` and the known GPUs that are not among them, each under its own name."""
        named = [gpu for gpu in found if gpu.id]
        missing = self._missing(frozenset(gpu.id for gpu in named))
        nameless = [gpu for gpu in found if not gpu.id][len(missing) :]  # the others are missing ones, known by name
        self._known |= {gpu.id: _blank(gpu) for gpu in named}
        return tuple(sorted([*named, *missing, *nameless], key=lambda gpu: gpu.index))

    def _missing(self, present: frozenset[str]) -> tuple[GpuReading, ...]:
        return tuple(gpu for name, gpu in self._known.items() if name not in present)


def _gpu(index: int, ours: frozenset[int]) -> GpuReading | None:
    """GPU `index` with all that it says; lost, perhaps nameless, when it does not answer; None when it is not ours."""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        name = _or_none(pynvml.nvmlDeviceGetUUID, handle) or f"index {index}"
        gpu = GpuReading(index=index, id=name, name=_or_none(pynvml.nvmlDeviceGetName, handle) or "")
    except pynvml.NVMLError_NoPermission:
        return None
    except NVMLError:
        return GpuReading(index=index, lost=True)
    try:
        return _readings(gpu, handle, ours)
    except pynvml.NVMLError_GpuIsLost:
        return _blank(gpu)


def _readings(gpu: GpuReading, handle: object, ours: frozenset[int]) -> GpuReading:
    """Raises NVMLError_GpuIsLost."""
    memory = _memory(handle)
    load = _or_none(pynvml.nvmlDeviceGetUtilizationRates, handle)
    milliwatts = _or_none(pynvml.nvmlDeviceGetPowerUsage, handle)
    return replace(
        gpu,
        total_bytes=None if memory is None else int(memory.total),
        free_bytes=None if memory is None else int(memory.free),
        used_bytes=None if memory is None else int(memory.used),
        ours_bytes=_ours(handle, ours),
        utilisation_percent=None if load is None else int(load.gpu),
        temperature_c=_or_none(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        power_w=None if milliwatts is None else milliwatts / 1000,
    )


def _memory(handle: object) -> "pynvml.c_nvmlMemory_t | pynvml.c_nvmlMemory_v2_t | None":
    """Version 2 tells the driver's own share apart; drivers before 510 have version 1 only."""
    second = _or_none(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    return second if second is not None else _or_none(pynvml.nvmlDeviceGetMemoryInfo, handle)


def _ours(handle: object, ours: frozenset[int]) -> int | None:
    """Bytes held by the processes `ours`.

    None when the driver does not say, and when it names only processes that do not exist here: a container has
    process numbers of its own, and ours could be any of them.
    """
    processes = _or_none(pynvml.nvmlDeviceGetComputeRunningProcesses_v3, handle)
    if processes is None:
        processes = _or_none(pynvml.nvmlDeviceGetComputeRunningProcesses_v2, handle)
    if processes is None:
        return None
    mine = [process for process in processes if process.pid in ours]
    if not mine and any(not exists(process.pid) for process in processes):
        return None
    sizes = [process.usedGpuMemory for process in mine]
    return None if None in sizes else sum(sizes)


def _blank(gpu: GpuReading) -> GpuReading:
    """`gpu` without a number, lost."""
    return GpuReading(index=gpu.index, id=gpu.id, name=gpu.name, lost=True)


def _or_none(call: Callable[..., T], *args: object) -> T | None:
    """What NVML says, None where it cannot. Raises NVMLError_GpuIsLost: then nothing else will be said either."""
    try:
        return call(*args)
    except pynvml.NVMLError_GpuIsLost:
        raise
    except NVMLError:
        return None


def _why(error: NVMLError) -> str:
    """The message key for a driver that gives nothing at all."""
    return "telemetry.no_library" if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND else "telemetry.no_driver"
