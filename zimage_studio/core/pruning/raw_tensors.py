"""Tensors by their place in a safetensors file, so that what is needed is read once, and nothing else. No torch."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zimage_studio.core.pruning.shape import ITEM_BYTES
from zimage_studio.core.weight_headers import WEIGHT_STEMS, Reading, Shape, read_safetensors_header, weight_files

_RAW_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where a tensor lies: bytes `start` to `start + bytes` of `file`."""

    file: Path
    start: int
    bytes: int
    dtype: str
    shape: Shape

    @property
    def item_bytes(self) -> int:
        """Bytes of one number."""
        return ITEM_BYTES[self.dtype]


def tensor_places(folder: Path, component: str = "transformer") -> dict[str, TensorPlace]:
    """Every tensor of a component over its shards. Raises ModelError when a file is damaged or cut short."""
    found: dict[str, TensorPlace] = {}
    for file in weight_files(folder / component, WEIGHT_STEMS[component]):
        tensors = read_safetensors_header(file)
        with Reading(file), file.open("rb") as opened:
            length = struct.unpack("<Q", opened.read(8))[0]
            header = json.loads(opened.read(length))
        for name, info in tensors.items():
            start = 8 + length + header[name]["data_offsets"][0]
            found[name] = TensorPlace(file, start, info.bytes, info.dtype, info.shape)
    return found


def read_numbers(place: TensorPlace) -> NDArray[np.float64]:
    """A small tensor as float64, in its own shape."""
    with Reading(place.file), place.file.open("rb") as file:
        file.seek(place.start)
        raw = file.read(place.bytes)
    if place.dtype == "BF16":
        wide = np.frombuffer(raw, "<u2").astype("<u4") << 16
        return wide.view("<f4").astype(np.float64).reshape(place.shape)
    return np.frombuffer(raw, _RAW_TYPES[place.dtype]).astype(np.float64).reshape(place.shape)
