"""A folder on disk for the weights of one engine: emptied for each model, gone at the end, swept after a crash."""

import os
import re
import secrets
import shutil
from pathlib import Path

import psutil

_OWNER = re.compile(r"(\d+)-(\d+)-[0-9a-f]{8}")


class Scratch:
    """A folder of its own below `root`, which several processes may share. Nothing is written until it is used."""

    def __init__(self, root: Path) -> None:
        """Removes what engines of processes that no longer run have left below `root`."""
        for folder in root.glob("*-*-*"):
            owner = _OWNER.fullmatch(folder.name)
            if owner is not None and _started(int(owner[1])) != int(owner[2]):
                shutil.rmtree(folder, ignore_errors=True)
        self.path = root / f"{os.getpid()}-{_started(os.getpid())}-{secrets.token_hex(4)}"

    def clear(self) -> None:
        """Remove everything in it: nothing that is in memory may have weights there."""
        shutil.rmtree(self.path, ignore_errors=True)


def _started(pid: int) -> int:
    """When the process began, in hundredths of a second: numbers of processes come again. 0 when there is none."""
    try:
        return int(psutil.Process(pid).create_time() * 100)
    except psutil.Error:
        return 0
