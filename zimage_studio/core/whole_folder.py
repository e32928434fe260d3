"""Model folders that appear whole or not at all: room first, files beside, hashed and flushed, then one rename."""

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from zimage_studio.core.fingerprint import HashCache
from zimage_studio.core.memory.host import exists
from zimage_studio.errors import InvalidInputError, StorageError

RESERVE_BYTES = 512 * 2**20
"""What stays free on the disk of everybody."""
MB = 10**6
_UNFINISHED = re.compile(r"\..+\.(\d{1,9})-[0-9a-f]{8}\.partial")


@contextmanager
def beside(final: Path, need_bytes: int) -> Iterator[Path]:
    """A new folder beside `final`, to be filled; it becomes `final` when the block ends.

    Raises StorageError naming what is needed and what is free before anything is written, and where the disk refuses;
    InvalidInputError (name_taken) when something lies at `final` by then. After any error nothing is left behind. What
    a crash left beside `final` earlier goes first.
    """
    parent = final.parent
    folder = parent / f".{final.name}.{os.getpid()}-{secrets.token_hex(4)}.partial"
    with storing(parent):
        parent.mkdir(parents=True, exist_ok=True)
        sweep(parent)
        require_room(parent, need_bytes)
        try:
            folder.mkdir()
            yield folder
            for path in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
                flush(path)
            if final.exists():  # a rename would take the place of an empty folder
                raise InvalidInputError("name_taken", field="name", value=final.name)
            folder.rename(final)
            flush(parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path) -> int:
    """Remove what a crash left half-written in `folder`; returns how many went.

    The names end in the number of the process that wrote: one that still runs keeps its own.
    """
    removed = 0
    for path in folder.glob(".*.partial"):
        match = _UNFINISHED.fullmatch(path.name)
        if match is not None and path.is_dir() and not exists(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)
            removed += 1
    return removed


def require_room(folder: Path, need_bytes: int) -> None:
    """Raises StorageError where writing `need_bytes` would leave less than 512 MiB on the disk of `folder`."""
    need, free = need_bytes + RESERVE_BYTES, shutil.disk_usage(folder).free
    if free < need:
        raise StorageError("disk_full", folder=folder, free_mb=free // MB, need_mb=-(-need // MB))


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """What the system refuses inside the block is a StorageError about `folder`."""
    try:
        yield
    except OSError as error:
        raise StorageError("cannot_write", folder=folder, why=error.strerror or error) from error


def flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remember(folder: Path, hashes: Mapping[str, str], cache: HashCache) -> None:
    """Spare the first look at `folder` the hashing of what was hashed while it was written."""
    entries = cache.load()
    for name, sha256 in hashes.items():
        stat = (folder / name).stat()
        entries[str((folder / name).resolve())] = [stat.st_size, stat.st_mtime_ns, sha256]
    cache.save(entries)


class HashingFile:
    """A new file that knows its sha256 and is on the disk when it is closed.

    A thread of its own hashes and writes one piece while the next is made: what was put may be changed from the second
    next `put` on. Raises what writing raised at a later `put` or at the end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._pending: Future[None] | None = None

    def __enter__(self) -> "HashingFile":
        self._file = self._path.open("xb", buffering=0)
        self._thread = ThreadPoolExecutor(1, "write-hashed")
        return self

    def put(self, content: bytes | memoryview) -> None:
        """Write `content` after what was put before."""
        self._wait()
        self._pending = self._thread.submit(self._write, memoryview(content))

    def _write(self, content: memoryview) -> None:
        self._digest.update(content)
        done = 0
        while done < len(content):
            done += self._file.write(content[done:])

    def _wait(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file as file, self._thread:
            if kind is None:
                self._wait()
                os.fsync(file.fileno())

    @property
    def sha256(self) -> str:
        """Of all that was written."""
        return self._digest.hexdigest()


def write_file(path: Path, content: bytes) -> str:
    """A small file, flushed to the disk; returns its sha256."""
    with HashingFile(path) as file:
        file.put(content)
    return file.sha256
