"""Weight files by their headers alone: names, shapes and sizes of tensors, and whether the file is whole. No torch.

Nothing here opens a pickle: it is refused by name and by content.
"""

import json
import math
import os
import re
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zimage_studio.errors import ModelError
from zimage_studio.records.artifact import Kind

Shape = tuple[int, ...]

MAX_HEADER_BYTES = 100_000_000
MAX_CONFIG_BYTES = 50_000_000
PICKLE_SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle"})
WEIGHT_STEMS: Mapping[str, str] = {
    "text_encoder": "model",
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as a file's header describes it. `bytes` is its size in the file."""

    dtype: str
    shape: Shape
    bytes: int

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def kind_of_file(path: Path) -> Kind:
    """The kind of a file by content first, then name. Raises ModelError for pickles and anything else."""
    with Reading(path), path.open("rb") as file:
        head = file.read(16)
    if path.suffix.lower() in PICKLE_SUFFIXES or looks_pickled(head):
        raise ModelError("model_pickle", value=short(path))
    if head[:4] == b"GGUF":
        return "gguf"
    if path.suffix.lower() == ".safetensors":
        return "single_file"
    if path.suffix.lower() == ".gguf":
        raise ModelError("model_header", value=short(path))
    raise ModelError("model_path_missing", value=short(path))


def looks_pickled(head: bytes) -> bool:
    """A zip of pickles (torch.save) or a bare pickle; a safetensors header has its brace at byte 8."""
    if head[8:9] == b"{":
        return False
    return head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05")


def short(path: Path) -> str:
    """The last two parts of a path: enough to find the file, without telling where the user's home is."""
    return "/".join(path.parts[-2:])


class Reading:
    """Turns an operating system error while reading a model into a sentence that names the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise ModelError("model_file_missing", value=self._path.parent.name, file=self._path.name) from error
        if isinstance(error, OSError):
            raise ModelError("model_damaged", value=short(self._path), why=error.strerror or error) from error


def read_safetensors_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a .safetensors file. Raises ModelError when the header is no header or the file is cut short."""
    with Reading(path), path.open("rb") as file:
        actual = os.fstat(file.fileno()).st_size
        lead = file.read(8)
        if looks_pickled(lead + file.read(8)):
            raise ModelError("model_pickle", value=short(path))
        length = struct.unpack("<Q", lead)[0] if len(lead) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, actual - 8):
            raise ModelError("model_header", value=short(path))
        file.seek(8)
        raw = file.read(length)
    try:
        tensors, end = _parse_header(json.loads(raw))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError("model_header", value=short(path)) from error
    if actual != 8 + length + end:
        raise ModelError("model_truncated", value=short(path), expected=8 + length + end, actual=actual)
    return tensors


def _parse_header(header: Mapping[str, Any]) -> tuple[dict[str, TensorInfo], int]:
    """Tensors and the end of the last one, in bytes after the header."""
    tensors: dict[str, TensorInfo] = {}
    last = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, stop = (int(offset) for offset in entry["data_offsets"])
        shape = tuple(int(n) for n in entry["shape"])
        if (
            start < 0
            or min(shape, default=0) < 0
            or (stop - start) * 8 != math.prod(shape) * _DTYPE_BITS[entry["dtype"]]
        ):
            raise ValueError(name)
        tensors[name] = TensorInfo(entry["dtype"], shape, stop - start)
        last = max(last, stop)
    return tensors, last


def read_gguf_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a .gguf file, shapes in torch's order. Raises ModelError on a damaged or truncated file."""
    import gguf  # a second of imports, needed for this kind only

    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, OSError) as error:
        raise ModelError("model_header", value=short(path)) from error
    return {t.name: TensorInfo(t.tensor_type.name, _torch_shape(t.shape), int(t.n_bytes)) for t in reader.tensors}


def _torch_shape(ggml_shape: Iterable[int]) -> Shape:
    """ggml counts the fastest dimension first."""
    return tuple(int(n) for n in ggml_shape)[::-1]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The header of a weight file of either kind."""
    return read_gguf_header(path) if kind_of_file(path) == "gguf" else read_safetensors_header(path)


def weight_files(folder: Path, stem: str) -> tuple[Path, ...]:
    """The .safetensors files of one component, in order; those of the index when there is one.

    Raises ModelError when one is missing, or when only pickles are there.
    """
    index = folder / f"{stem}.safetensors.index.json"
    single = folder / f"{stem}.safetensors"
    if not index.is_file():
        if not single.is_file() and any(folder.glob("*.bin")):
            raise ModelError("model_pickle", value=folder.name)
        if not single.is_file():
            raise ModelError("model_file_missing", value=folder.parent.name, file=f"{folder.name}/{single.name}")
        return (single,)
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(_is_plain_name(name) for name in names.values()):
        raise ModelError("model_header", value=short(index))
    files = tuple(folder / name for name in sorted(set(names.values())))
    for file in files:
        if not file.is_file():
            raise ModelError("model_file_missing", value=folder.parent.name, file=f"{folder.name}/{file.name}")
    return files


def _is_plain_name(name: object) -> bool:
    """A file name beside the index: no folder, no way up."""
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def component_header(folder: Path, component: str) -> dict[str, TensorInfo]:
    """All tensors of a component over its shards. Raises ModelError also when the index names others."""
    stem = WEIGHT_STEMS[component]
    tensors: dict[str, TensorInfo] = {}
    for file in weight_files(folder / component, stem):
        tensors |= read_safetensors_header(file)
    index = folder / component / f"{stem}.safetensors.index.json"
    if index.is_file() and (lacking := read_json(index)["weight_map"].keys() - tensors.keys()):
        raise ModelError("model_file_missing", value=short(folder / component), file=summary(lacking))
    return tensors


def summary(names: Collection[str], shown: int = 3) -> str:
    """Tensor names by the module they belong to: `layers.3 (15), layers.4 (15)`; `none` when there are none."""
    groups: dict[str, int] = {}
    for name in sorted(names):
        match = re.match(r"(?:[a-z_]+\.)?\w+\.\d+(?=\.)", name)
        group = match.group() if match else name
        groups[group] = groups.get(group, 0) + 1
    parts = [f"{group} ({count})" if count > 1 else group for group, count in groups.items()]
    return ", ".join(parts[:shown]) + (f" +{len(parts) - shown}" if len(parts) > shown else "") or "–"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model's folder. Raises ModelError when it is none."""
    with Reading(path):
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelError("model_header", value=short(path))
        raw = path.read_bytes()
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ModelError("model_header", value=short(path)) from error
    if not isinstance(data, dict):
        raise ModelError("model_header", value=short(path))
    return data
