"""A pruned model as a folder of its own beside its parent: whole or not at all, and it says where it came from."""

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zimage_studio.core.fingerprint import MANIFEST, HashCache, fingerprint
from zimage_studio.core.memory.host import resident
from zimage_studio.core.model_files import DEFAULTS, Facts, inspect_folder
from zimage_studio.core.pruned_transformer import STOCK, config_for
from zimage_studio.core.pruning.streaming import SHARD_BYTES, Move, moves, write_tensors
from zimage_studio.core.weight_headers import Reading, read_json
from zimage_studio.core.whole_folder import beside, flush, remember, storing, write_file
from zimage_studio.errors import InvalidInputError, ModelError
from zimage_studio.records.compress import artifact_name
from zimage_studio.records.plan import PLAN, PrunePlan
from zimage_studio.records.progress import Progress

SCHEMA = 1
INDEX = "model_index.json"
CONFIG = "transformer/config.json"
PACKAGE = "zimage_studio"


@dataclass(frozen=True, slots=True)
class Made:
    """A finished model. `bytes` and `parameters` count all its components.

    `peak_memory_bytes` is the most that this process held while it was written, all that it held before included.
    """

    path: Path
    parameters: int
    bytes: int
    peak_memory_bytes: int
    seconds: float


def write_pruned(
    source: Path, out: Path, plan: PrunePlan, *, progress: Progress, cache: HashCache | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Made:  # fmt: skip
    """Write the child of the diffusers folder `source` as the new folder `out`, block by block from disk to disk.

    `out.name` is the model's name. `cache` remembers hashes of files: with it the parent is read once, and the child
    not again. Refused before anything is written: a name that cannot be one or is taken (InvalidInputError), a plan for
    another model or shape (ModelError), too little room (StorageError). Raises Cancelled from `progress`, which is
    called in bytes written; then, and after any error, nothing is left behind.
    """
    begun = time.monotonic()
    name = artifact_name(out.name)
    if out.exists() or out.is_symlink():
        raise InvalidInputError("name_taken", field="name", value=name)
    facts = inspect_folder(source)
    todo = moves(source, plan)
    _require_parent(plan, facts, cache, progress)
    lent = {name: path for name, path in facts.files.items() if not name.startswith("transformer/") and name != INDEX}
    lent |= {DEFAULTS: source / DEFAULTS} if (source / DEFAULTS).is_file() else {}
    meter = _Meter(progress, sum(move.bytes for move in todo))
    with storing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        need = _need(out.parent, lent, meter.total)
    with beside(out, need) as folder:
        hashes = _write_parts(facts, folder, plan, todo, lent, meter, shard_bytes)
        hashes |= _known_hashes(lent, cache)
        write_file(folder / MANIFEST, _manifest(plan, hashes))
        _require_foretold(folder, plan)
    if cache is not None:
        remember(out, hashes, cache)
    return Made(out, plan.parameters_after, plan.bytes_after, meter.peak, time.monotonic() - begun)


def _require_parent(plan: PrunePlan, facts: Facts, cache: HashCache | None, progress: Progress) -> None:
    """Refuse a plan for other weights."""
    sha256 = fingerprint(facts.files, cache=cache, progress=progress)
    if sha256 != plan.model_sha256:
        raise ModelError(
            "plan_other_model", value=facts.root.name, hash=sha256[:12], expected=plan.model,
            expected_hash=plan.model_sha256[:12],
        )  # fmt: skip


def _need(folder: Path, lent: Mapping[str, Path], written: int) -> int:
    """Bytes that are written, and of what cannot be linked because it lies on another disk."""
    here = folder.stat().st_dev
    return written + sum(stat.st_size for path in lent.values() if (stat := path.stat()).st_dev != here)


def _require_foretold(folder: Path, plan: PrunePlan) -> None:
    """What was written is what was foretold; anything else is ours to mend."""
    facts = inspect_folder(folder)
    if (facts.parameters, facts.bytes) != (plan.parameters_after, plan.bytes_after):
        raise ModelError("plan_other_shape", what="parameters", found=facts.parameters, expected=plan.parameters_after)


class _Meter:
    """Bytes written so far, and the most memory held meanwhile."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self.total = total
        self._done = 0
        self.peak = 0

    def add(self, count: int) -> None:
        """So many bytes more. Raises Cancelled."""
        self._done += count
        self.peak = max(self.peak, resident([os.getpid()]) or 0)
        self._progress(self._done, self.total, "note.pruning")


# --- parts ----------------------------------------------------------------------------------------------------------


def _write_parts(
    facts: Facts, folder: Path, plan: PrunePlan, todo: list[Move], lent: Mapping[str, Path], meter: _Meter,
    shard_bytes: int,
) -> dict[str, str]:  # fmt: skip
    """Everything but the manifest; sha256 by relative name of what was written anew."""
    (folder / "transformer").mkdir()
    config = config_for(plan.after, read_json(facts.root / CONFIG))
    index = read_json(facts.root / INDEX)
    index["transformer"] = ["diffusers" if config["_class_name"] == STOCK else PACKAGE, config["_class_name"]]
    for name, path in lent.items():
        _lend(path, folder / name)
    hashes = {
        INDEX: write_file(folder / INDEX, _json(index)),
        CONFIG: write_file(folder / CONFIG, _json(config)),
        PLAN: write_file(folder / PLAN, plan.to_json().encode()),
    }
    written = write_tensors(todo, folder / "transformer", meter.add, shard_bytes=shard_bytes)
    return hashes | {f"transformer/{name}": sha256 for name, sha256 in written.items()}


def _lend(source: Path, target: Path) -> None:
    """A file of the parent that stays as it is: the same file under a second name where the disk allows it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()  # the hub's cache consists of links
    try:
        os.link(source, target)
    except OSError:  # another disk, or one that has no links
        with Reading(source):
            shutil.copyfile(source, target)
        flush(target)


def _known_hashes(lent: Mapping[str, Path], cache: HashCache | None) -> dict[str, str]:
    """The hashes of what was lent that the cache knows: they were checked a moment ago."""
    entries = cache.load() if cache else {}
    found = {name: entries.get(str(path.resolve())) for name, path in lent.items()}
    return {name: str(entry[2]) for name, entry in found.items() if entry is not None}


def _manifest(plan: PrunePlan, hashes: Mapping[str, str]) -> bytes:
    return _json(
        {
            "schema": SCHEMA,
            "made_by": "prune",
            "parent": plan.model_sha256,
            "parent_name": plan.model,
            "files": dict(sorted(hashes.items())),
        }
    )


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, ensure_ascii=False, indent=2) + "\n").encode()
