"""What the devices say at one moment: memory, load, temperature and power. Every number may be missing."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Self


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuReading:
    """One GPU. None stands for what this GPU or driver does not say; `lost` for one that no longer answers.

    `id` is NVML's UUID (`GPU-...`), the same after a restart; `index` is NVML's, which CUDA may count otherwise.
    `used_bytes` is what all programs hold, `ours_bytes` the part of Studio and its child processes (see
    Reading.with_torch). What the driver keeps for itself is in neither, so used and free may not reach the total.
    `utilisation_percent` is the share of time in which a kernel ran, 0..100.
    """

    index: int
    id: str = ""
    name: str = ""
    total_bytes: int | None = None
    free_bytes: int | None = None
    used_bytes: int | None = None
    ours_bytes: int | None = None
    utilisation_percent: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    lost: bool = False

    @property
    def others_bytes(self) -> int | None:
        """What other programs hold; None when either number is missing."""
        if self.used_bytes is None or self.ours_bytes is None:
            return None
        return max(0, self.used_bytes - self.ours_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchUsage:
    """What torch's allocator holds on the GPU `id`: in tensors, and in all (the rest is kept for the next ones)."""

    id: str
    allocated_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """Everything at one moment.

    `time_s` is the wall clock (seconds since 1970). `ram_available_bytes` could be taken without swapping; both RAM
    numbers respect the limit of a container. `process_bytes` and `children_bytes` are the resident memory of Studio
    and of the processes it started. `note` is a message key when the GPUs cannot be read, and empty otherwise.
    """

    time_s: float
    gpus: tuple[GpuReading, ...] = ()
    torch: tuple[TorchUsage, ...] = ()
    ram_total_bytes: int | None = None
    ram_available_bytes: int | None = None
    process_bytes: int | None = None
    children_bytes: int | None = None
    note: str = ""

    def with_torch(self, usage: Iterable[TorchUsage]) -> Self:
        """The same with what torch holds.

        Inside a container the driver often names no process, or not by its number here. Where it knows of less than
        torch holds, torch's number is taken for ours; the CUDA context (some 0.4 GiB) is then among the others'.
        """
        usage = tuple(usage)
        held = {part.id: part.reserved_bytes for part in usage}
        gpus = (
            replace(gpu, ours_bytes=held[gpu.id]) if held.get(gpu.id, 0) > (gpu.ours_bytes or 0) else gpu
            for gpu in self.gpus
        )
        return replace(self, torch=usage, gpus=tuple(gpus))

    def to_dict(self) -> dict[str, object]:
        """As JSON values, each GPU with what others hold."""
        data = asdict(self)
        data["gpus"] = [{**asdict(gpu), "others_bytes": gpu.others_bytes} for gpu in self.gpus]
        data["torch"] = [asdict(part) for part in self.torch]
        return data
