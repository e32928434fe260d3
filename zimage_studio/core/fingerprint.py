"""Which weights these are: one sha256 over all files of a model, cached per file, checked against its manifest."""

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from zimage_studio.core.weight_headers import Reading, read_json, short
from zimage_studio.errors import ModelError
from zimage_studio.records.progress import Progress, silent

HASH_CHUNK_BYTES = 4 * 2**20
MANIFEST = "manifest.json"


class HashCache:
    """Remembers the sha256 of files by (path, size, mtime_ns) in one JSON file; losing it costs only time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> dict[str, list[object]]:
        """All entries; empty when there is no readable file."""
        try:
            data = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}

    def save(self, entries: Mapping[str, list[object]]) -> None:
        """Replace the file as a whole."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}.tmp")
        try:
            beside.write_text(json.dumps(entries), encoding="utf-8")
            beside.replace(self._path)
        finally:
            beside.unlink(missing_ok=True)


def fingerprint(
    files: Mapping[str, Path],
    *,
    cache: HashCache | None = None,
    manifest: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> str:
    """sha256 over the sorted lines `relative name, NUL, sha256 of the file`.

    `manifest` maps relative names to the hashes the files had when they were written. Raises ModelError
    (model_damaged) naming the first file that differs; Cancelled from `progress`, called in bytes.
    """
    known = cache.load() if cache else {}
    before = dict(known)
    total = sum(_size_of(path) for path in files.values())
    digest = hashlib.sha256()
    done = 0
    try:
        for name, path in sorted(files.items()):
            sha256 = _hash_cached(path, known, _after(done, total, progress))
            done += _size_of(path)
            if manifest is not None and manifest.get(name, sha256) != sha256:
                raise ModelError("model_damaged", value=name, why=f"sha256 {sha256[:12]}… ≠ {manifest[name][:12]}…")
            digest.update(f"{name}\0{sha256}\n".encode())
    finally:
        if cache and known != before:
            cache.save(known)
    progress(total, total, "note.hashing")
    return digest.hexdigest()


def known_fingerprint(files: Mapping[str, Path], cache: HashCache) -> str | None:
    """The same from the cache alone; None when a file has never been hashed, or has changed since."""
    known = cache.load()
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        with Reading(path):
            stat = path.stat()
        entry = known.get(str(path.resolve()))
        if not entry or entry[:2] != [stat.st_size, stat.st_mtime_ns]:
            return None
        digest.update(f"{name}\0{entry[2]}\n".encode())
    return digest.hexdigest()


def manifest_of(folder: Path) -> dict[str, str] | None:
    """The hashes in the folder's manifest.json, or None. Raises ModelError when it lists a file that is missing."""
    path = folder / MANIFEST
    files = read_json(path).get("files") if path.is_file() else None
    if not isinstance(files, dict):
        return None
    hashes = {str(name): str(sha256) for name, sha256 in files.items()}
    for name in hashes:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelError("model_header", value=short(path))
        if not (folder / name).is_file():
            raise ModelError("model_file_missing", value=folder.name, file=name)
    return hashes


def _after(done: int, total: int, progress: Progress) -> Callable[[int], None]:
    def report(count: int) -> None:
        progress(done + count, total, "note.hashing")

    return report


def _size_of(path: Path) -> int:
    with Reading(path):
        return path.stat().st_size


def _hash_cached(path: Path, known: dict[str, list[object]], report: Callable[[int], object]) -> str:
    with Reading(path):
        stat = path.stat()
        entry = known.get(str(path.resolve()))
        if entry and entry[:2] == [stat.st_size, stat.st_mtime_ns] and isinstance(entry[2], str):
            return entry[2]
        digest = hashlib.sha256()
        done = 0
        with path.open("rb") as file:
            while chunk := file.read(HASH_CHUNK_BYTES):
                digest.update(chunk)
                done += len(chunk)
                report(done)
    known[str(path.resolve())] = [stat.st_size, stat.st_mtime_ns, digest.hexdigest()]
    return digest.hexdigest()
