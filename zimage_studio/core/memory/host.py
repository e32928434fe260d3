"""The computer's memory, as far as this process may use it, and what processes hold of it."""

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


def ram(cgroup: Path = CGROUP) -> tuple[int | None, int | None]:
    """(total, available) in bytes; None where the system does not say.

    Inside a container the limit of its control group (version 2) counts, not the machine's size: what exceeds it is
    killed. Pages of files that could be dropped count as available, as they do in the machine's own number.
    """
    try:
        memory = psutil.virtual_memory()
    except (OSError, psutil.Error):
        return None, None
    limit, used = _whole(cgroup / "memory.max"), _whole(cgroup / "memory.current")
    if limit is None or used is None or limit >= memory.total:
        return int(memory.total), int(memory.available)
    held = used - min(used, _droppable(cgroup / "memory.stat"))
    return limit, max(0, min(int(memory.available), limit - held))


def resident(pids: list[int]) -> int | None:
    """Resident bytes of the processes `pids` together; None when none of them can be read."""
    sizes = [size for pid in pids if (size := _resident(pid)) is not None]
    return sum(sizes) if sizes or not pids else None


def children(pid: int) -> list[int]:
    """The processes that `pid` started, and those they started."""
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except (OSError, psutil.Error):
        return []


def exists(pid: int) -> bool:
    """Whether there is a process of this number here."""
    return bool(psutil.pid_exists(pid))


def _resident(pid: int) -> int | None:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except (OSError, psutil.Error):
        return None


def _whole(file: Path) -> int | None:
    """The number in `file`; None for "max", and where there is no such file."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _droppable(file: Path) -> int:
    """`inactive_file` of a control group's memory.stat, 0 where it is not said."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    values = dict(line.split(" ", 1) for line in lines if " " in line)
    text = values.get("inactive_file", "")
    return int(text) if text.isdecimal() else 0
