"""Files that appear whole or not at all."""

import os
import re
import secrets
import shutil
import time
from pathlib import Path


def replace_durably(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, flush it to the disk, and rename it into place.

    After a crash there is either the old file or the new one, and at worst a `*.tmp` to sweep.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


OLD_S = 3600.0
_PARTIAL = re.compile(r"\..+\.(\d{1,9})-[0-9a-f]{8}\.partial")
_TEMPORARY = re.compile(r"\..+\.(\d+)-[0-9a-f]{8}\.tmp")


def sweep_temporaries(folder: Path) -> int:
    """Remove what a crash left half-written below `folder`; returns how many files went.

    To be called before this process writes anything. Files of another process that still runs are left alone for
    an hour: two doors may share one folder.
    """
    removed = 0
    for path in folder.glob("**/.*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or _is_stale(path, int(match[1])):
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def sweep_partial_folders(folder: Path) -> int:
    """Remove the models that a crash left half-written in `folder`; returns how many went.

    Their names end in the number of the process that wrote them: one that still runs keeps its own.
    """
    removed = 0
    for path in folder.glob(".*.partial"):
        match = _PARTIAL.fullmatch(path.name)
        if match is not None and path.is_dir() and not _runs(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)
            removed += 1
    return removed


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's process runs
    return True


def _is_stale(path: Path, pid: int) -> bool:
    if pid == os.getpid() or not _runs(pid):
        return True  # with our number: of an earlier process
    try:
        return time.time() - path.stat().st_mtime > OLD_S
    except FileNotFoundError:
        return False
