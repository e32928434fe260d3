"""Cut a transformer from disk to disk: pieces of 16 MiB pass through, whatever the model's size. No torch.

The header is written first: a plan foretells every shape. One thread hashes and writes while the other reads and cuts.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from zimage_studio.core.pruning.mapping import TensorMap, require_parent, tensor_maps
from zimage_studio.core.pruning.raw_tensors import TensorPlace, tensor_places
from zimage_studio.core.weight_headers import WEIGHT_STEMS, Reading, Shape, short
from zimage_studio.core.whole_folder import HashingFile, write_file
from zimage_studio.errors import ModelError
from zimage_studio.records.plan import PrunePlan

CHUNK_BYTES = 16 * 2**20
SHARD_BYTES = 10 * 10**9
"""As diffusers splits what it saves."""
STEM = WEIGHT_STEMS["transformer"]

Raw = NDArray[Any]


@dataclass(frozen=True, eq=False, slots=True)
class Move:
    """One tensor: where it lies, what stays of it, and under which name."""

    place: TensorPlace
    where: TensorMap

    @property
    def bytes(self) -> int:
        """Its size in the new file."""
        return math.prod(self.where.shape) * self.place.item_bytes


def moves(folder: Path, plan: PrunePlan) -> list[Move]:
    """All that the cut moves, in the order in which it is written: the widest numbers first, then as they lie.

    Raises ModelError (plan_other_shape) when the plan was made for another shape; reads headers only.
    """
    places = tensor_places(folder)
    require_parent(plan, {name: place.shape for name, place in places.items()})
    found = [Move(places[name], where) for name, where in tensor_maps(plan).items()]
    return sorted(found, key=lambda move: (-move.place.item_bytes, move.place.file.name, move.place.start))


def write_tensors(
    todo: Sequence[Move], folder: Path, count: Callable[[int], None], *, shard_bytes: int = SHARD_BYTES
) -> dict[str, str]:
    """Write the new weight files (and their index when there are several) into `folder`; sha256 by file name.

    `count` is told the bytes of each piece as it is handed on; what it raises stops the work. Raises ModelError for a
    source that cannot be read, OSError for a target that cannot be written.
    """
    shards = _shards(todo, shard_bytes)
    hashes: dict[str, str] = {}
    names: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"{STEM}.safetensors"
        if len(shards) > 1:
            name = f"{STEM}-{number:05d}-of-{len(shards):05d}.safetensors"
        hashes[name] = _write_shard(shard, folder / name, count)
        names |= {move.where.name: name for move in shard}
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(move.bytes for move in todo)},
            "weight_map": dict(sorted(names.items())),
        }
        name = f"{STEM}.safetensors.index.json"
        hashes[name] = write_file(folder / name, (json.dumps(index, indent=2) + "\n").encode())
    return hashes


def _shards(todo: Sequence[Move], limit: int) -> list[list[Move]]:
    shards: list[list[Move]] = [[]]
    size = 0
    for move in todo:
        if shards[-1] and size + move.bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(move)
        size += move.bytes
    return shards


def _write_shard(shard: Sequence[Move], path: Path, count: Callable[[int], None]) -> str:
    with HashingFile(path) as target, _Sources() as sources:
        target.put(_header({move.where.name: (move.place.dtype, move.where.shape, move.bytes) for move in shard}))
        for move in shard:
            for piece in _pieces(move, sources):
                target.put(piece)
                count(len(piece))
    return target.sha256


def _header(tensors: Mapping[str, tuple[str, Shape, int]]) -> memoryview:
    """Length and JSON, padded with blanks so that the data begins at a multiple of 8."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, (dtype, shape, size) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return memoryview(len(text).to_bytes(8, "little") + text)


# --- reading and cutting --------------------------------------------------------------------------------------------


class _Sources:
    """The parent's files, opened once, and two buffers that are filled in turns: one is written meanwhile."""

    def __init__(self) -> None:
        self._files: dict[Path, IO[bytes]] = {}
        self._buffers: list[Raw] = [np.empty(0, np.uint8), np.empty(0, np.uint8)]

    def __enter__(self) -> "_Sources":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def read(self, file: Path, start: int, size: int) -> Raw:
        """`size` bytes from `start`; they stay as they are until the second next call. Raises ModelError."""
        self._buffers.reverse()
        if len(self._buffers[0]) < size:
            self._buffers[0] = np.empty(size, np.uint8)
        buffer = self._buffers[0][:size]
        with Reading(file):
            if file not in self._files:
                self._files[file] = file.open("rb", buffering=0)
            view, done = buffer.data, 0
            while done < size:
                got = os.preadv(self._files[file].fileno(), [view[done:]], start + done)
                if got == 0:
                    raise ModelError("model_truncated", value=short(file), expected=start + size, actual=start + done)
                done += got
        return buffer


def _pieces(move: Move, sources: _Sources) -> Iterator[memoryview]:
    """The bytes that stay of a tensor, some rows at a time."""
    rows = move.place.shape[0] if move.place.shape else 1
    row_bytes = move.place.bytes // max(1, rows)
    at_once = max(1, CHUNK_BYTES // max(1, row_bytes))
    kept_rows = move.where.kept[0] if move.where.kept else None
    for first in range(0, rows, at_once):
        last = min(rows, first + at_once)
        kept = None
        if kept_rows is not None:
            kept = kept_rows[np.searchsorted(kept_rows, first) : np.searchsorted(kept_rows, last)] - first
            if not len(kept):
                continue
        raw = sources.read(move.place.file, move.place.start + first * row_bytes, (last - first) * row_bytes)
        yield _cut(raw, move, kept).reshape(-1).view(np.uint8).data


def _cut(raw: Raw, move: Move, kept: NDArray[np.int64] | None) -> Raw:
    """What stays of some rows: `kept` of them, and the columns that the plan keeps."""
    if move.where.unchanged:
        return raw
    numbers = raw.view(f"<u{move.place.item_bytes}").reshape(-1, *move.place.shape[1:])
    if kept is not None:
        numbers = numbers.take(kept, axis=0)
    columns = move.where.kept[1] if len(move.where.kept) > 1 else None
    if columns is None:
        return numbers
    mask = np.zeros(numbers.shape[1], dtype=bool)
    mask[columns] = True
    return numbers.compress(mask, axis=1)  # more than twice as quick as taking by index
