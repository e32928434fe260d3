"""Ties a process to its parent's life. As a program: tether.py PARENT_PID COMMAND...

Linux sends the signal that PR_SET_PDEATHSIG names when the parent's thread ends, however it ends; the setting outlives
exec. Elsewhere the command merely runs, and the next start sweeps it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def tie_to_parent(parent: int) -> None:
    """End this process when `parent` does. Raises SystemExit when it is not, or no longer, the parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)  # it ended before we were tied to it


def main(arguments: list[str]) -> None:
    """Tie this process to its parent, then become the command."""
    parent, command = int(arguments[0]), arguments[1:]
    tie_to_parent(parent)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
