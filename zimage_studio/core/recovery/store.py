"""Tensors by number, in safetensors files of a few each: written once, read piece by piece from a mapping."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from zimage_studio.core.whole_folder import flush


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """One safetensors file that appears whole or not at all, and is on the disk when this returns.

    It has one writer: what a killed one left beside it is written over.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    try:
        plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        save_file(plain, beside, metadata=dict(metadata or {}))
        flush(beside)
        beside.replace(path)
        flush(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """A text file, in the same way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    try:
        beside.write_text(content, encoding="utf-8")
        flush(beside)
        beside.replace(path)
        flush(path.parent)
    finally:
        beside.unlink(missing_ok=True)


class TensorStore:
    """Numbered entries, `per_file` to a file. An entry is a few named tensors."""

    def __init__(self, folder: Path, per_file: int = 64) -> None:
        self._folder, self._per_file = folder, per_file
        self._opened: dict[int, Any] = {}

    def missing(self, count: int) -> list[range]:
        """The runs of entries among the first `count` that are not written yet, one for each file."""
        starts = range(0, count, self._per_file)
        runs = [range(start, min(count, start + self._per_file)) for start in starts]
        return [run for run in runs if not self._path(run[0]).is_file()]

    def write(self, run: range, entries: Sequence[Mapping[str, Tensor]]) -> None:
        """The entries of one run of `missing`."""
        tensors = {
            f"{number}/{name}": t for number, entry in zip(run, entries, strict=True) for name, t in entry.items()
        }
        write_tensors(self._path(run[0]), tensors)

    def get(self, number: int, name: str) -> Tensor:
        """One tensor of one entry."""
        shard = number // self._per_file
        if shard not in self._opened:
            self._opened[shard] = safe_open(self._path(number), framework="pt")
        tensor: Tensor = self._opened[shard].get_tensor(f"{number}/{name}")
        return tensor

    def _path(self, number: int) -> Path:
        return self._folder / f"{number // self._per_file:05d}.safetensors"
