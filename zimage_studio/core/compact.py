"""A bfloat16 copy of weights that are stored wider, written once: loading then reads half the bytes.

Z-Image-Turbo's repository keeps its transformer in float32, 24.6 GB, of which bfloat16 is what runs. The copy lies
under the hash of the model it was made from, so that another version never takes it for its own, and the model itself
is not touched. Both round the same way: what is loaded from the copy is what is loaded from the model, bit for bit.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from zimage_studio.core.fingerprint import MANIFEST, HashCache, fingerprint
from zimage_studio.core.weight_headers import (
    WEIGHT_STEMS,
    Reading,
    TensorInfo,
    component_header,
    read_json,
    read_safetensors_header,
    short,
    weight_files,
)
from zimage_studio.core.whole_folder import HashingFile, beside, remember, write_file
from zimage_studio.errors import ModelError, StorageError
from zimage_studio.records.artifact import ModelArtifact
from zimage_studio.records.progress import Progress

log = logging.getLogger(__name__)

SCHEMA = 1
PRECISION = "bfloat16"
WIDE: Mapping[str, int] = {"F32": 2, "F64": 4}
"""What is rounded, and how many times smaller it gets."""


@dataclass(frozen=True, slots=True)
class Compact:
    """A finished copy: its folder, and the components that it holds. `bytes` counts their weights."""

    folder: Path
    components: tuple[str, ...]
    bytes: int


def wide_components(folder: Path) -> tuple[str, ...]:
    """The components of a diffusers folder of which a bfloat16 copy is smaller. Raises ModelError; reads headers."""
    return tuple(
        name for name in WEIGHT_STEMS if any(info.dtype in WIDE for info in component_header(folder, name).values())
    )


def find(root: Path, sha256: str | None) -> Compact | None:
    """The copy of the model with this hash below `root`; None where there is none, or none that is whole.

    The copy's own hashes are checked, once for as long as its files stay as they are.
    """
    folder = root / str(sha256)
    if sha256 is None or not (folder / MANIFEST).is_file():
        return None
    try:
        return _checked(folder, sha256, HashCache(root / "hashes.json"))
    except (ModelError, LookupError, TypeError, ValueError, AttributeError) as error:
        log.warning("the bfloat16 copy %s is not used: %s", folder.name[:12], error)
        return None


def _checked(folder: Path, sha256: str, cache: HashCache) -> Compact:
    manifest = read_json(folder / MANIFEST)
    if (manifest["schema"], manifest["of"], manifest["precision"]) != (SCHEMA, sha256, PRECISION):
        raise ValueError(f"manifest of {manifest['of']!r}, schema {manifest['schema']!r}")
    files = {name: folder / name for name in manifest["files"]}
    fingerprint(files, cache=cache, manifest=manifest["files"])
    components = tuple(name for name in WEIGHT_STEMS if (folder / name).is_dir())
    return Compact(folder, components, sum(_bytes(component_header(folder, name)) for name in components))


def write(source: Path, root: Path, sha256: str, *, progress: Progress) -> Compact:
    """Write the copy of the diffusers folder `source` below `root`, or find the one that is there.

    Tensor by tensor, one in memory at a time. It appears whole or not at all: files beside, flushed, the manifest
    last, then one rename. `sha256` is the model's hash. `progress` is called in bytes written. Raises StorageError
    naming what is needed and what is free before anything is written, ModelError, Cancelled from `progress`.
    """
    if (found := find(root, sha256)) is not None:
        return found
    names = wide_components(source)
    total = sum(_bytes(_narrow(component_header(source, name))) for name in names)
    final = root / sha256
    with beside(final, total) as folder:
        hashes = _write_components(source, folder, names, _Counter(progress, total))
        write_file(folder / MANIFEST, _manifest(sha256, hashes))
        if final.exists():  # a copy that is not whole makes room
            shutil.rmtree(final)
    remember(final, hashes, HashCache(root / "hashes.json"))
    return Compact(final, names, total)


def for_loading(artifact: ModelArtifact, root: Path, progress: Progress) -> Path | None:
    """The folder of the model's copy, for `load_pipeline`. A hub model gets one when it is first loaded.

    For others it is made on request: their folders are the user's, and so is the disk. Where there is no room,
    loading goes on without. Raises Cancelled from `progress`.
    """
    found = find(root, artifact.sha256)
    if found is None and artifact.kind == "hub" and artifact.sha256 is not None:
        try:
            if wide_components(Path(artifact.path)):
                found = write(Path(artifact.path), root, artifact.sha256, progress=progress)
        except StorageError as error:
            log.warning("no bfloat16 copy of %s: %s", artifact.name, error)
    return None if found is None else found.folder


class _Counter:
    """Bytes written so far, out of all."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0
        progress(0, total, "note.compacting")

    def add(self, count: int) -> None:
        self._done += count
        self._progress(self._done, self._total, "note.compacting")


# --- writing --------------------------------------------------------------------------------------------------------


def _write_components(source: Path, target: Path, names: tuple[str, ...], counter: _Counter) -> dict[str, str]:
    """sha256 by relative name of every file written."""
    hashes: dict[str, str] = {}
    for component in names:
        (target / component).mkdir()
        for file in weight_files(source / component, WEIGHT_STEMS[component]):
            hashes[f"{component}/{file.name}"] = _write_shard(file, target / component / file.name, counter.add)
        for file in sorted((source / component).glob("*.json")):
            with Reading(file):
                content = file.read_bytes()
            if file.name.endswith(".index.json"):
                content = _index(file, sum(_bytes(read_safetensors_header(p)) for p in _shards(target / component)))
            hashes[f"{component}/{file.name}"] = write_file(target / component / file.name, content)
    return hashes


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _index(file: Path, total: int) -> bytes:
    """The source's index: the shards keep their names."""
    return _json({"metadata": {"total_size": total}, "weight_map": read_json(file)["weight_map"]})


def _write_shard(source: Path, target: Path, count: Callable[[int], None]) -> str:
    """One safetensors file, rounded where it is wide. Returns its sha256."""
    narrow = _narrow(read_safetensors_header(source))
    # the widest numbers first, so that each begins at a multiple of its own size
    order = sorted(narrow, key=lambda name: (-narrow[name].bytes // max(1, narrow[name].parameters), name))
    with _opened(source) as opened, HashingFile(target) as file:
        file.put(_safetensors_header(narrow, order))
        for name in order:
            tensor = opened.get_tensor(name)
            if narrow[name].dtype == "BF16":
                tensor = tensor.to(torch.bfloat16)
            file.put(_raw(tensor))
            count(narrow[name].bytes)
    return file.sha256


def _narrow(header: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The header after rounding."""
    return {
        name: TensorInfo("BF16", info.shape, info.bytes // WIDE[info.dtype]) if info.dtype in WIDE else info
        for name, info in header.items()
    }


def _bytes(header: Mapping[str, TensorInfo]) -> int:
    return sum(info.bytes for info in header.values())


def _safetensors_header(tensors: Mapping[str, TensorInfo], order: list[str]) -> bytes:
    """Length and JSON, padded with blanks so that the data begins at a multiple of 8."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in order:
        info = tensors[name]
        entries[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": [start, start + info.bytes]}
        start += info.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _raw(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The tensors of `path`, mapped and read when they are used. Raises ModelError."""
    try:
        opened = safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ModelError("model_damaged", value=short(path), why=error) from error
    with opened as tensors:
        yield tensors


def _manifest(sha256: str, hashes: Mapping[str, str]) -> bytes:
    return _json({"schema": SCHEMA, "of": sha256, "precision": PRECISION, "files": dict(hashes)})


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, ensure_ascii=False, indent=1) + "\n").encode()
