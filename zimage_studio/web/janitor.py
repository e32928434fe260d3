"""Keeps Gradio's cache small: all of it goes at the start, later what is old or too much."""

import logging
import shutil
import time
from pathlib import Path

log = logging.getLogger(__name__)

EVERY_S = 600.0
MAX_AGE_S = 24 * 3600.0
MAX_BYTES = 5 << 30


def empty(folder: Path) -> None:
    """Remove everything below `folder`: leftovers of a process that is gone, with its pages."""
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child, ignore_errors=True)
        else:
            child.unlink(missing_ok=True)


def sweep(folder: Path, *, max_age_s: float = MAX_AGE_S, max_bytes: int = MAX_BYTES) -> int:
    """Remove files older than `max_age_s`, then the oldest until `max_bytes` are left. Returns how many went."""
    files: list[tuple[float, int, Path]] = []
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                stat = path.lstat()
                files.append((stat.st_mtime, stat.st_size, path))
        except OSError:
            continue  # went away by itself
    files.sort()
    total, removed, now = sum(size for _, size, _ in files), 0, time.time()
    for modified, size, path in files:
        if now - modified <= max_age_s and total <= max_bytes:
            break
        path.unlink(missing_ok=True)
        total -= size
        removed += 1
    if removed:
        log.info("removed %d old temporary files", removed)
    return removed
