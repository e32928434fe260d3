"""Files that appear whole or not at all."""

import os
import re
import secrets
import time
from pathlib import Path

from zimage_studio.core.memory.host import exists
from zimage_studio.core.whole_folder import flush


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
    flush(path.parent)


OLD_S = 3600.0
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


def _is_stale(path: Path, pid: int) -> bool:
    if pid == os.getpid() or not exists(pid):
        return True  # with our number: of an earlier process
    try:
        return time.time() - path.stat().st_mtime > OLD_S
    except FileNotFoundError:
        return False
